"""A tiny random Llama, or LLaVA, with a tokenizer trained on given texts, as a model directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from mint.data.chat import LLAMA3_TEMPLATE
from mint.data.phrases import train_phrases
from mint.models import init_model, save_model

BOS, END_OF_TEXT, EOT, IMAGE = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|image|>"
CONTROL = (BOS, END_OF_TEXT, "<|start_header_id|>", "<|end_header_id|>", EOT)

# Decoder shapes: "shallow" reads notes of phrases, "demo" images too, "small" (5 M parameters) real cohorts.
SHAPES = {
    "shallow": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 1, "num_attention_heads": 4},
    "demo": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4},
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 4},
}
TOWER = {  # image encoder of the LLaVA
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "hidden_act": "gelu",
}


def write_base(
    folder: str | Path,
    texts: Iterable[str],
    shape: str = "small",
    vocabulary: int = 10_000,
    seed: int = 0,
    vision: dict | None = None,
    words: bool = False,
    tied: bool = True,
) -> Path:
    """Writes a model directory with a tokenizer trained on ``texts`` and random weights; returns its path.

    shape: a key of ``SHAPES``. The context is 1,024 tokens. vision: ``vision_config`` of a CLIP image encoder; with it,
    the model is a LLaVA that reads whole images, resized to the encoder's size. words: no token is longer than a word.
    tied: the LM head is the embedding.
    """
    folder = Path(folder)
    control = CONTROL if vision is None else (*CONTROL, IMAGE)
    tokenizer = train_phrases(texts, vocabulary, control, f"{BOS} $A", words)
    ids = {token: tokenizer.token_to_id(token) for token in control}
    save_model(init_model(base_config(shape, tokenizer.get_vocab_size(), ids, vision, tied), seed=seed), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOT,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": LLAMA3_TEMPLATE,
    }
    generation = {"bos_token_id": ids[BOS], "eos_token_id": [ids[EOT], ids[END_OF_TEXT]]}
    files: dict[str, dict] = {"tokenizer_config.json": settings, "generation_config.json": generation}
    if vision is not None:
        side = vision["image_size"]
        whole = {"size": {"height": side, "width": side}, "do_center_crop": False}
        files["preprocessor_config.json"] = {"image_processor_type": "CLIPImageProcessor", **whole}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


def base_config(
    shape: str,
    vocabulary: int = 64,
    ids: Mapping[str, int | None] | None = None,
    vision: dict | None = None,
    tied: bool = True,
) -> dict:
    """``config.json`` of the model that :func:`write_base` writes.

    vocabulary: tokens, rounded up to a multiple of 64. ids: of the special tokens, by default 0, for a model of which
    only the structure is wanted.
    """
    ids = ids or dict.fromkeys((BOS, EOT, IMAGE), 0)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": -(-vocabulary // 64) * 64,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "initializer_range": 0.06,
        "tie_word_embeddings": tied,
        "bos_token_id": ids[BOS],
        "eos_token_id": ids[EOT],
        "num_key_value_heads": SHAPES[shape]["num_attention_heads"],
        **SHAPES[shape],
    }
    if vision is None:
        return config
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": config,
        "vision_config": {"model_type": "clip_vision_model", **vision},
        "image_token_index": ids[IMAGE],
        "tie_word_embeddings": tied,
    }

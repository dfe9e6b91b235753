"""Converts LLaVA's own checkpoint format (LLaVA-Med-1.5) to that of transformers; called by ``mint.convert``.

The format names the same tensors differently, has one level of settings for decoder and images (``mm_*``), refers to
its CLIP by name, and has no image token. The converted model has the token ``<image>`` after the vocabulary, Mistral's
chat template, and the settings of the image processor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from mint.errors import InputError
from mint.files import read_json
from mint.hub import TOKENIZER_FILES, resolve_dir
from mint.models.checkpoint import Stored, build_model, placed_tensors
from mint.models.llava import OWN_FORMS
from mint.models.names import Pretrained, current_name
from mint.models.pickled import Source, find_source

FEATURES = {"patch": "default", "cls_patch": "full"}  # mm_vision_select_feature -> vision_feature_select_strategy
CLIP_LARGE = {  # of openai/clip-vit-large-patch14-336
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
ROWS = 64  # new rows of the embedding: the image's, and some that fill it up
IMAGE = "<image>"
TOWER = "model.vision_tower."
TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'assistant' %}"
    "{{- ' ' + message['content'] + ' ' + eos_token }}{%- else %}{{- '[INST] ' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<image>\\n' }}{%- else %}{{- part['text'] }}{%- endif %}{%- endfor %}"
    "{%- endif %}"
    "{{- ' [/INST]' }}{%- endif %}{%- endfor %}"
)


def convert_form(
    source: Source, raw: dict, tower: str | None, tokenizer: str | None, report: Callable[[str], None]
) -> tuple[dict, dict[str, dict], Iterator[tuple[str, Tensor]]]:
    """(``config.json``, the other settings files by name, the tensors in bfloat16) of the converted model.

    raw: the source's ``config.json``. tower: the CLIP, where the source does not hold its weights; where it does, the
    two are compared. tokenizer: where the source has none in the fast form (``tokenizer.json``). report: takes a line
    on the image tower once the tensors have been read. Raises InputError for settings that are not supported, and for
    whatever is missing; the tensors raise it as they are read.
    """
    clip = find_source(tower) if tower else None
    words = resolve_dir(tokenizer, TOKENIZER_FILES) if tokenizer else source.folder
    if not (words / "tokenizer.json").is_file():
        raise InputError(
            f"{words} has no tokenizer.json: name a directory or hub id with the same vocabulary (--tokenizer)"
        )
    config = nested_config(raw, source.folder, clip.folder if clip else None)
    companions = _companions(words, source.folder, raw, config)
    model = build_model(config, source.name)
    stored = _grown(_with_tower(model, source, clip, report), model)
    tensors = ((name, tensor.bfloat16()) for name, tensor in placed_tensors(model, stored, source.name))
    return config, companions, tensors


def nested_config(raw: dict, folder: Path, clip: Path | None) -> dict:
    """``config.json`` in the newer form. Raises InputError for settings that it cannot say."""
    kind = OWN_FORMS[raw["model_type"]]
    if raw.get("mm_projector_type") != "mlp2x_gelu" or raw.get("mm_use_im_start_end"):
        raise InputError(f"{folder}: only the projector mlp2x_gelu without marks around the image is supported")
    feature = raw.get("mm_vision_select_feature", "patch")
    if feature not in FEATURES:
        raise InputError(f"{folder}: mm_vision_select_feature {feature!r} is none of {', '.join(FEATURES)}")
    if clip is not None:
        described = read_json(clip / "config.json")
        vision = {**CLIP_LARGE, **(described.get("vision_config") or described)}
    elif str(raw.get("mm_vision_tower", "")).endswith("clip-vit-large-patch14-336"):
        vision = dict(CLIP_LARGE)
    else:
        raise InputError(f"{folder} reads images with {raw.get('mm_vision_tower')!r}: say where that is (--tower)")
    text = {name: value for name, value in raw.items() if not name.startswith(("mm_", "_")) and name != "architectures"}
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {**text, "model_type": kind, "vocab_size": raw["vocab_size"] + ROWS},
        "vision_config": {**vision, "model_type": "clip_vision_model"},
        "image_token_index": raw["vocab_size"],
        "vision_feature_layer": raw.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": FEATURES[feature],
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "torch_dtype": "bfloat16",
    }


def _with_tower(
    model: Pretrained, source: Source, clip: Source | None, report: Callable[[str], None]
) -> Iterator[Stored]:
    """The source's tensors, then those of the CLIP that the source's image tower lacks; the others are compared."""
    own: dict[str, Tensor] = {}  # kept for the comparison, empty without one
    for path, stored, read in source.tensors(model):
        name = current_name(model, stored)
        if name.startswith(TOWER):
            own[name] = read() if clip else torch.empty(0)
        yield path, stored, read
    if clip is None:
        if not own:
            raise InputError(f"{source.name} holds no image tower: give the CLIP that reads its images (--tower)")
        return
    places = {name for name in model.state_dict() if name.startswith(TOWER)}
    differences: dict[str, float] = {}
    for path, stored, read in clip.tensors():
        name = stored.replace("vision_model.", TOWER, 1)
        if name in own and name in places:
            differences[name] = _difference(own[name], read())
        elif name in places:
            yield path, name, read
    report(_describe_tower(clip.name, len(own), differences))


def _difference(own: Tensor, other: Tensor) -> float:
    """The largest difference, ``other`` rounded to the dtype of ``own``; infinite where the shapes differ."""
    if own.shape != other.shape:
        return float("inf")
    return float((own.float() - other.to(own.dtype).float()).abs().max())


def _describe_tower(clip: str, stored: int, differences: dict[str, float]) -> str:
    if not stored:
        return f"image tower: that of {clip}; the checkpoint stores none"
    unequal = {name: size for name, size in differences.items() if size > 0}
    if not unequal:
        return f"image tower: the checkpoint's own, which equals that of {clip}"
    most = max(unequal, key=unequal.__getitem__)
    return (
        f"image tower: the checkpoint's own, not that of {clip}: {len(unequal)} of {len(differences)} tensors differ, "
        f"by at most {unequal[most]:.3g} ({most.removeprefix(TOWER)})"
    )


def _grown(stored: Iterator[Stored], model: Pretrained) -> Iterator[Stored]:
    """Embedding and head with ``ROWS`` more rows, the mean of the others."""
    grown = {name for name in model.state_dict() if name.endswith(("embed_tokens.weight", "lm_head.weight"))}
    for path, name, read in stored:
        yield path, name, functools.partial(_grow, read) if current_name(model, name) in grown else read


def _grow(read: Callable[[], Tensor]) -> Tensor:
    tensor = read()
    return torch.cat([tensor, tensor.float().mean(0, keepdim=True).to(tensor.dtype).expand(ROWS, -1)])


def _companions(words: Path, folder: Path, raw: dict, config: dict) -> dict[str, dict]:
    """The files of the tokenizer, with its new token, and those that say how images and chats are read."""
    token = config["image_token_index"]
    tokenizer = read_json(words / "tokenizer.json")
    added = tokenizer.setdefault("added_tokens", [])
    used = {*(entry["id"] for entry in added), *_vocabulary_ids(tokenizer)}
    if not used or max(used) != token - 1:
        raise InputError(f"{words / 'tokenizer.json'} goes up to {max(used, default=0)}, the model to {token - 1}")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added.append({"id": token, "content": IMAGE, **flags, "special": True})
    settings: dict = {}
    for place in (words, folder):
        settings |= read_json(place / "tokenizer_config.json", optional=True)
    vision, strategy = config["vision_config"], config["vision_feature_select_strategy"]
    side = vision["image_size"]
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {**settings, "chat_template": TEMPLATE},
        "generation_config.json": {
            "bos_token_id": raw.get("bos_token_id", 1),
            "eos_token_id": raw.get("eos_token_id", 2),
        },
        "preprocessor_config.json": {
            "image_processor_type": "LlavaImageProcessor",
            "do_pad": raw.get("image_aspect_ratio") == "pad",
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
        },
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "patch_size": vision["patch_size"],
            "vision_feature_select_strategy": strategy,
            "num_additional_image_tokens": 1,
            "image_token": IMAGE,
        },
    }


def _vocabulary_ids(tokenizer: dict) -> list[int]:
    vocabulary = tokenizer["model"]["vocab"]
    return list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))

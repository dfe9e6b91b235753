"""LLaVA's own file form (LLaVA-Med-1.5) as a directory of the form that everything else reads and serves.

    python -m mint.models.llava_med --source microsoft/llava-med-v1.5-mistral-7b --out llava-med \\
        --tower openai/clip-vit-large-patch14-336 --tokenizer mistralai/Mistral-7B-Instruct-v0.2

That form names the same tensors otherwise, keeps the decoder's settings in one level with those of the image (``mm_*``),
names its CLIP instead of describing it, and has no token for an image. What is written has one, ``<image>``, behind the
vocabulary, Mistral's chat template, and the settings of the image processor.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mint.command import guard
from mint.errors import InputError
from mint.hub import MODEL_FILES, resolve_dir
from mint.models.checkpoint import current_name, init_model, read_json, save_model, stored_tensors
from mint.models.llava import Llava

DECODERS = {"llava_mistral": "mistral", "llava_llama": "llama", "llava_qwen": "qwen2"}
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
TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'assistant' %}"
    "{{- ' ' + message['content'] + ' ' + eos_token }}{%- else %}{{- '[INST] ' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<image>\\n' }}{%- else %}{{- part['text'] }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{- ' [/INST]' }}{%- endif %}{%- endfor %}"
)


def convert(source: str | Path, out: str | Path, tower: str | None = None, tokenizer: str | None = None) -> Path:
    """Writes the directory; returns its path.

    tower: the CLIP, a directory or hub id, where the source does not hold its weights. tokenizer: where the source has
    none in the fast form (``tokenizer.json``). Raises InputError for another form, and for whatever is missing.
    """
    folder = resolve_dir(source, MODEL_FILES)
    raw = read_json(folder / "config.json")
    clip = resolve_dir(tower, MODEL_FILES) if tower else None
    words = resolve_dir(tokenizer, MODEL_FILES) if tokenizer else folder
    if not (words / "tokenizer.json").is_file():
        raise InputError(f"{words} has no tokenizer.json: name a directory or hub id with the same vocabulary (--tokenizer)")
    config = nested_config(raw, folder, clip)
    companions = _companions(words, folder, raw, config)
    model = init_model(config, dtype=torch.bfloat16)
    _fill(model, folder, clip)
    save_model(model, out)
    for name, content in companions.items():
        (Path(out) / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Path(out)


def nested_config(raw: dict, folder: Path, clip: Path | None) -> dict:
    """``config.json`` in the newer form. Raises InputError for settings that it cannot say."""
    kind = DECODERS.get(raw.get("model_type"))
    if kind is None:
        raise InputError(f"{folder}: model_type {raw.get('model_type')!r} is none of {', '.join(DECODERS)}")
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
    }


def _fill(model: Llava, folder: Path, clip: Path | None) -> None:
    """The source's tensors, and the CLIP's where those have no tower."""
    places = {name: parameter.data for name, parameter in model.named_parameters()}
    tower = {name for name in places if name.startswith("model.vision_tower.")}
    missing = set(places)
    for path, stored, read in stored_tensors(folder):
        name = current_name(model, stored)
        if name in places:
            _copy(places[name], read(), f"{path}: {stored}")
            missing.discard(name)
        elif not stored.endswith(("rotary_emb.inv_freq", ".position_ids")):
            raise InputError(f"{path} holds {stored!r}, which a LLaVA has no place for")
    if missing & tower and clip is not None:
        for path, stored, read in stored_tensors(clip):
            name = stored.replace("vision_model.", "model.vision_tower.", 1)
            if name in missing:
                _copy(places[name], read(), f"{path}: {stored}")
                missing.discard(name)
    if missing:
        hint = "; give the CLIP that reads the images (--tower)" if missing & tower and clip is None else ""
        raise InputError(f"{folder} lacks {len(missing)} weights, as {min(missing)}{hint}")


def _copy(place: Tensor, tensor: Tensor, what: str) -> None:
    """Into a parameter; the rows that a vocabulary gains are the mean of the others."""
    if place.shape[1:] != tensor.shape[1:] or len(place) - len(tensor) not in (0, ROWS):
        raise InputError(f"{what} is {tuple(tensor.shape)}, the settings ask for {tuple(place.shape)}")
    place[: len(tensor)] = tensor
    place[len(tensor) :] = tensor.float().mean(0)


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
    settings = {}
    for place in (words, folder):
        file = place / "tokenizer_config.json"
        settings |= read_json(file) if file.is_file() else {}
    vision, strategy = config["vision_config"], config["vision_feature_select_strategy"]
    side = vision["image_size"]
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {**settings, "chat_template": TEMPLATE},
        "generation_config.json": {"bos_token_id": raw.get("bos_token_id", 1), "eos_token_id": raw.get("eos_token_id", 2)},
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mint.models.llava_med", description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, metavar="DIR|ID")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--tower", metavar="DIR|ID", help="the CLIP, where the source does not hold its weights")
    parser.add_argument("--tokenizer", metavar="DIR|ID", help="where the source has no tokenizer.json")
    args = parser.parse_args(argv)
    return guard(lambda: print(convert(args.source, args.out, args.tower, args.tokenizer)))


if __name__ == "__main__":
    sys.exit(main())

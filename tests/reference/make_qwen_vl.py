"""Writes qwen_vl and qwen3_vl (.json, .safetensors): what transformers' Qwen2.5-VL and Qwen3-VL compute.

    python -m tests.reference.make_qwen_vl        in an environment with torch, transformers, peft, numpy and pillow

Weights are rebuilt from names and seeds (weights.py), inputs by qwen_vl_inputs.py and qwen3_vl_inputs.py, so only
results are stored.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import ModuleType

import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from tests.reference import qwen3_vl_inputs, qwen_vl_inputs
from tests.reference.mllama_inputs import SIZES, picture
from tests.reference.peers import adapted_logits
from tests.reference.qwen_vl_inputs import HERE, IMAGE, PROCESSOR, images, tokens

FAMILIES = {
    "qwen_vl": (qwen_vl_inputs, transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (qwen3_vl_inputs, transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration),
}


@torch.no_grad()
def make(family: str, inputs: ModuleType, settings: type, kind: type) -> None:
    config = settings(
        **{key: value for key, value in inputs.TINY.items() if key not in ("model_type", "architectures")}
    )
    config._attn_implementation = "eager"
    model = kind(config).float().eval()
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    model.load_state_dict(inputs.weights(shapes), strict=False)
    results = {}
    for name in inputs.INPUTS:
        results[name] = model(**given(name)).logits.contiguous()
        print(f"{family} {name:16s} largest logit {results[name].abs().max():.3f}")
    if family == "qwen_vl":
        results |= processed()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            stored = sorted(file.keys())
    logits, adapter = adapted_logits(model, inputs.ADAPTED, inputs.SEED, **given("rows"))
    save_file({**results, "adapter": logits}, HERE / f"{family}.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    record = {"versions": versions, "shapes": shapes, "stored": stored, "adapter": adapter}
    (HERE / f"{family}.json").write_text(json.dumps(record, indent=1) + "\n")


def processed() -> dict[str, torch.Tensor]:
    """What the image processor, the same for both, makes of pictures of many sizes."""
    processor, results = transformers.Qwen2VLImageProcessor(**PROCESSOR), {}
    for name, size in SIZES.items():
        if max(size) <= 200 * min(size):
            made = processor([picture(size)], return_tensors="pt")
            results[f"processor.{name}.image_grid_thw"] = made["image_grid_thw"]
            results[f"processor.{name}.pixel_values"] = made["pixel_values"][:, ::5].contiguous()
    return results


def given(name: str) -> dict[str, torch.Tensor]:
    """The model's arguments, with the kind of every token as transformers' processor gives it (1: of an image)."""
    ids = tokens(name)
    return {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).int(), **(images(name) or {})}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for family, parts in FAMILIES.items():
        make(family, *parts)

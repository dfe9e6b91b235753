"""Writes qwen_vl.json and qwen_vl.safetensors: what transformers' Qwen2_5_VLForConditionalGeneration computes.

    python -m tests.reference.make_qwen_vl        in an environment with torch, transformers, peft, numpy and pillow

Weights are rebuilt from names and seeds (weights.py), inputs by qwen_vl_inputs.py, so only results are stored.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from tests.reference.mllama_inputs import SIZES, picture
from tests.reference.peers import adapted_logits
from tests.reference.qwen_vl_inputs import ADAPTED, HERE, IMAGE, INPUTS, PROCESSOR, SEED, TINY, images, tokens, weights


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    settings = {key: value for key, value in TINY.items() if key not in ("model_type", "architectures")}
    config = transformers.Qwen2_5_VLConfig(**settings)
    config._attn_implementation = "eager"
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).float().eval()
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    model.load_state_dict(weights(shapes), strict=False)
    results = {}
    for name in INPUTS:
        results[name] = model(**given(name)).logits.contiguous()
        print(f"{name:16s} largest logit {results[name].abs().max():.3f}")
    processor = transformers.Qwen2VLImageProcessor(**PROCESSOR)
    for name, size in SIZES.items():
        if max(size) <= 200 * min(size):
            made = processor([picture(size)], return_tensors="pt")
            results[f"processor.{name}.image_grid_thw"] = made["image_grid_thw"]
            results[f"processor.{name}.pixel_values"] = made["pixel_values"][:, ::5].contiguous()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            stored = sorted(file.keys())
    logits, adapter = adapted_logits(model, ADAPTED, SEED, **given("rows"))
    save_file({**results, "adapter": logits}, HERE / "qwen_vl.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    record = {"versions": versions, "shapes": shapes, "stored": stored, "adapter": adapter}
    (HERE / "qwen_vl.json").write_text(json.dumps(record, indent=1) + "\n")


def given(name: str) -> dict[str, torch.Tensor]:
    """The model's arguments, with the kind of every token as transformers' processor gives it (1: of an image)."""
    ids = tokens(name)
    return {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).int(), **(images(name) or {})}


if __name__ == "__main__":
    main()

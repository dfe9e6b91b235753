"""Writes vilt.json and vilt.safetensors: what transformers' ViltForQuestionAnswering and ViltImageProcessor compute.

    python -m tests.reference.make_vilt        in an environment with torch, transformers, numpy and pillow

Weights are rebuilt from names and seeds (weights.py), inputs by vilt_inputs.py, so only results are stored.
"""

from __future__ import annotations

import json

import torch
import transformers
from safetensors.torch import save_file

from tests.reference.vilt_inputs import HERE, IMAGES, INPUTS, PROCESSOR, TINY, image, inputs, weights


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    config = transformers.ViltConfig(**{key: value for key, value in TINY.items() if key != "model_type"})
    config._attn_implementation = "eager"
    model = transformers.ViltForQuestionAnswering(config).float().eval()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    model.load_state_dict(weights(shapes), strict=False)
    results = {}
    for name in INPUTS:
        given = inputs(name)
        tokens = given.pop("tokens")
        results[f"logits.{name}"] = model(input_ids=tokens, **given).logits
        print(f"{name:20s} largest logit {results[f'logits.{name}'].abs().max():.3f}")
    processor = transformers.ViltImageProcessor(**PROCESSOR)
    made = processor([image(name).convert("RGB") for name in IMAGES], return_tensors="pt")
    pixels = made["pixel_values"]
    results["processor.sample"] = pixels[:, :, 3::16, 5::16].contiguous()
    results["processor.mask_sums"] = made["pixel_mask"].long().sum((1, 2))
    save_file(results, HERE / "vilt.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = {
        "versions": versions,
        "shapes": shapes,
        "processor_class": type(processor).__name__,
        "size": list(pixels.shape),
    }
    (HERE / "vilt.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

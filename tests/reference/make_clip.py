"""Writes clip.json and clip.safetensors: what transformers' CLIPModel and CLIPImageProcessor compute.

    python -m tests.reference.make_clip        in an environment with torch, transformers, numpy and pillow

Weights are rebuilt from names and seeds (weights.py), inputs by clip_inputs.py, so only results are stored.
"""

from __future__ import annotations

import json

import torch
import transformers
from safetensors.torch import save_file

from tests.reference.clip_inputs import CONFIGS, HERE, PROCESSOR, pixels, texts, weights
from tests.reference.vilt_inputs import IMAGES, image


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    results, shapes = {}, {}
    tokens, mask = texts()
    for name, raw in CONFIGS.items():
        config = transformers.CLIPConfig(**{key: value for key, value in raw.items() if key != "model_type"})
        config._attn_implementation = "eager"
        model = transformers.CLIPModel(config).float().eval()
        shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
        model.load_state_dict(weights(shapes), strict=False)
        out = model(input_ids=tokens, pixel_values=pixels(), attention_mask=mask)
        results[f"{name}.logits"] = out.logits_per_image.contiguous()
        results[f"{name}.logits_without_mask"] = model(
            input_ids=tokens, pixel_values=pixels()
        ).logits_per_image.contiguous()
        results[f"{name}.text"], results[f"{name}.image"] = out.text_embeds, out.image_embeds
        states = model.vision_model(pixels(), output_hidden_states=True).hidden_states
        results[f"{name}.states"] = states[-2]
        print(f"{name:8s} largest logit {results[f'{name}.logits'].abs().max():.3f}")
    processor = transformers.CLIPImageProcessor(**PROCESSOR)
    made = processor([image(name).convert("RGB") for name in IMAGES], return_tensors="pt")
    results["processor"] = made["pixel_values"].contiguous()
    save_file(results, HERE / "clip.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = {"versions": versions, "shapes": shapes, "processor_class": type(processor).__name__}
    (HERE / "clip.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

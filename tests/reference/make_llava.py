"""Writes llava.json and llava.safetensors: what transformers' LlavaForConditionalGeneration computes.

    python -m tests.reference.make_llava        in an environment with torch, transformers and peft

Weights are rebuilt from names and seeds (weights.py), inputs by llava_inputs.py, so only results are stored.
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

from tests.reference.llava_inputs import ADAPTED, CONFIGS, HERE, SEED, pixels, tokens, weights
from tests.reference.peers import adapted_logits


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    results, shapes, stored = {}, {}, []
    for name, raw in CONFIGS.items():
        config = transformers.LlavaConfig(**{key: value for key, value in raw.items() if key != "model_type"})
        config._attn_implementation = "eager"
        model = transformers.LlavaForConditionalGeneration(config).float().eval()
        shapes[name] = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
        model.load_state_dict(weights(shapes[name]), strict=False)
        model.tie_weights()
        logits = model(input_ids=tokens(name), pixel_values=pixels()).logits
        results[name] = logits.contiguous()
        print(f"{name:20s} largest logit {logits.abs().max():.3f}")
        if not stored:
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                with safe_open(Path(folder) / "model.safetensors", "pt") as file:
                    stored = sorted(file.keys())
            results["adapter"], adapter = adapted_logits(
                model, ADAPTED, SEED, input_ids=tokens(name), pixel_values=pixels()
            )
    save_file(results, HERE / "llava.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    record = {"versions": versions, "shapes": shapes, "stored": stored, "adapter": adapter}
    (HERE / "llava.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

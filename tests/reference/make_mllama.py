"""Writes mllama.json and mllama.safetensors: what transformers' MllamaForConditionalGeneration computes.

    python -m tests.reference.make_mllama        in an environment with torch, transformers, peft, numpy and pillow

Weights are rebuilt from names and seeds (weights.py), inputs by mllama_inputs.py, so only results are stored.
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
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from tests.reference.mllama_inputs import (
    ADAPTED,
    HERE,
    IMAGE,
    INPUTS,
    PROCESSOR,
    SEED,
    SIZES,
    TINY,
    images,
    picture,
    tokens,
    weights,
)
from tests.reference.peers import adapted_logits


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    settings = {key: value for key, value in TINY.items() if key not in ("model_type", "architectures")}
    config = transformers.MllamaConfig(**settings)
    config._attn_implementation = "eager"
    model = transformers.MllamaForConditionalGeneration(config).float().eval()
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    model.load_state_dict(weights(shapes), strict=False)
    results = {}
    for name in INPUTS:
        given = images(name) or {}
        if given:
            given["cross_attention_mask"] = cross_mask(name)
        results[name] = model(input_ids=tokens(name), **given).logits.contiguous()
        print(f"{name:16s} largest logit {results[name].abs().max():.3f}")
    results["tower"] = tower(model)
    processor = transformers.MllamaImageProcessor(**PROCESSOR)
    for name, size in SIZES.items():
        for key, value in processor([picture(size)], return_tensors="pt").items():
            if key != "num_tiles":
                results[f"processor.{name}.{key}"] = (
                    value[..., ::3, ::3].contiguous() if key == "pixel_values" else value
                )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            stored = sorted(file.keys())
    given = {"input_ids": tokens("rows"), **images("rows"), "cross_attention_mask": cross_mask("rows")}
    logits, adapter = adapted_logits(model, ADAPTED, SEED, **given)
    save_file({**results, "adapter": logits}, HERE / "mllama.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    record = {"versions": versions, "shapes": shapes, "stored": stored, "adapter": adapter}
    (HERE / "mllama.json").write_text(json.dumps(record, indent=1) + "\n")


def cross_mask(name: str) -> torch.Tensor:
    """As transformers' own processor makes it of the tokens and the numbers of tiles."""
    ids = tokens(name)
    sparse = [get_cross_attention_token_mask(row, IMAGE) for row in ids.tolist()]
    tiles = [[count for _, count in of_row] for _, of_row in INPUTS[name]]
    return torch.from_numpy(convert_sparse_cross_attention_mask_to_dense(sparse, tiles, 4, ids.shape[1]))


def tower(model) -> torch.Tensor:
    given = images("several_tiles")
    return model.model.vision_model(**given).last_hidden_state.contiguous()


if __name__ == "__main__":
    main()

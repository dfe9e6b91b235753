"""Writes bert.json and bert.safetensors: the states of transformers' BertModel.

    python -m tests.reference.make_bert        in an environment with torch and transformers

Weights are rebuilt from names and seeds (weights.py), inputs by bert_inputs.py, so only results are stored.
"""

from __future__ import annotations

import json

import torch
import transformers
from safetensors.torch import save_file

from tests.reference.bert_inputs import HERE, INPUTS, TINY, inputs, weights


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    config = transformers.BertConfig(**{key: value for key, value in TINY.items() if key != "model_type"})
    config._attn_implementation = "eager"
    model = transformers.BertModel(config).float().eval()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    model.load_state_dict(weights(shapes), strict=False)
    results = {}
    for name in INPUTS:
        tokens, mask = inputs(name)
        states = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        results[name] = (states * mask[..., None]).contiguous()  # of padding nothing is compared
        print(f"{name:10s} largest state {states.abs().max():.3f}")
    save_file(results, HERE / "bert.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    (HERE / "bert.json").write_text(json.dumps({"versions": versions, "shapes": shapes}, indent=1) + "\n")


if __name__ == "__main__":
    main()

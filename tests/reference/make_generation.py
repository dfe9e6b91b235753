"""Writes generation.json: transformers' greedy continuations under a repetition penalty, and penalised logits.

    python tests/reference/make_generation.py        in an environment with torch and transformers

The models and their weights are those of make_models.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from make_models import CONFIGS, LENGTH, SEED, build, tokens
from transformers import RepetitionPenaltyLogitsProcessor
from weights import draw

HERE = Path(__file__).parent
PENALTIES = (1.1, 1.8, 0.7)
NEW = 16


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    prompt = tokens()[:1, : LENGTH // 2]
    greedy: dict[str, dict[str, list[int]]] = {}
    for name in ("llama3", "qwen2_untied"):
        model = build(CONFIGS[name])
        model.generation_config.eos_token_id = None
        greedy[name] = {}
        for penalty in PENALTIES:
            options = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0}
            ids = model.generate(prompt, repetition_penalty=penalty, **options)
            greedy[name][str(penalty)] = ids[0, -NEW:].tolist()
            print(name, penalty, greedy[name][str(penalty)])
    logits, seen = draw("penalised logits", (2, 9), 0, std=2.0), torch.tensor([[3, 3, 5], [0, 8, 1]])
    penalised = {str(p): RepetitionPenaltyLogitsProcessor(p)(seen, logits.clone()).tolist() for p in PENALTIES}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = {"versions": versions, "seed": SEED, "greedy": greedy, "seen": seen.tolist(), "penalised": penalised}
    (HERE / "generation.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

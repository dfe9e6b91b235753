"""Writes trl.json and trl.safetensors: losses, metrics and adapter gradients that TRL computes for four pairs.

    python tests/reference/make_trl.py        in an environment with torch, transformers, trl, peft and datasets

The numbers come out of TRL's own trainers from end to end: their tokenising, their collator, their ``compute_loss``.
Only the tokenizer is ours (word ``<i>`` is token i), and each batch is checked to hold exactly the pairs below.

trl.json        versions, the model's config, seeds, the pairs, and per case: trainer, options, loss, metrics
trl.safetensors per case and LoRA factor, ``case/layer.lora_A.weight``: the gradient of the loss

What TRL 1.16 does that a reader of the papers would not expect:
* ORPO's NLL runs over prompt + chosen answer, all tokens but the first, as one mean over the whole batch (not a mean
  of means), padding known by the attention mask. The odds ratio uses per-token means over the answer alone. Both are
  float32, and log(1 - p) has no guard at p = 1.
* CPO's NLL runs over the chosen answer only. Its loss type ``simpo`` keeps adding it unless cpo_alpha is 0.
* DPO's ``sigmoid`` ignores ``label_smoothing`` without a word: only ``robust`` and ``exo_pair`` (and ``aot``) read it.
  The conservative form (1-e) * -log s(m) + e * -log s(-m) survives in ``aot``, which sorts the margins of the batch;
  for a single pair nothing is sorted, so it is computed a pair at a time here and averaged.
* DPO's ``ipo`` divides the log ratios by the answers' lengths in the loss, but its reward metrics are sums.
* ORPO's tokenising puts a BOS before the prompt and an EOS after the answers unless they are there; DPO's adds the
  EOS only. The prompts here start with the BOS and the answers end with the EOS, so all trainers see the same ids.
* Token 0 is the padding and also occurs in the texts.
* A peft_config makes the disabled adapter DPO's reference. A PeftModel that has an adapter already gets a frozen copy
  of it, ``ref``, as the reference (case ``dpo_continued``).
"""

from __future__ import annotations

import json
import os
import tempfile

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset, disable_progress_bars
from peers import HERE, WEIGHTS_SEED, adapter_parameters, lora_config, set_adapter, tiny_llama, versions
from peft import get_peft_model
from safetensors.torch import save_file
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from weights import TINY_LLAMA, reference_adapter
from word_tokenizer import EOS, as_text, word_tokenizer

POLICY_SEED, START_SEED = 11, 12
RANK, ALPHA = 4, 8
SIDES = ("chosen", "rejected")
PAIRS = [
    {"prompt": [1, 17, 90, 4, 0, 33, 61, 8], "chosen": [45, 12, 99, 7, EOS], "rejected": [45, 13, 0, 80, 21, 5, EOS]},
    {"prompt": [1, 70, 71, 72], "chosen": [100, 101, 102, 103, 104, 105, 106, EOS], "rejected": [9, EOS]},
    {"prompt": [1, 120, 3, 3, 3, 54, 27, 88, 19, 64, 31, 110], "chosen": [EOS], "rejected": [57, 58, EOS]},
    {"prompt": [1, 14], "chosen": [127, 0, 126, EOS], "rejected": [127, 0, 125, EOS]},
]
TRAINERS = {"orpo": (ORPOTrainer, ORPOConfig), "dpo": (DPOTrainer, DPOConfig), "cpo": (CPOTrainer, CPOConfig)}
CASES = {
    "orpo": ("orpo", {"beta": 0.1}),
    "orpo_beta_1": ("orpo", {"beta": 1.0}),
    "dpo": ("dpo", {"beta": 0.1, "loss_type": "sigmoid"}),
    "dpo_smoothed": ("dpo", {"beta": 0.1, "loss_type": "aot", "label_smoothing": 0.1}),
    "dpo_ipo": ("dpo", {"beta": 0.1, "loss_type": "ipo"}),
    "dpo_hinge": ("dpo", {"beta": 0.1, "loss_type": "hinge"}),
    "dpo_continued": ("dpo", {"beta": 0.1, "loss_type": "sigmoid"}),
    "cpo": ("cpo", {"beta": 0.1, "loss_type": "sigmoid", "cpo_alpha": 1.0}),
    "simpo": ("cpo", {"beta": 2.0, "loss_type": "simpo", "simpo_gamma": 0.5, "cpo_alpha": 0.0}),
}


def build_trainer(case: str, folder: str):
    """The case's trainer over PAIRS, its policy being the tiny Llama under the adapter of POLICY_SEED."""
    trainer_class, config_class = TRAINERS[CASES[case][0]]
    arguments = config_class(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        **CASES[case][1],
    )
    model, adapter = tiny_llama(TINY_LLAMA), lora_config(RANK, ALPHA)
    if case == "dpo_continued":
        model, adapter = get_peft_model(model, adapter), None
        set_adapter(model, reference_adapter(TINY_LLAMA, START_SEED, RANK))
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(as_text(PAIRS)),
        processing_class=word_tokenizer(TINY_LLAMA["vocab_size"]),
        peft_config=adapter,
    )
    set_adapter(trainer.model, reference_adapter(TINY_LLAMA, POLICY_SEED, RANK))
    return trainer


def check_batch(batch: dict[str, torch.Tensor], pairs: list[dict]) -> None:
    """Raises ValueError unless the collated rows are the pairs' ids and nothing else."""
    if "chosen_input_ids" in batch:
        rows = [(batch[f"{s}_input_ids"][i], batch[f"{s}_attention_mask"][i]) for s in SIDES for i in range(len(pairs))]
    else:
        rows = list(zip(batch["input_ids"], batch["attention_mask"], strict=True))
    expected = [pair["prompt"] + pair[side] for side in SIDES for pair in pairs]
    if [ids[mask.bool()].tolist() for ids, mask in rows] != expected:
        raise ValueError("the trainer's batch is not the pairs")


def collect_metrics(trainer) -> dict[str, float]:
    """The trainer's own metrics since the last call, averaged over its calls as its log does."""
    stored = trainer._metrics if hasattr(trainer, "_metrics") else trainer._stored_metrics
    prefixes = ("rewards/", "logps/", "nll_loss", "log_odds")
    metrics = {k: sum(v) / len(v) for k, v in stored["train"].items() if k.startswith(prefixes)}
    stored["train"].clear()
    return {name: float(value) for name, value in metrics.items()}


def run_case(case: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Loss, metrics and adapter gradients of one case; ``aot`` a pair at a time (see above), else in one batch."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(case, folder)
    trainer.model.train()
    name, options = CASES[case]
    size = 1 if options.get("loss_type") == "aot" else len(PAIRS)
    loss = 0.0
    for start in range(0, len(PAIRS), size):
        rows = [trainer.train_dataset[i] for i in range(start, start + size)]
        batch = trainer._prepare_inputs(trainer.data_collator(rows))
        check_batch(batch, PAIRS[start : start + size])
        part = trainer.compute_loss(trainer.model, batch) * size / len(PAIRS)
        part.backward()
        loss += float(part.detach())
    gradients = {f"{case}/{n}": p.grad.clone() for n, p in adapter_parameters(trainer.model).items()}
    record = {"trainer": TRAINERS[name][0].__module__ + "." + TRAINERS[name][0].__name__, "options": options}
    return record | {"pairs_at_a_time": size, "loss": loss, "metrics": collect_metrics(trainer)}, gradients


def main() -> None:
    torch.set_num_threads(1)
    disable_progress_bars()
    cases, gradients = {}, {}
    for case in CASES:
        cases[case], found = run_case(case)
        gradients |= found
        print(f"{case:14s} loss {cases[case]['loss']:.7f}")
    record = {
        "versions": versions("torch", "transformers", "trl", "peft", "accelerate", "datasets"),
        "config": TINY_LLAMA,
        "weights_seed": WEIGHTS_SEED,
        "adapter": {"rank": RANK, "alpha": ALPHA, "policy_seed": POLICY_SEED, "start_seed": START_SEED},
        "pairs": PAIRS,
        "cases": cases,
    }
    text = json.dumps(record, indent=1)
    (HERE / "trl.json").write_text(text + "\n")
    save_file(gradients, HERE / "trl.safetensors")
    print(json.dumps(record["versions"]))


if __name__ == "__main__":
    main()

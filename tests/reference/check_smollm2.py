"""Compares a real pretrained Llama with transformers, TRL and PEFT: logits, losses before and after a step, adapter.

    python -m tests.reference.check_smollm2 DIR     with torch, transformers, trl, peft and requirements.txt

DIR is SmolLM2-135M-Instruct (or another ChatML Llama) as a Hugging Face directory. Both sides compute in float32 in
this process, on the same four pairs, with an adapter whose factors are all non-zero. The ids of TRL's batch are checked
to equal ours. Prints a table; exits with status 1 if a difference exceeds its limit.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from mint.data.batch import EncodedPair, collate
from mint.data.chat import load_tokenizer
from mint.data.encode import encode_pairs
from mint.data.preferences import Preference
from mint.data.spans import Answer
from mint.losses import load_loss
from mint.models import load_language_model
from mint.models.lora import add_lora, lora_layers, save_adapter
from mint.objective import preference_loss
from tests.reference.peers import lora_config, set_adapter
from tests.reference.weights import draw

RANK, ALPHA, SEED, LR, BETA = 8, 16, 83, 1e-3, 0.1
LIMITS = {"logits": 2e-4, "loss": 1e-4, "adapter": 2e-4}  # logits are of the order of 30
SYSTEM = "You are a genetic counselor. Your task is to identify potential rare diseases."
NOTES = (
    ("A boy of 4 years with seizures, ataxia and frequent laughter.", "Angelman syndrome", "Marfan syndrome"),
    ("A girl with long fingers, ectopia lentis and a dilated aorta.", "Marfan syndrome", "Rett syndrome"),
    ("A newborn with hypotonia, poor feeding and small hands.", "Prader-Willi syndrome", "Noonan syndrome 1"),
    ("A woman of 31 years; short stature, webbed neck.", "Turner syndrome", "Cornelia de Lange syndrome 1"),
)


TRAINERS = {"orpo": (ORPOTrainer, ORPOConfig), "dpo": (DPOTrainer, DPOConfig)}


def preferences() -> list[Preference]:
    pairs = []
    for number, (note, right, wrong) in enumerate(NOTES, 1):
        prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{note} Name the disease."}]
        chosen = f"POTENTIAL_DISEASES:\n1. '{right}'"
        rejected = f"POTENTIAL_DISEASES:\n1. '{wrong}'"
        pairs.append(Preference(f"case-{number}", number, prompt, Answer(chosen), Answer(rejected)))
    return pairs


def factors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Non-zero factors for the adapter of ``model``, which are put on it."""
    factors = {}
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            for part in ("lora_A", "lora_B"):
                weight = getattr(layer, part).weight
                factors[f"{name}.{part}.weight"] = draw(f"{name}.{part}", tuple(weight.shape), SEED, std=0.01)
                weight.copy_(factors[f"{name}.{part}.weight"])
    return factors


def our_losses(folder: str, loss_name: str, pairs: list[EncodedPair]) -> tuple[float, float]:
    """(loss, loss after one step of AdamW)."""
    model = add_lora(load_language_model(folder), RANK, ALPHA)
    factors_of(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    batch = collate(pairs, prompt_targets=loss_name == "orpo")  # the NLL of TRL's ORPO covers the prompt too
    loss = load_loss(loss_name, {"beta": BETA})
    return two_losses(lambda: preference_loss(model, batch, loss).loss, optimizer)


def their_losses(folder: str, loss_name: str, pairs: list[EncodedPair], factors: dict) -> tuple[float, float]:
    """The same with TRL's trainer, its collator and its ``compute_loss``, on the ids of ``pairs``."""
    trainer_class, config_class = TRAINERS[loss_name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.decode
    rows = [{"prompt": text(p.prompt), "chosen": text(p.chosen.text), "rejected": text(p.rejected.text)} for p in pairs]
    with tempfile.TemporaryDirectory() as place:
        trainer = trainer_class(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            args=config_class(output_dir=place, beta=BETA, use_cpu=True, bf16=False, report_to="none"),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora_config(RANK, ALPHA),
        )
    set_adapter(trainer.model, factors)
    trainer.model.train()
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(len(pairs))]))
    check_ids(batch, pairs)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    return two_losses(lambda: trainer.compute_loss(trainer.model, batch), optimizer)


def two_losses(compute, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    first = compute()
    first.backward()
    optimizer.step()
    with torch.no_grad():
        return float(first.detach()), float(compute())


def check_ids(batch: dict[str, torch.Tensor], pairs: list[EncodedPair]) -> None:
    """Raises ValueError unless TRL's rows hold the ids of ``pairs`` and nothing else."""
    sides = ("chosen", "rejected")
    if "chosen_input_ids" in batch:
        rows = [(batch[f"{s}_input_ids"][i], batch[f"{s}_attention_mask"][i]) for s in sides for i in range(len(pairs))]
    else:
        rows = list(zip(batch["input_ids"], batch["attention_mask"], strict=True))
    expected = [pair.prompt + getattr(pair, side) for side in sides for pair in pairs]
    found = [ids[mask.bool()].tolist() for ids, mask in rows]
    for theirs, ours in zip(found, expected, strict=True):
        if theirs != ours:
            raise ValueError(f"TRL's row {theirs} is not {ours}")


@torch.no_grad()
def logits(folder: str, pair: EncodedPair) -> tuple[float, float]:
    """Largest difference of the logits to transformers', and under a saved adapter to PEFT's."""
    tokens = torch.tensor([pair.prompt + pair.chosen])
    ours, theirs = load_language_model(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = (ours(tokens) - theirs(tokens).logits).abs().max().item()
    add_lora(ours, RANK, ALPHA)
    factors_of(ours)
    with tempfile.TemporaryDirectory() as place:
        save_adapter(ours, Path(place) / "adapter")
        adapted = PeftModel.from_pretrained(theirs, Path(place) / "adapter").eval()
        return plain, (ours(tokens) - adapted(tokens).logits).abs().max().item()


def main(folder: str) -> int:
    disable_progress_bars()
    tokenizer = load_tokenizer(folder)
    pairs, _ = encode_pairs(preferences(), tokenizer, 2048)
    reference = AutoTokenizer.from_pretrained(folder)
    for preference, pair in zip(preferences(), pairs, strict=True):
        rendered = reference.apply_chat_template(preference.prompt, add_generation_prompt=True, tokenize=False)
        if reference(rendered, add_special_tokens=False).input_ids != pair.prompt:
            raise ValueError(f"{preference.id}: the prompt's ids are not those of transformers")
    rows = dict(zip(("logits", "adapter"), logits(folder, pairs[0]), strict=True))
    print(f"logits, plain {rows['logits']:.1e}, under PEFT's adapter {rows['adapter']:.1e}")
    wrong = [name for name, difference in rows.items() if difference > LIMITS[name]]
    for name in TRAINERS:
        model = add_lora(load_language_model(folder), RANK, ALPHA)
        ours, theirs = our_losses(folder, name, pairs), their_losses(folder, name, pairs, factors_of(model))
        for what, a, b in zip(("first loss", "after a step"), ours, theirs, strict=True):
            print(f"{name:5s} {what:13s} ours {a:.6f}, TRL {b:.6f}, difference {abs(a - b):.1e}")
            wrong += [f"{name} {what}"] if abs(a - b) > LIMITS["loss"] else []
    print(f"beyond the limits: {', '.join(wrong)}" if wrong else "all within the limits")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

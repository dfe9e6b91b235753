"""What ``case_reports`` measures beside answers: held-out pairs, drift on general prompts, and curves of training."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mint.cli import choose_device
from mint.data.chat import load_tokenizer
from mint.data.encode import encode_pairs
from mint.data.preferences import read_preferences, write_jsonl
from mint.demo.arms import Arm
from mint.files import file_aside, read_json, write_aside
from mint.losses import AnswerStats, Loss, LossOutput, Needs, load_loss
from mint.models import load_language_model
from mint.models.generate import generate
from mint.models.lora import load_adapter
from mint.training.forward import Forward
from mint.training.monitor import evaluate
from mint.training.setup import choose_precision

AUTHORS = {"at the start": -1.89, "at its highest": -0.61, "at the end": -12.8}  # rejected log-probability per token
BATCH, ANSWER = 8, 48  # pairs at a time; tokens of an answer to a general prompt
GENERAL = (
    "What is the capital of Australia?",
    "Explain in two sentences why the sky is blue.",
    "Write a haiku about autumn.",
    "How do I boil an egg so that the yolk stays soft?",
    "Translate into French: Good morning, how are you?",
    "What is 17 times 6?",
    "Give three reasons to learn a musical instrument.",
    "Write a Python function that reverses a string.",
    "Summarise the plot of Romeo and Juliet in one sentence.",
    "What is the difference between weather and climate?",
    "Name four planets of the solar system.",
    "How does a bicycle stay upright?",
    "Write a short, polite e-mail that declines an invitation.",
    "What are the primary colours?",
    "Why do leaves change colour in autumn?",
    "Suggest a name for a small bakery.",
    "What does a heart do?",
    "How can I fall asleep more easily?",
    "Describe a cat to someone who has never seen one.",
    "What is inflation in economics?",
    "List the ingredients of a simple tomato soup.",
    "Who wrote On the Origin of Species?",
    "How many minutes are there in a day?",
    "What should I pack for a day of hiking?",
)


def measures_file(arm: Arm) -> Path:
    return arm.folder / "measures.json"


def measure(arm: Arm, held_out: Path, general: Path) -> dict[str, float]:
    """Of the held-out pairs the log odds of chosen to rejected, and log-probabilities per token; the drift.

    drift: KL(base || model) in nats per token, over the base's own answers to general prompts, in ``general``.
    """
    model_dir, adapter = arm.trained
    device, _ = choose_device(arm.hardware.device, "auto")
    choose_precision(False, device)
    model = load_language_model(model_dir, device=device)
    tokenizer = load_tokenizer(model.source_dir)
    if adapter is not None:
        load_adapter(model, adapter)

    def means(file: Path, loss: Loss) -> dict[str, float]:
        records = read_preferences(file, require_rejected=loss.needs.rejected)
        pairs = encode_pairs(records, tokenizer, model.config.max_position_embeddings)[0]
        return evaluate(Forward(model, loss, BATCH), pairs)

    found = means(held_out, load_loss("orpo", {}))
    wanted = {"log odds": "log_odds_chosen", "chosen": "logps/chosen", "rejected": "logps/rejected"}
    needs = Needs(rejected=False, reference=True, kl_forward=True, kl_over="all")
    drift = means(general, Loss("drift", mean_kl, needs, {}))["eval/loss"] if adapter else 0.0
    return {name: found[f"eval/{key}"] for name, key in wanted.items()} | {"drift": drift}


def mean_kl(chosen: AnswerStats) -> LossOutput:
    assert chosen.kl_forward is not None
    return LossOutput(chosen.total(chosen.kl_forward).sum() / chosen.tokens)


def answer_general(model_dir: Path, file: Path) -> None:
    """Writes the model's greedy answers to general prompts."""
    asked = [[{"role": "user", "content": text}] for text in GENERAL]
    answers = generate(load_language_model(str(model_dir)), load_tokenizer(str(model_dir)), asked, ANSWER)
    records = zip(GENERAL, asked, answers, strict=True)
    write_jsonl(file, [{"id": name, "prompt": prompt, "chosen": answer} for name, prompt, answer in records])


def write_measures(file: Path, arms: Mapping[str, Sequence[Arm]]) -> str:
    """``file`` (.csv), a line for each measure of an arm; returns the means over the seeds, with their range."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("row", "seed", "measure", "value"))
    lines = ["| nats | log odds | chosen | rejected | drift |", "|---|---|---|---|---|"]
    for row, some in arms.items():
        found = [read_json(measures_file(arm)) for arm in some]
        writer.writerows((row, seed, name, value) for seed, one in enumerate(found) for name, value in one.items())
        cells = [[one[name] for one in found] for name in found[0]]
        lines.append(
            f"| {row} | " + " | ".join(f"{np.mean(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in cells) + " |"
        )
    write_aside(file, text.getvalue())
    return "\n".join(lines)


def draw_log_probabilities(file: Path, arms: Sequence[Arm]) -> None:
    """``file`` (.png): the log-probability per token of held-out chosen and rejected answers, over training."""
    figure = Figure(figsize=(8, 5))
    axes = figure.add_subplot()
    for number, arm in enumerate(arms):
        lines = (arm.folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if "eval/logps/rejected" in row]
        for side, colour in (("chosen", "tab:blue"), ("rejected", "tab:red")):
            values = [row[f"eval/logps/{side}"] for row in rows]
            axes.plot([row["step"] for row in rows], values, color=colour, label=None if number else side)
    for when, value in AUTHORS.items():
        axes.axhline(value, color="grey", linestyle=":", linewidth=1)
        where: dict = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8}
        axes.annotate(f"authors, rejected,\n{when}: {value}", (1.01, value), **where)
    axes.set(xlabel="step", ylabel="log-probability per token of held-out answers")
    axes.legend()
    with file_aside(file) as aside:
        figure.savefig(aside, dpi=150, bbox_inches="tight")

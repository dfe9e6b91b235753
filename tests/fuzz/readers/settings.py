"""Settings files and flags, and the files of evaluations."""

from __future__ import annotations

import random
from pathlib import Path

import evaluate
import generate_prefs
from mint.config import TrainConfig
from mint.data.prompts import read_prompt
from mint.errors import InputError
from mint.evaluation.predictions import read_rankings
from mint.evaluation.report_labels import FINDINGS, read_labels
from mint.flags import parse
from mint.tasks.compare_page import save_comparison
from tests.fuzz.damage import damage_json, damage_rows, damage_text, dump
from tests.fuzz.readers.inputs import PACKET, packed, write, write_pictures
from tests.fuzz.readers.registry import reader

TOML = "lr = 1e-4\nsteps = 10\nseed = 1\nfull = true\nout = 'runs/x'\n[loss]\nname = 'dpo'\nbeta = 0.1\n"
VALUES = (
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-1",
    "0",
    "1",
    str(2**70),
    "9" * 5000,
    "",
    "x",
    "true",
    "1.5",
    "x" * 5000,
    "[]",
    "\u202e",
)
FLAGS = (
    "--steps",
    "--lr",
    "--seed",
    "--batch-size",
    "--lora-rank",
    "--lora-alpha",
    "--lora-dropout",
    "--epochs",
    "--keep",
)
FLAGS += (
    "--max-length",
    "--warmup",
    "--adam-beta2",
    "--beta",
    "--grad-accum",
    "--eval-every",
    "--loss-arg",
    "--loss",
    "--out",
)


@reader
def settings_files(rng: random.Random, folder: Path):
    text = damage_text(rng, TOML, (*VALUES[:8], "[", "]", "=", "\n", "'", '"', "[" * 3000, "inf", "{a=1}", "#", "\0"))
    path = write(folder, "run.toml", text.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.2:
        return read_prompt(path, "D:", ("note",))
    return parse(TrainConfig, ["--config", str(path)], "")


@reader
def flags(rng: random.Random, folder: Path):
    command = [
        part for flag in rng.sample(FLAGS, rng.randint(1, 3)) for part in (flag, rng.choice(VALUES).replace("\0", ""))
    ]
    if rng.random() < 0.5:
        return parse(TrainConfig, command, "")
    numbers = (
        "--batch-size",
        "--seed",
        "--limit",
        "--max-new-tokens",
        "--temperature",
        "--sample-top-p",
        "--top-k",
        "--out",
    )
    given = [part for flag in rng.sample(numbers, 2) for part in (flag, rng.choice(VALUES))]
    file = write(folder, "cases.json", dump(PACKET))
    if rng.random() < 0.3:
        status = generate_prefs.main(
            ["disease", "--cases", str(file), "--out", rng.choice(VALUES) or "x", "--bottom-q", rng.choice(VALUES)]
        )
    else:
        status = evaluate.main(
            ["disease", "--model", rng.choice(VALUES) or "m", "--cases", f"{folder}/none.json", *given]
        )
    assert status == 2
    raise InputError("refused")


LISTED = [{"id": "a", "listed": ["Marfan", "Noonan"], "scores": [0.9, 0.1]}, {"id": "b", "answer": "D:\n1. Marfan"}]
GRAPH = {"entities": {"1": {"tokens": "effusion", "label": "OBS", "relations": [["located_at", "1"]]}}}
LABELS = [
    {
        "id": "a",
        "chexbert": {"prediction": [1] * len(FINDINGS), "reference": [0] * len(FINDINGS)},
        "radgraph": {"prediction": GRAPH, "reference": GRAPH},
    }
]


@reader
def predictions(rng: random.Random, folder: Path):
    if rng.random() < 0.5:
        return read_rankings(write(folder, "p.jsonl", damage_rows(rng, LISTED)), ["a", "b"])
    return read_labels(packed(rng, folder, "l.jsonl", damage_rows(rng, LABELS)), ["a"])


TISSUE_RECORD = {
    "id": "t",
    "tissue": "Lung",
    "images": ["a.png"],
    "answer": "1. Lung",
    "listed": ["Lung", "Skin"],
    "teacher": ["Skin"],
}
TISSUE_RECORD |= {"top_1": 1, "top_5": True, "known": 1.0, "subject": "s", "scores": [0.6, 0.4], "disease_count": 4}
VQA_RECORD = {
    "id": "q",
    "question": "Is it?",
    "reference": "no",
    "kind": "closed",
    "answer": "no",
    "images": ["a.png"],
    "exact": 1.0,
    "recall": 0.5,
    "closed": 1.0,
    "open": None,
}
METRICS = {
    "name": "system",
    "settings": {"cases": "x"},
    "scores": {},
    "rows": {"teacher": {"top_1": 0.5}, "system": {"top_1": 1.0}},
}


@reader
def comparisons(rng: random.Random, folder: Path):
    write_pictures(folder)
    record = rng.choice((TISSUE_RECORD, VQA_RECORD))
    good = rng.random()
    write(folder, "metrics.json", damage_json(rng, METRICS) if good < 0.3 else dump(METRICS))
    rows = [{**record, "id": str(i)} for i in range(3)]
    write(folder, "predictions.jsonl", damage_rows(rng, rows) if good > 0.2 else b"\n".join(map(dump, rows)))
    return save_comparison([folder], folder / "out", case_pages=3)

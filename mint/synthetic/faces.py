"""Pretraining of a small ViLT on synthetic faces, as the initial weights of a teacher trained from scratch.

It learns to classify the findings of portraits, independently of diseases. A few thousand patients are enough to learn
the text from scratch, but not the images.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from mint.data.cases import Case, Term
from mint.errors import InputError
from mint.progress import Progress
from mint.synthetic.face import read_findings
from mint.synthetic.portrait import draw_portrait
from mint.teachers.vilt_training import FusionSettings, fit_teacher, write_blank

DROP, ADD = 0.15, 0.3  # probability that a face lacks a finding of its case, and that it has an unrelated one
SETTINGS = FusionSettings(
    epochs=8, batch_size=32, lr=1e-3, warmup=0.05, weight_decay=0.05, adam_beta2=0.98, held_out=0.02, patience=8
)


def draw_faces(count: int, folder: Path, sets: Sequence[Sequence[str]], seed: int = 0) -> list[Case]:
    """``count`` synthetic faces, each with the findings (HPO ids) of one of ``sets``, varied at random."""
    folder.mkdir(parents=True, exist_ok=True)
    every = sorted({term for findings in sets for term in findings})
    cases = []
    for number in Progress(range(count), desc="drawing faces", unit="face"):
        rng = random.Random(f"face {seed} {number}")
        shown = {term for term in rng.choice(sets) if rng.random() >= DROP}
        shown |= {rng.choice(every)} if rng.random() < ADD or not shown else set()
        path = folder / f"{number}.png"
        draw_portrait(sorted(shown), f"face {seed} {number}", rng.lognormvariate(1.8, 0.9)).save(path)
        cases.append(Case(f"face-{number}", "", facial=tuple(Term(term, term) for term in sorted(shown)), image=path))
    return cases


def fit_faces(
    cases: Sequence[Case],
    folder: str | Path,
    count: int,
    epochs: int = SETTINGS.epochs,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> None:
    """Writes to ``folder`` a ViLT trained on ``count`` synthetic faces, with a tokenizer of the cases' texts.

    Raises InputError for fewer than 100 faces, or if no case has a facial finding that can be drawn.
    """
    drawable = read_findings()
    sets = [found for case in cases if (found := [term.id for term in case.facial if term.id in drawable])]
    if not sets:
        raise InputError("no case has a facial finding that can be drawn: list the facial findings with --face-terms")
    if count < 100:
        raise InputError(f"there must be at least 100 faces to learn from, not {count}")
    findings = sorted({term for found in sets for term in found})
    with tempfile.TemporaryDirectory() as place:
        faces = draw_faces(count, Path(place) / "faces", sets, seed)
        blank = Path(place) / "blank"
        write_blank(blank, cases, findings, seed)
        fit_teacher(
            faces,
            folder,
            dataclasses.replace(SETTINGS, epochs=epochs, seed=seed),
            base=str(blank),
            device=device,
            diseases=findings,
            title="faces",
            labels_of=lambda case: [term.id for term in case.facial],
        )

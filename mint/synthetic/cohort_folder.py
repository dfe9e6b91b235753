"""The embedded cohort as a folder like any other: portraits, and a table in the form of ``mint.data.gmdb``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mint.data.cases import Case, Term
from mint.errors import InputError
from mint.progress import Progress
from mint.synthetic.cohort import sample_cohort
from mint.synthetic.portrait import draw_portrait
from mint.synthetic.table import write_table

COLUMNS = (
    "image_id filename disease disease_id present_features absent_features facial_features age_year sex patient_id split"
).split()


def draw_cohort(patients: int, seed: int, folder: str | Path, split: str = "") -> list[Case]:
    """``sample_cohort`` with a portrait of every patient in ``folder``; ids carry the seed, so cohorts can be joined."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for case in Progress(sample_cohort(patients, seed), desc="portraits", unit="case", leave=False):
        name = f"{seed}-{case.id}"
        path = folder / f"{name}.png"
        draw_portrait([term.id for term in case.facial], name, case.age_years, case.sex).save(path)
        cases.append(dataclasses.replace(case, id=name, subject=name, image=path, split=split))
    return cases


def write_cohort(folder: str | Path, train: int, test: int, seed: int = 0) -> None:
    """Writes ``cohort.csv`` and ``images/``: ``train`` and ``test`` patients, marked so in the column ``split``.

    Raises InputError for a folder that holds a table already or cannot be written.
    """
    folder = Path(folder)
    if (folder / "cohort.csv").exists():
        raise InputError(f"{folder} holds a cohort already; give another folder")
    try:
        cases = draw_cohort(train, 2 * seed, folder / "images", "train")
        cases += draw_cohort(test, 2 * seed + 1, folder / "images", "test")
        write_table(folder / "cohort.csv", COLUMNS, map(_row, cases))
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from None


def _row(case: Case) -> list[str]:
    findings = [_cell(terms) for terms in (case.observed, case.excluded, case.facial)]
    age = "" if case.age_years is None else f"{case.age_years:.4f}"
    about = [age, case.sex or "", case.subject, case.split]
    return [case.id, f"images/{case.image.name}", case.disease, case.disease_id, *findings, *about]


def _cell(terms: Sequence[Term]) -> str:
    return "; ".join(f"{term.id} {term.label}" for term in terms)

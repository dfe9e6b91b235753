"""The synthetic cohort as a folder: portraits, and a table in the format that ``mint.data.gmdb`` reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mint.data.cases import Case, Term
from mint.files import file_aside
from mint.progress import Progress
from mint.synthetic.cohort import sample_cohort
from mint.synthetic.package_tables import new_set, write_table
from mint.synthetic.portrait import draw_portrait

COLUMNS = ["image_id", "filename", "disease", "disease_id", "present_features", "absent_features", "facial_features"]
COLUMNS += ["age_year", "sex", "patient_id", "split"]


def place_cohort(patients: int, seed: int, folder: str | Path, split: str = "") -> list[Case]:
    """``sample_cohort`` with ids that contain the seed, and a place in ``folder`` for each portrait, not drawn yet."""
    cases = []
    for case in sample_cohort(patients, seed):
        name = f"{seed}-{case.id}"
        path = Path(folder) / f"{name}.png"
        cases.append(dataclasses.replace(case, id=name, subject=name, image=path, split=split))
    return cases


def draw_portraits(cases: Sequence[Case]) -> list[Case]:
    """Draws the portraits of cases with a place for one, unless they are there; returns the cases."""
    missing = [case for case in cases if case.image is not None and not case.image.is_file()]
    for case in Progress(missing, desc="portraits", unit="case", leave=False):
        assert case.image is not None
        with file_aside(case.image) as aside:
            draw_portrait([term.id for term in case.facial], case.id, case.age_years, case.sex).save(aside)
    return list(cases)


def draw_cohort(patients: int, seed: int, folder: str | Path, split: str = "") -> list[Case]:
    """:func:`place_cohort` with its portraits."""
    return draw_portraits(place_cohort(patients, seed, folder, split))


def write_cohort(folder: str | Path, train: int, test: int, seed: int = 0) -> None:
    """Writes ``cohort.csv`` and ``images/`` with ``train`` and ``test`` patients; the column ``split`` tells which.

    Raises InputError if the folder holds a table already or cannot be written.
    """
    with new_set(folder, "cohort.csv", "a cohort") as path:
        cases = draw_cohort(train, 2 * seed, path / "images", "train")
        cases += draw_cohort(test, 2 * seed + 1, path / "images", "test")
        write_table(path / "cohort.csv", COLUMNS, map(_row, cases))


def _row(case: Case) -> list[str]:
    findings = [_cell(terms) for terms in (case.observed, case.excluded, case.facial)]
    age = "" if case.age_years is None else f"{case.age_years:.4f}"
    about = [age, case.sex or "", case.subject, case.split]
    image = f"images/{case.image.name}" if case.image else ""
    return [case.id, image, case.disease, case.disease_id, *findings, *about]


def _cell(terms: Sequence[Term]) -> str:
    return "; ".join(f"{term.id} {term.label}" for term in terms)

"""Portraits with findings: a table in the form of the GestaltMatcher Database, and the images that it names.

    image_id, filename, disease, texts and/or present_features
    [, absent_features, age | age_year, age_month, sex, patient_id, split, disease_id]

The table is .csv, or .tsv with tabs, in UTF-8; ``COLUMNS`` lists the other names a column may have. ``texts`` is
GestaltMML's one line ("Sex male Age 3 years 6 months Ethnicity European Ptosis ...") or a note in any form. Findings
are HPO ids, labels or both, separated by ";" or "|". Every bad row is reported, all at once; what is left out of a good
one, and columns that are not used, are counted and named in the report.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from mint.data.cases import Case, Term
from mint.data.splits import SPLITS
from mint.errors import InputError

COLUMNS = {  # what a column holds -> the names it may have, the most telling first
    "id": ("image_id",),
    "filename": ("filename",),
    "disease": ("disease", "internal_syndrome_name", "disorder_names", "label"),
    "disease_id": ("disease_id", "omim_id"),
    "text": ("texts", "text"),
    "present": ("present_features", "hpo_terms", "hpo"),
    "absent": ("absent_features",),
    "age": ("age", "age_years", "age_year", "years"),
    "months": ("age_months", "age_month", "months"),
    "sex": ("sex", "gender"),
    "subject": ("patient_id", "subject_id", "patient", "subject"),
    "split": ("split",),
}
EMPTY = {"", "-", "*", "nan", "na", "n/a", "<na>", "none", "null", "unknown"}  # "*" is GestaltMML's missing text
SEXES = {"male": "male", "m": "male", "female": "female", "f": "female"}
TEXTS = re.compile(  # an ethnicity is a word, but for "American - Native", "East Asian", "Mixed ancestry" and the like
    r"Sex (?P<sex>\S+) Age (?P<years>\S+) years (?P<months>\S+) months Ethnicity (?P<ethnicity>\S+(?: - \S+)?"
    r"(?: (?:African|American|Asian|Eastern|European|Hispanic|Others?|ancestry)\b)*)(?: (?P<findings>.*))?",
    re.IGNORECASE,
)
TERM_ID = re.compile(r"\bHP:\d{7}\b", re.IGNORECASE)
SHOWN = 50  # problems listed in full


class Texts(NamedTuple):
    """What GestaltMML's line says. findings: labels that nothing separates."""

    age_years: float | None
    sex: str | None
    ethnicity: str | None
    findings: str


@dataclass
class GmdbReport:
    """How many rows became cases, what was left out of them, and the columns that were not used."""

    read: int = 0
    notes: Counter = field(default_factory=Counter)
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.read} cases"]
        parts += [f"{count} {note}" for note, count in sorted(self.notes.items())]
        parts += [f"columns not used: {', '.join(self.unused)}"] if self.unused else []
        return "; ".join(parts)


class GmdbErrors(InputError):
    """All problems of a table, as ``problems``: one "FILE:LINE: what is wrong" each."""

    def __init__(self, path: Path, problems: list[str]):
        self.problems = problems
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__(f"{path} has {count}:\n  " + "\n  ".join(problems[:SHOWN] + more))


class _Problem(Exception):
    """What is wrong with one row."""


def read_gmdb(
    path: str | Path,
    images: str | Path | None = None,
    missing_images: Literal["error", "skip"] = "error",
    labels: Mapping[str, str] | None = None,
) -> tuple[list[Case], GmdbReport]:
    """The cases of a table, or of the one table in a folder, in the order of its rows, and what was left out.

    images: the folder that file names are relative to; by default the table's own. No image may lie outside it.
    missing_images: "skip" keeps a case whose image is not there, without an image.
    labels: HPO id -> label, for findings given by id alone; without it the id stands for the label.
    Raises GmdbErrors naming every bad row, InputError if the table or the folder cannot be read or holds no case.
    """
    path = _table(Path(path))
    folder = path.parent if images is None else Path(images)
    if not folder.is_dir():
        raise InputError(f"the folder of images {folder} does not exist")
    report = GmdbReport()
    cases: list[Case] = []
    problems: list[str] = []
    lines_by_id: dict[str, int] = {}
    for line, row in _rows(path, report, problems):
        try:
            case = _case(row, labels or {}, report)
            if case.id in lines_by_id:
                raise _Problem(f"image_id {case.id!r} is that of line {lines_by_id[case.id]} too")
            lines_by_id[case.id] = line
            cases.append(_with_image(case, row.get("filename", ""), folder, missing_images, report))
        except _Problem as problem:
            problems.append(f"{path}:{line}: {problem}")
    if problems:
        raise GmdbErrors(path, problems)
    if not cases:
        raise InputError(f"{path} holds no cases")
    report.read = len(cases)
    return cases, report


def parse_texts(text: str) -> Texts:
    """The parts of GestaltMML's line; a text in any other form is all findings."""
    line = " ".join(text.split())
    parts = TEXTS.fullmatch(line)
    if parts is None:
        return Texts(None, None, None, line)
    ethnicity = parts["ethnicity"] if parts["ethnicity"].lower() not in EMPTY else None
    years, months = ("" if parts[name].lower() in EMPTY else parts[name] for name in ("years", "months"))
    return Texts(_age(years, months), SEXES.get(parts["sex"].lower()), ethnicity, parts["findings"] or "")

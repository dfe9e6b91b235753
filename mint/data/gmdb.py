"""Portraits with findings: a table in the form of the GestaltMatcher Database, and the images that it names.

    image_id, filename, disease, texts and/or present_features
    [, absent_features, facial_features, age | age_year, age_month, sex, patient_id, split, disease_id]

The table is .csv, or .tsv with tabs, in UTF-8; ``COLUMNS`` lists the other names a column may have. ``texts`` is
GestaltMML's one line ("Sex male Age 3 years 6 months Ethnicity European Ptosis ...") or a note in any form. Findings
are HPO ids, labels or both, separated by ";" or "|"; facial ones are what the image shows and the text leaves out.
Every bad row is reported, all at once; what is left out of a good one, and columns that are not used, are counted and
named in the report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from mint.data.cases import Case, Term
from mint.data.records import ReadReport, parse_rows
from mint.data.splits import SPLITS
from mint.data.tables import SUFFIXES, read_table
from mint.errors import InputError

COLUMNS = {  # field -> the names that its column may have, in order of preference
    "id": ("image_id",),
    "filename": ("filename",),
    "disease": ("disease", "internal_syndrome_name", "disorder_names", "label"),
    "disease_id": ("disease_id", "omim_id"),
    "text": ("texts", "text"),
    "present": ("present_features", "hpo_terms", "hpo"),
    "absent": ("absent_features",),
    "facial": ("facial_features",),
    "age": ("age", "age_years", "age_year", "years"),
    "months": ("age_months", "age_month", "months"),
    "sex": ("sex", "gender"),
    "subject": ("patient_id", "subject_id", "patient", "subject"),
    "split": ("split",),
}
NEEDED = (("id",), ("filename",), ("disease",), ("text", "present"))
EMPTY = {"", "-", "*", "nan", "na", "n/a", "<na>", "none", "null", "unknown"}  # "*" is GestaltMML's missing text
SEXES = {"male": "male", "m": "male", "female": "female", "f": "female"}
TEXTS = re.compile(  # an ethnicity is a word, but for "American - Native", "East Asian", "Mixed ancestry" and the like
    r"Sex (?P<sex>\S+) Age (?P<years>\S+) years (?P<months>\S+) months Ethnicity (?P<ethnicity>\S+(?: - \S+)?"
    r"(?: (?:African|American|Asian|Eastern|European|Hispanic|Others?|ancestry)\b)*)(?: (?P<findings>.*))?",
    re.IGNORECASE,
)
TERM_ID = re.compile(r"[(\[]?\b(HP:\d{7})\b[)\]]?", re.IGNORECASE)


class Texts(NamedTuple):
    """The fields of GestaltMML's line. findings: labels without separators."""

    age_years: float | None
    sex: str | None
    ethnicity: str | None
    findings: str


def read_gmdb(
    path: str | Path,
    images: str | Path | None = None,
    missing_images: Literal["error", "skip"] = "error",
    labels: Mapping[str, str] | None = None,
) -> tuple[list[Case], ReadReport]:
    """The cases of a table, or of the one table in a folder, in the order of its rows, and a report.

    images: the folder that file names are relative to; by default the table's own. No image may lie outside it.
    missing_images: "skip" keeps a case whose image is not there, without an image.
    labels: HPO id -> label, for findings given by id alone; without it the id is the label.
    Raises FileProblems naming every bad row, InputError if the table or the folder cannot be read or holds no case.
    """
    path = _table(Path(path))
    folder = path.parent if images is None else Path(images)
    if not folder.is_dir():
        raise InputError(f"the folder of images {folder} does not exist")
    table = read_table(path, COLUMNS, NEEDED)
    used = sum(table.columns.values(), [])
    report = ReadReport(unused=tuple(name for i, name in enumerate(table.header) if name.strip() and i not in used))

    def parse(cells: list[str], line: int) -> Case:
        table.check(cells)
        row = {name: _value(table.header, cells, columns) for name, columns in table.columns.items()}
        return replace(_case(row, labels or {}, report), image=_image(row, folder, missing_images, report))

    cases = parse_rows(path, table.rows, parse)
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


def _table(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_dir():
        return path
    tables = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(tables) != 1:
        found = ", ".join(file.name for file in tables) or "none"
        raise InputError(f"{path} must hold one .csv or .tsv file (found: {found}); or give the file's own path")
    return tables[0]


def _value(header: list[str], cells: list[str], columns: list[int]) -> str:
    """One line of text: the first of the columns that says something."""
    for column in columns:
        value = " ".join(cells[column].split())
        if not value.isprintable():
            raise InputError(f"{header[column]} holds control characters")
        if value.lower() not in EMPTY:
            return value
    return ""


def _case(row: dict[str, str], labels: Mapping[str, str], report: ReadReport) -> Case:
    """The case without its image."""
    if not row["id"]:
        raise InputError("no image_id")
    if not row["disease"]:
        raise InputError("no disease")
    if row["disease"].isdigit():
        raise InputError(f"the disease is a number ({row['disease']}), not a name")
    if row["split"] and row["split"].lower() not in SPLITS:
        raise InputError(f"split {row['split']!r} is not one of {', '.join(SPLITS)}")
    text = parse_texts(row["text"])
    observed, absent, facial = (_terms(row[name], labels, report) for name in ("present", "absent", "facial"))
    excluded = {label: term for label, term in absent.items() if label not in observed}
    age, sex = _age(row["age"], row["months"]), SEXES.get(row["sex"].lower())
    if (row["age"] or row["months"]) and age is None:
        report.notes["ages that cannot be read (left out)"] += 1
    if row["sex"] and sex is None:
        report.notes["sexes other than male and female (left out)"] += 1
    other_age = age is not None and text.age_years is not None and abs(age - text.age_years) > 0.1
    if other_age or len({sex, text.sex} - {None}) > 1:
        report.notes["whose text has another age or sex than the columns (the columns count)"] += 1
    if len(excluded) < len(absent):
        report.notes["findings both present and absent (kept as present)"] += len(absent) - len(excluded)
    if row["text"] and text.findings == row["text"]:
        report.notes['with a text of their own form, not "Sex ... Age ..." (kept)'] += 1
    if not row["text"] and not observed:
        report.notes["without text or findings (kept)"] += 1
    return Case(
        id=row["id"],
        disease=row["disease"],
        disease_id=row["disease_id"],
        age_years=age if age is not None else text.age_years,
        sex=sex or text.sex,
        observed=tuple(observed.values()),
        excluded=tuple(excluded.values()),
        facial=tuple(facial.values()),
        subject=row["subject"],
        split=row["split"].lower(),
        text=row["text"] or None,
    )


def _terms(cell: str, labels: Mapping[str, str], report: ReadReport) -> dict[str, Term]:
    """label -> finding, from "HP:0001250", "Seizure", "HP:0001250 Seizure" or "Seizure (HP:0001250)"."""
    terms: dict[str, Term] = {}
    for part in filter(None, map(str.strip, re.split("[;|]", cell))):
        ids = TERM_ID.findall(part)
        if len(ids) > 1:
            raise InputError(f'findings are separated by ";" or "|", not as in {part[:60]!r}')
        identity = ids[0].upper() if ids else ""
        label = TERM_ID.sub("", part).strip(" :!-") or labels.get(identity, "")
        if label.upper().startswith("HP:"):
            raise InputError(f"{part[:60]!r} is not an HPO id (HP:0000000)")
        if not label:
            report.notes["findings known by id alone (the id stands for the label)"] += 1
        terms.setdefault(label or identity, Term(identity, label or identity))
    return terms


def _age(years: str, months: str) -> float | None:
    """Age in years; None where neither is given, or the sum is no age."""
    try:
        age = float(years or 0) + float(months or 0) / 12
    except ValueError:
        return None
    return age if (years or months) and 0 <= age < 130 else None


def _image(row: dict[str, str], folder: Path, missing_images: str, report: ReadReport) -> Path | None:
    """The path of the row's image, whose header has been read; None where there is none and that is allowed."""
    name = row["filename"]
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise InputError(f"the image {name} lies outside {folder}")
        if name and path.is_file():
            with Image.open(path) as image:
                image.verify()
            return folder / name
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise InputError(f"the image {name} cannot be read: {error}") from None
    if missing_images != "skip":
        raise InputError(f"the image {name} is not in {folder}" if name else "no filename")
    report.notes["without an image (kept)"] += 1
    return None

"""Portraits with findings: a table in the form of the GestaltMatcher Database, and the images that it names.

    image_id, disease, texts and/or present_features
    [, filename, absent_features, facial_features, age | age_year, age_month, sex, ethnicity, genes, patient_id, split,
    disease_id]

The table is .csv, or .tsv with tabs, in UTF-8; ``COLUMNS`` lists the other names a column may have. ``texts`` is
GestaltMML's one line ("Sex male Age 3 years 6 months Ethnicity European Ptosis ...") or a note in any form. Findings
are HPO ids, labels or both, separated by ";" or "|"; facial ones are what the image shows and the text leaves out.
Where ``filename`` is not in the folder of images, the image is GestaltMatcher's aligned crop, ``ID_aligned.jpg``.
Every bad row is reported, all at once; what is left out of a good one, and columns that are not used, are counted and
named in the report.

The split of a case is the column ``split``, else it comes from file names with a word such as train, val or test: that
of the case's own table, or of a table that lists its ``image_id``, as the Database's ``gmdb_train_images.csv``
beside its ``image_metadata.tsv``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from mint.data.cases import Case, Term
from mint.data.image_files import find_image, verify_image
from mint.data.records import ReadReport, parse_rows
from mint.data.splits import SPLITS
from mint.data.tables import SUFFIXES, Table, read_table
from mint.errors import FileProblems, InputError, quote

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
    "ethnicity": ("ethnicity", "image_dataset_ethnicity_category"),
    "genes": ("genes", "gene_names", "gene"),
    "subject": ("patient_id", "subject_id", "patient", "subject"),
    "split": ("split",),
}
NEEDED = (("id",), ("disease",), ("text", "present"))
CROPS = (".jpg", ".jpeg", ".png")  # of ID_aligned
SPLIT_WORDS = {"training": "train", "valid": "val", "validation": "val"} | {name: name for name in SPLITS}
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
    """The cases of a table, or of the tables in a folder, in the order of their rows, and a report.

    images: the folder that file names are relative to; by default the table's own. No image may lie outside it.
    missing_images: "skip" keeps a case whose image is not there, without an image.
    labels: HPO id -> label, for findings given by id alone; without it the id is the label.
    Raises FileProblems naming every bad row, InputError if the table or the folder cannot be read or holds no case.
    """
    path = Path(path)
    report = ReadReport()
    sources = _sources(path, report)
    folder = sources[0].path.parent if images is None else Path(images)
    if not folder.is_dir():
        raise InputError(f"the folder of images {folder} does not exist")
    cases: list[Case] = []
    problems: list[str] = []
    place: dict[str, str] = {}
    for source in sources:
        try:
            found = _read(source, folder, missing_images, labels or {}, report)
        except FileProblems as error:
            problems += error.problems
            continue
        twice = [f"{source.path}: id {case.id!r} is also in {place[case.id]}" for case in found if case.id in place]
        problems += twice
        place |= {case.id: source.path.name for case in found}
        cases += found
    if problems:
        raise FileProblems(sources[0].path if len(sources) == 1 else path, problems)
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


class _Source(NamedTuple):
    """A table of cases. split: of its cases. listed: image_id -> split, by other files; other cases are left out."""

    path: Path
    table: Table
    split: str = ""
    listed: Mapping[str, str] | None = None


def _sources(path: Path, report: ReadReport) -> list[_Source]:
    """The tables of cases at ``path``. Raises InputError if a folder does not say which these are, or their splits."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    needed = NEEDED if len(files) == 1 else ()
    tables = {file: read_table(file, COLUMNS, needed) for file in files}
    whole = [file for file, table in tables.items() if _has(table, *NEEDED)]
    lists = {file: table for file, table in tables.items() if _has(table, ("id",)) and file not in whole}
    if others := [file.name for file in files if file not in whole and file not in lists]:
        report.notes[f"tables without a column image_id (passed over: {', '.join(others)})"] += len(others)
    splits = {file: "" if tables[file].columns["split"] else _split_of(file) for file in whole}
    told = all(split or tables[file].columns["split"] for file, split in splits.items())
    if len(whole) == 1 and lists and not tables[whole[0]].columns["split"]:
        return [_Source(whole[0], tables[whole[0]], listed=_listed_splits(lists))]
    if whole and not lists and (told or len(whole) == 1):
        return [_Source(file, tables[file], split) for file, split in splits.items()]
    raise InputError(
        f"{path} must hold one .csv or .tsv file of cases (found: {', '.join(file.name for file in files) or 'none'}), "
        "one file for each split with train, val or test in its name, or one of cases and lists of image_id with such "
        "names and no column split; or give the file's own path"
    )


def _has(table: Table, *groups: Sequence[str]) -> bool:
    """Whether the table has a column of each group of fields."""
    return all(any(table.columns[field] for field in group) for group in groups)


def _split_of(file: Path) -> str:
    """The split that a file's name says; empty if it says none, or two."""
    found = {SPLIT_WORDS[word] for word in re.split("[^a-z]+", file.stem.lower()) if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else ""


def _listed_splits(lists: Mapping[Path, Table]) -> dict[str, str]:
    """image_id -> split, from tables of ids that have a column split, or are named by their split."""
    splits: dict[str, str] = {}
    for file, table in lists.items():
        if not (table.columns["split"] or _split_of(file)):
            raise InputError(
                f"{file} lists images without findings, and neither a column split nor its name says which split "
                "(train, val, test): rename it or move it away"
            )
        for line, cells in table.rows:
            try:
                table.check(cells)
                identity, split = (cell_value(table.header, cells, table.columns[name]) for name in ("id", "split"))
                split = split or _split_of(file)
                if not (identity and split):
                    raise InputError("no split" if identity else "no image_id")
                if splits.setdefault(identity, split) != split:
                    raise InputError(f"the image {identity} is also listed as {splits[identity]}")
            except InputError as error:
                raise InputError(f"{file}:{line}: {error}") from None
    return splits


def _read(
    source: _Source, folder: Path, missing_images: str, labels: Mapping[str, str], report: ReadReport
) -> list[Case]:
    """The cases of one table. Raises FileProblems."""
    table, listed = source.table, source.listed
    used = sum(table.columns.values(), [])
    unused = [name for i, name in enumerate(table.header) if name.strip() and i not in used]
    report.unused = tuple(dict.fromkeys([*report.unused, *unused]))

    def parse(cells: list[str], line: int) -> Case | None:
        table.check(cells)
        row = {name: cell_value(table.header, cells, columns) for name, columns in table.columns.items()}
        if listed is not None and row["id"] and row["id"] not in listed:
            report.skipped["in no list of a split"] += 1
            return None
        row["split"] = row["split"] or (listed or {}).get(row["id"], source.split)
        return replace(_case(row, labels, report), image=_image(row, folder, missing_images, report))

    cases = parse_rows(source.path, table.rows, parse)
    if missing := len(set(listed or ()) - {case.id for case in cases}):
        report.notes[f"images of the splits' lists are not in {source.path.name} (left out)"] += missing
    return cases


def cell_value(header: list[str], cells: list[str], columns: list[int]) -> str:
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
        ethnicity=" ".join(list_names(row["ethnicity"])) or text.ethnicity,
        genes=tuple(list_names(row["genes"])),
    )


def list_names(cell: str) -> list[str]:
    """The names in a cell, separated by ";", "," or "|"; a list in Python's form ("['A', 'B']") too."""
    parts = (part.strip(" []'\"") for part in re.split("[;,|]", cell))
    return [part for part in dict.fromkeys(parts) if part.lower() not in EMPTY]


def _terms(cell: str, labels: Mapping[str, str], report: ReadReport) -> dict[str, Term]:
    """label -> finding, from "HP:0001250", "Seizure", "HP:0001250 Seizure" or "Seizure (HP:0001250)"."""
    terms: dict[str, Term] = {}
    for part in filter(None, map(str.strip, re.split("[;|]", cell))):
        ids = TERM_ID.findall(part)
        if len(ids) > 1:
            raise InputError(f'findings are separated by ";" or "|", not as in {quote(part)}')
        identity = ids[0].upper() if ids else ""
        label = TERM_ID.sub("", part).strip(" :!-") or labels.get(identity, "")
        if label.upper().startswith("HP:"):
            raise InputError(f"{quote(part)} is not an HPO id (HP:0000000)")
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
    if not (name and _is_there(folder, name)) and (crop := _crop(row["id"], folder)):
        report.notes[f"with their aligned crop (ID_aligned{Path(crop).suffix}) as the image"] += 1
        name = crop
    if name and find_image(folder, name).is_file():
        verify_image(folder / name)
        return folder / name
    if missing_images != "skip":
        crop = f"{row['id']}_aligned{CROPS[0]}"
        raise InputError(
            f"the image {name} is not in {folder}, nor is {crop}" if name else f"no filename, and no {crop} in {folder}"
        )
    report.notes["without an image (kept)"] += 1
    return None


def _is_there(folder: Path, name: str) -> bool:
    """Whether the folder, without what its links lead to, has a file of this name."""
    try:
        return find_image(folder, name).is_file()
    except InputError:
        return False


def _crop(identity: str, folder: Path) -> str:
    """The name of GestaltMatcher's aligned crop of an image; empty if there is none."""
    names = [f"{identity}_aligned{suffix}" for suffix in CROPS]
    found = [name for name in names if _is_there(folder, name)]
    if len(found) > 1:
        raise InputError(f"{' and '.join(found)} are both in {folder}: keep one, or name it as the filename")
    return found[0] if found else ""

"""From a path to cases, whatever the cohort's form; the flags by which every command reads one."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mint.data.cases import HEADER, Case, read_term_ids
from mint.data.gmdb import COLUMNS, cell_value, list_names, parse_texts, read_gmdb
from mint.data.phenopackets import read_phenopackets
from mint.data.prompts import Prompt, read_prompt
from mint.data.records import parse_rows, read_text
from mint.data.splits import take_split
from mint.data.tables import read_table
from mint.errors import InputError
from mint.progress import Progress

TABLES = (".csv", ".tsv")


def add_cohort_options(parser: argparse.ArgumentParser) -> None:
    """``--cases`` and what goes with it; read by :func:`read_cohort`."""
    add = parser.add_argument
    forms = (
        "phenopackets (a folder, .json, .tar, .tar.gz, .tar.xz), or a table of portraits (.csv, .tsv, or its folder)"
    )
    add("--cases", required=True, metavar="PATH", help=forms)
    add("--face-terms", metavar="FILE", help="HPO ids (first column) of what the face shows, left out of notes")
    add("--portraits", metavar="DIR", help="draw a portrait of each case's facial findings, instead of a photograph")
    add("--images", metavar="DIR", help="folder of a table's images or aligned crops (default: the table's own)")
    add("--missing-images", choices=("error", "skip"), default="error", help="skip: keep the case without one")
    add("--hpo-terms", metavar="FILE.tsv[.gz]", help="labels (columns id, label) of findings given by id alone")
    parts = "part of the cohort, by patient: as the table or its files' names say, or a tenth as test"
    add("--split", choices=("train", "val", "test"), help=parts)


def read_cohort(path: str, args: argparse.Namespace, split: str | None = None, draw: bool = True) -> list[Case]:
    """The cases under ``path``, read with the flags of :func:`add_cohort_options`; prints what was read and left out.

    split: the part to keep (None: as ``--split`` says). draw: whether ``--portraits`` applies. Raises InputError for
    files that cannot be used and an empty split.
    """
    place = Path(path)
    facial = read_term_ids(args.face_terms) if args.face_terms else None
    if place.suffix in TABLES or (place.is_dir() and any(file.suffix in TABLES for file in place.iterdir())):
        labels = read_labels(args.hpo_terms) if args.hpo_terms else None
        cases, report = read_gmdb(place, args.images, args.missing_images, labels)
        cases = [move_facial(case, facial) for case in cases] if facial else cases
    else:
        cases, report = read_phenopackets(place, facial)
    print(f"{path}: {report}")
    if summaries := getattr(args, "summaries", None):
        cases = add_summaries(cases, summaries)
    if split := split or args.split:
        cases = take_split(cases, split)
        print(f"{path}: {len(cases)} cases of the {split} split")
        if not cases:
            raise InputError(f"{path}: the {split} split is empty")
    return draw_portraits(cases, Path(args.portraits)) if args.portraits and draw else cases


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """``--prompt`` and ``--genes``; read by :func:`read_with_prompt`."""
    add = parser.add_argument
    add(
        "--prompt", metavar="FILE.toml", help="another wording (user, system, header), with {note}, {genes}, {passages}"
    )
    add(
        "--genes",
        metavar="FILE",
        help="image_id or id, genes: candidates for {genes} of --prompt (default: the cases')",
    )


def read_with_prompt(args: argparse.Namespace) -> tuple[Prompt | None, list[Case]]:
    """(the wording of ``--prompt``, or None; the cases of ``--cases``, with what it shows of them).

    Raises InputError for a placeholder that has no value, and for values that no placeholder shows.
    """
    prompt = None
    if args.prompt:
        prompt = read_prompt(args.prompt, HEADER, ("note", "genes", "passages"), ("note",))
    shown = prompt.placeholders if prompt else set()
    if args.genes and "genes" not in shown:
        raise InputError("--genes goes with a --prompt that has {genes}")
    if prompt and bool(getattr(args, "retrieve", None)) != ("passages" in shown):
        raise InputError(f"{args.prompt}: {{passages}} and --retrieve go together")
    cases = read_cohort(args.cases, args)
    cases = add_genes(cases, args.genes) if args.genes else cases
    if "genes" in shown and (without := [case.id for case in cases if not case.genes]):
        raise InputError(
            f"{len(without)} of {len(cases)} cases have no value for {{genes}} ({', '.join(without[:5])}): give "
            "--genes FILE, or a prompt without it"
        )
    return prompt, cases


def move_facial(case: Case, facial: set[str]) -> Case:
    """The case with findings of the face moved from ``observed`` to ``facial``, and none of them among ``excluded``."""
    seen = tuple(term for term in case.observed if term.id in facial)
    return dataclasses.replace(
        case,
        observed=tuple(term for term in case.observed if term.id not in facial),
        excluded=tuple(term for term in case.excluded if term.id not in facial),
        facial=case.facial + seen,
    )


def add_summaries(cases: Sequence[Case], path: str) -> list[Case]:
    """The cases, those without findings with the summary of their disease; for the teacher alone. Prints how many.

    path: a table (.csv, .tsv) with the columns disease_id or disease, and summary. Raises FileProblems for two
    summaries of a disease, InputError for a file that cannot be used.
    """
    columns = {"id": COLUMNS["disease_id"], "name": COLUMNS["disease"], "summary": ("summary",)}
    table = read_table(Path(path), columns, (("id", "name"), ("summary",)))
    summaries: dict[str, str] = {}

    def parse(cells: list[str], line: int) -> int:
        table.check(cells)
        row = {name: cell_value(table.header, cells, found) for name, found in table.columns.items()}
        for key in filter(None, (row["id"].lower(), row["name"].lower())):
            if row["summary"] and summaries.setdefault(key, row["summary"]) != row["summary"]:
                raise InputError(f"a second summary of {key}")
        return line

    parse_rows(Path(path), table.rows, parse, key=str)
    lacking = [case for case in cases if not has_findings(case)]
    found = {case: summaries.get(case.disease_id.lower()) or summaries.get(case.disease.lower()) for case in lacking}
    print(f"{path}: summaries for {sum(map(bool, found.values()))} of {len(lacking)} cases without findings")
    return [dataclasses.replace(case, summary=found.get(case) or "") for case in cases]


def has_findings(case: Case) -> bool:
    """Whether a finding is known to be present, in the case's text or apart from it."""
    return bool(case.observed or case.facial or (case.text and parse_texts(case.text).findings))


def add_genes(cases: Sequence[Case], path: str) -> list[Case]:
    """The cases with the candidate genes of a table (.csv, .tsv) with the columns image_id or id, and genes.

    Prints how many it holds. Raises FileProblems for a case given twice, InputError for a file that cannot be used.
    """
    columns = {"id": ("image_id", "id"), "genes": COLUMNS["genes"]}
    table = read_table(Path(path), columns, (("id",), ("genes",)))

    def parse(cells: list[str], line: int) -> tuple[str, tuple[str, ...]]:
        table.check(cells)
        identity, genes = (cell_value(table.header, cells, table.columns[name]) for name in ("id", "genes"))
        return identity, tuple(list_names(genes))

    genes = dict(parse_rows(Path(path), table.rows, parse, key=lambda row: row[0]))
    print(f"{path}: genes for {sum(case.id in genes for case in cases)} of {len(cases)} cases")
    return [dataclasses.replace(case, genes=genes[case.id]) if case.id in genes else case for case in cases]


def draw_portraits(cases: Sequence[Case], folder: Path) -> list[Case]:
    """The cases with a drawn portrait (``folder/ID.png``) for each that has facial findings and no image of its own.

    Raises InputError if none has any, or the folder cannot be written.
    """
    from mint.synthetic.portrait import KNOWN_FINDINGS, draw_portrait  # drawing code: only where a face is drawn

    unknown: Counter[str] = Counter()
    result = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for case in Progress(cases, desc="portraits", unit="case", leave=False):
            findings = [term.id for term in case.facial if term.id in KNOWN_FINDINGS]
            unknown.update(f"{term.label} ({term.id})" for term in case.facial if term.id not in KNOWN_FINDINGS)
            if case.image is None and findings:
                path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', case.id)[:150]}.png"
                draw_portrait(findings, case.id, case.age_years, case.sex).save(path)
                case = dataclasses.replace(case, image=path)
            result.append(case)
    except OSError as error:
        raise InputError(f"portraits cannot be written to {folder}: {error}") from None
    drawn = sum(case.image is not None for case in result)
    if not drawn:
        raise InputError(
            "no case has a facial finding that can be drawn: say which findings are facial with --face-terms"
        )
    report = f"{drawn} of {len(result)} cases have a portrait"
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        listed = ", ".join(f"{name} x {count}" for name, count in unknown.most_common(5))
        report += f"; {unknown.total()} facial findings are not drawn: {listed}{more}"
    print(f"{folder}: {report}")
    return result


def read_labels(path: str) -> dict[str, str]:
    """HPO id -> label, from a tab-separated table with the columns ``id`` and ``label``. Raises InputError."""
    rows = csv.DictReader(io.StringIO(read_text(Path(path)), newline=""), delimiter="\t")
    try:
        if not {"id", "label"} <= set(rows.fieldnames or ()):
            raise InputError(f"{path} must have the columns id and label")
        return {row["id"]: row["label"] for row in rows if row["label"] is not None}
    except csv.Error as error:
        raise InputError(f"{path} cannot be read: {error}") from None

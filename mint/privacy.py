"""Search files for what may identify a patient, before they are trained on or passed on.

    python -m mint.privacy scan FILE [FILE ...]

Warns about dates, phone numbers, e-mail addresses, record numbers and names after titles in JSON Lines, CSV, TSV and
text files (.gz too), and exits with status 1 if there are any. Patterns find forms, not meanings: names without a
title, addresses and rare combinations of findings are not found, so an empty result does not make data anonymous.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mint.cli import Parser, guard
from mint.errors import InputError, shows_text

ID_FIELDS = ("id", "image_id", "case_id", "question_id", "qid")
MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
YEAR, DAY, NUMBER = r"(?:19|20)\d\d", r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])"  # NUMBER: of a month
NAME = r"[A-ZÀ-ÖØ-Þ][\w'’-]+"
PATTERNS = {
    "date": re.compile(
        rf"""(?<![\w.:/-])(?:
            {YEAR}([-/.]){NUMBER}\1{DAY} | (?:{DAY}([-/.]){NUMBER}|{NUMBER}([-/.]){DAY})(?:\2|\3){YEAR}
            | (?:{DAY}/{NUMBER}|{NUMBER}/{DAY})/\d\d | (?:0[1-9]|[12]\d|3[01])\.(?:0[1-9]|1[0-2])\.\d\d
            | {DAY}(?:st|nd|rd|th|\.)?[ -](?:of[ ])?{MONTH},?[ -]{YEAR}
            | {MONTH}[ ]{DAY}(?:st|nd|rd|th)?,?[ ]{YEAR} | {MONTH}[ ]{DAY}(?:st|nd|rd|th)
        )(?![\w/-]|\.\d)""",
        re.VERBOSE | re.IGNORECASE,
    ),
    "e-mail address": re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
    "phone number": re.compile(
        r"""(?<![\w.:+/-])(?:
            (?:\+|00)[1-9]\d{0,2}(?:[ ./-]?\(?\d{1,5}\)?){2,5}(?<=\d\d\d) | \(\d{3,5}\)[ -]?\d{3,5}(?:[ -]?\d{2,6})?
            | \d{3}([-.])\d{3}\1\d{4} | 0\d{2,4}[ /-]\d{5,8}
            | (?:tel|phone|telephone|mobile|fax)(?:\.|\b)[ :]*(?:no\.?|number)?[ :]*\d[\d ()./-]{4,}\d
        )(?![\w-]|\.\d)""",
        re.VERBOSE | re.IGNORECASE,
    ),
    "record number": re.compile(
        r"""\b(?:
            (?:MRN|SSN|NHS|accession|medical[ ]record)(?:[ ](?:no\.?|number|id))?
            | (?:patient|hospital|chart|record|file|case|admission|insurance|account)[ ]?(?:no\.?|number|nr\.?|id|\#)
        )[ :#=]{0,3}(?=[A-Z-]{0,4}\d)[A-Z\d-]{4,}\b | (?<![\w-])\d{3}-\d\d-\d{4}(?![\w-])""",
        re.VERBOSE | re.IGNORECASE,
    ),
    "name after a title": re.compile(
        rf"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor|Herrn?|Frau|Mme)\.?(?: (?:Dr|Prof)\.?)* {NAME}"
    ),
}


class Finding(NamedTuple):
    """text: what the pattern matched, which messages show with ``--show-text`` alone."""

    path: Path
    line: int
    record: str
    kind: str
    text: str

    def __str__(self) -> str:
        record = f" in record {self.record}" if self.record else ""
        return f"{self.path}:{self.line}: {self.kind}{record}" + (f": {self.text!r}" if shows_text() else "")


def find_identifiers(text: str) -> Iterator[tuple[str, str]]:
    """(kind, matched text) of everything in a text that may identify a person."""
    for kind, pattern in PATTERNS.items():
        for match in pattern.finditer(text):
            yield kind, match.group()


def scan(path: str | Path) -> Iterator[Finding]:
    """What is found in a file, record by record. Raises InputError if it cannot be read."""
    for line, record, texts in _records(Path(path)):
        for text in texts:
            for kind, found in find_identifiers(text):
                yield Finding(Path(path), line, record, kind, found)


def _records(path: Path) -> Iterator[tuple[int, str, Iterable[str]]]:
    """(line, id or "", texts) of every record."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", errors="replace") as file:
            if suffix in (".csv", ".tsv"):
                yield from _rows(file, "\t" if suffix == ".tsv" else ",")
                return
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line) if suffix == ".jsonl" else line
                except (ValueError, RecursionError):
                    record = line
                named = [record[name] for name in ID_FIELDS if name in record] if isinstance(record, dict) else []
                yield number, str(next(iter(named), "")), _texts(record)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _rows(file: Iterable[str], delimiter: str) -> Iterator[tuple[int, str, Iterable[str]]]:
    """The rows of a table, the first one included: it may be a record too."""
    reader, place, start = csv.reader(file, delimiter=delimiter), None, 1
    for cells in reader:
        if start == 1:
            names = [cell.strip().lower() for cell in cells]
            place = next((names.index(name) for name in ID_FIELDS if name in names), None)
        yield start, cells[place] if place is not None and place < len(cells) and start > 1 else "", cells
        start = reader.line_num + 1


def _texts(value: object) -> Iterator[str]:
    """All strings of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def run(files: Sequence[str]) -> int:
    """Prints the findings of all files, and their number; returns it."""
    count = 0
    for finding in (finding for file in files for finding in scan(file)):
        print(finding)
        count += 1
    print(f"{len(files)} file{'s' * (len(files) > 1)}: {count or 'no'} possible identifiers" + HINT * (not count))
    return count


HINT = " (names without a title, addresses and rare combinations of findings are not looked for)"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 if something is found."""
    parser = Parser(prog="python -m mint.privacy", description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    help = "warn about dates, phone numbers, e-mail addresses, record numbers and names after titles"
    command = commands.add_parser("scan", help=help)
    command.add_argument("files", nargs="+", metavar="FILE", help=".jsonl, .csv, .tsv or text, also .gz")
    files = parser.parse_args(argv).files
    counts: list[int] = []
    return guard(lambda: counts.append(run(files))) or int(any(counts))


if __name__ == "__main__":
    sys.exit(main())

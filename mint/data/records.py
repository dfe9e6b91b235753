"""Reading files of records: plain or gzipped, every bad record reported at once."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from mint.errors import FileProblems, InputError

Row = TypeVar("Row")
Record = TypeVar("Record")


@dataclass
class ReadReport:
    """How many cases were read, what was skipped or left out and why, and the columns that were not used."""

    read: int = 0
    skipped: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.read} cases"]
        parts += [f"{count} skipped: {reason}" for reason, count in sorted(self.skipped.items())]
        parts += [f"{count} {note}" for note, count in sorted(self.notes.items())]
        parts += [f"columns not used: {', '.join(self.unused)}"] if self.unused else []
        return "; ".join(parts)


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz. Raises InputError if it cannot be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def parse_rows(
    path: Path,
    rows: Iterable[tuple[int, Row]],
    parse: Callable[[Row, int], Record | None],
    key: Callable[[Record], str] = attrgetter("id"),
) -> list[Record]:
    """``parse(row, number)`` of each (number, row), without those that give None.

    Raises FileProblems naming every row for which ``parse`` raises InputError, or whose ``key`` an earlier one has.
    """
    records: list[Record] = []
    numbers: dict[str, int] = {}
    problems: list[str] = []
    for number, row in rows:
        try:
            record = parse(row, number)
            if record is None:
                continue
            if numbers.setdefault(key(record), number) != number:
                raise InputError(f"id {key(record)!r} is also that of {path.name}:{numbers[key(record)]}")
            records.append(record)
        except InputError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        raise FileProblems(path, problems)
    return records

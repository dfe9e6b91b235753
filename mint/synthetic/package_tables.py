"""The package's own tables, the tables that the synthetic cohorts write, and the folders they are written to."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mint.errors import InputError
from mint.files import write_aside


def read_table(name: str, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every row of a tab-separated table of this package; lines starting with # are comments.

    Raises InputError unless the first row names ``columns`` and every other row has as many cells.
    """
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    rows = [(i, line.split("\t")) for i, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not rows or tuple(rows[0][1]) != tuple(columns):
        raise InputError(f"{name}: the first row must name the columns {', '.join(columns)}")
    for number, cells in rows[1:]:
        if len(cells) != len(columns):
            raise InputError(f"{name} line {number}: {len(cells)} cells, {len(columns)} expected")
        yield number, cells


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a CSV file atomically. Raises InputError if it cannot be written."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_aside(path, text.getvalue())


@contextmanager
def new_set(folder: str | Path, table: str, what: str) -> Iterator[Path]:
    """``folder`` as a path, to be filled with images and a table.

    Raises InputError if it holds the table already (``what``: its content, for the message) or cannot be written.
    """
    if (Path(folder) / table).exists():
        raise InputError(f"{folder} holds {what} already; give another folder")
    try:
        yield Path(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from None

"""Tables of samples in UTF-8, .csv or .tsv with tabs, whose columns are known by several names."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mint.data.records import read_bytes
from mint.errors import FileProblems, InputError, quote

SUFFIXES = (".csv", ".tsv")


class Table(NamedTuple):
    """columns: the indices of each field's columns, in order of preference. rows: (line, cells) of each row."""

    header: list[str]
    columns: dict[str, list[int]]
    rows: Iterator[tuple[int, list[str]]]

    def check(self, cells: Sequence[str]) -> None:
        """Raises InputError for a row that has not as many fields as the header."""
        if len(cells) != len(self.header):
            raise InputError(f"{len(cells)} fields, where the header has {len(self.header)}")


def read_table(path: Path, names: Mapping[str, Sequence[str]], needed: Sequence[Sequence[str]]) -> Table:
    """The table in a file, blank rows left out.

    names: the names that the columns of each field may have, in order of preference. needed: groups of fields of which
    one must have a column. Raises FileProblems for a line that cannot be read, InputError for a file that cannot be
    read or is empty, a column given twice, and missing columns.
    """
    rows = _rows(path)
    number, header = next(rows, (1, []))
    if not header:
        raise InputError(f"{path} is empty")
    found = [name.strip().lower() for name in header]
    if twice := [name for name, count in Counter(filter(None, found)).items() if count > 1]:
        raise InputError(f"{path}:{number}: the column {twice[0]!r} is given twice")
    columns = {field: [found.index(name) for name in known if name in found] for field, known in names.items()}
    lacking = [group for group in needed if not any(columns[field] for field in group)]
    if lacking:
        missing = "; ".join(" or ".join(name for field in group for name in names[field]) for group in lacking)
        # Without any known name the line may be a record, whose header is missing.
        shown = ", ".join(filter(None, found)) if any(columns.values()) else quote(", ".join(header))
        raise InputError(f"{path}:{number}: missing columns: {missing} (found: {shown})")
    return Table(header, columns, rows)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of every row that is not blank, the header included."""
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FileProblems(path, [f"{path}:{line}: not UTF-8; save the table in that encoding"]) from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise FileProblems(path, [f"{path}:{line}: {error}; is a quote left open?"]) from None

"""Tables beside the images that the embedded cohorts write."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from mint.files import write_aside


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a CSV file, aside and renamed. Raises InputError if it cannot be written."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_aside(path, text.getvalue())

"""Reading files of records: plain or packed, every bad record reported at once.

A packed file may be a bomb: a few kilobytes that unpack to gigabytes. What comes out of one is limited, see
:func:`open_unpacked`.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, TypeVar

from mint.errors import FileProblems, InputError

# By the first bytes of a file.
PACKINGS: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}
UNPACKED, RATIO = 256_000_000, 100  # a file unpacks to at most so many bytes, or to so many times its own, if more
WHOLE_LIMIT = 8_000_000_000  # bytes of a file that is read as a whole
PARQUET_ROWS = 256  # that are unpacked at a time
LINE_LIMIT = 50_000_000  # bytes of a line of JSON Lines
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
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


class Unpacked:
    """A file open for reading: what it unpacks to, up to ``limit`` bytes, at most ``longest`` at a time.

    Reading and seeking beyond either raises InputError.
    """

    def __init__(self, path: Path, file: IO[bytes], limit: int, longest: int):
        self._path, self._file, self._limit, self._longest = path, file, limit, longest
        self.tell, self.close = file.tell, file.close

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer at the end."""
        if size > self._longest:
            raise InputError(f"{self._path} asks for {size:,} bytes at once; at most {self._longest:,} are read")
        content = self._file.read(size)
        self._check(self._file.tell())
        return content

    def seek(self, place: int) -> int:
        """Goes to a place from the beginning."""
        self._check(place)
        return self._file.seek(place)

    def _check(self, place: int) -> None:
        if place > self._limit:
            raise InputError(f"{self._path} unpacks to more than {self._limit:,} bytes, which is not read; unpack it")

    def __enter__(self) -> Unpacked:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_unpacked(path: Path, longest: int) -> Unpacked:
    """A file to read, unpacked if its first bytes, or the ending .gz, say that it is packed.

    It may unpack to ``UNPACKED`` bytes, or to ``RATIO`` times its size. Text packs to a twentieth, reports of one form
    by xz to a fortieth; a bomb to a thousandth. longest: the most bytes to read at once.
    """
    with path.open("rb") as file:
        start, size = file.read(6), os.fstat(file.fileno()).st_size
    by_content = (opener for magic, opener in PACKINGS.items() if start.startswith(magic))
    unpack: Callable[[Path], Any] | None = gzip.open if path.suffix == ".gz" else next(by_content, None)
    if unpack is None:
        return Unpacked(path, path.open("rb"), max(size, WHOLE_LIMIT), longest)
    return Unpacked(path, unpack(path), max(UNPACKED, RATIO * size), longest)


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz. Raises InputError if it is too large or unreadable."""
    try:
        if path.suffix == ".gz":
            with open_unpacked(path, UNPACKED) as packed:
                return b"".join(iter(lambda: packed.read(1 << 20), b""))
        if (size := path.stat().st_size) > WHOLE_LIMIT:
            raise InputError(f"{path} has {size:,} bytes, more than are read at once; split it")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except DAMAGED as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except ValueError as error:  # a name with a null character
        raise error if isinstance(error, InputError) else InputError(f"{str(path)!r} cannot be read: {error}") from None


def read_text(path: Path) -> str:
    """The text of a file as :func:`read_bytes`, without a byte order mark. Raises InputError if it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: not UTF-8 (byte {error.start + 1})") from None


def json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the lines of a JSON Lines file that are not blank. Raises InputError as :func:`read_bytes`,
    and for a line of more than ``LINE_LIMIT`` bytes."""
    content = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(content.split(b"\n"), 1):
        if len(line) > LINE_LIMIT:
            raise InputError(f"{path}:{number}: the line has more than {LINE_LIMIT:,} bytes; is it JSON Lines?")
        if line.strip():
            yield number, line


def parquet_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """(number, row) of the rows of a Parquet file.

    Raises InputError without pyarrow, for a file that cannot be read, and for one that unpacks to more than
    :func:`open_unpacked` allows; equal values are stored once, so a few kilobytes can hold gigabytes.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{path}: Parquet needs pyarrow (pip install pyarrow), or convert it to .jsonl") from None
    try:
        file, limit = parquet.ParquetFile(path), max(UNPACKED, RATIO * path.stat().st_size)
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        unpacked, numbers = max(groups, default=0), itertools.count(1)  # a group's columns are unpacked together
        for batch in file.iter_batches(PARQUET_ROWS) if unpacked <= limit else ():
            if (unpacked := unpacked + batch.nbytes) > limit:
                break
            for row in batch.to_pylist():
                yield next(numbers), row
    except (OSError, ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if unpacked > limit:
        raise InputError(f"{path} unpacks to more than {limit:,} bytes, which is not read; convert it to .jsonl")


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

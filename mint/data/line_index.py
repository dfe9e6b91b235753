"""The records of a JSON Lines file by their places, for files that are too large to keep in memory.

Every line is checked once, in as many processes as there are cores. What stays in memory is 29 bytes for each record.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mint.data.records import LINE_LIMIT, PACKINGS
from mint.errors import FileProblems, InputError
from mint.processes import cores, worker_processes
from mint.progress import Progress

CHUNK = 8_000_000  # bytes that one task checks
BOM = b"\xef\xbb\xbf"

Check = Callable[[bytes, int], tuple[str, bool]]  # content and number of a line -> id of its record, a mark


@dataclass(frozen=True)
class LineIndex:
    """Where the records of a file are.

    starts, sizes: [n] bytes. numbers: [n] of the lines, from 1. marked: [n] bool, what the check said. sha256: of the
    file's contents. version: size and time of modification when it was read.
    """

    path: Path
    starts: np.ndarray
    sizes: np.ndarray
    numbers: np.ndarray
    marked: np.ndarray
    sha256: str
    version: tuple[int, int]

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, place: int) -> tuple[bytes, int]:
        """(content, number) of the line of a record. Raises InputError if the file has changed or is gone."""
        try:
            with self.path.open("rb") as file:
                if _version(file.fileno()) != self.version:
                    raise InputError(f"{self.path} has changed since the run began to read it")
                file.seek(self.starts[place])
                return file.read(self.sizes[place]), int(self.numbers[place])
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error}") from None

    def only(self, kept: np.ndarray) -> LineIndex:
        """The records for which ``kept`` [n] is true."""
        parts = {name: getattr(self, name)[kept] for name in ("starts", "sizes", "numbers", "marked")}
        return replace(self, **parts)


def index_lines(path: str | Path, check: Check, workers: int | None = None) -> LineIndex:
    """The places of all lines that are not blank. ``check`` runs in other processes (``workers``, default the cores).

    Raises FileProblems naming every line for which ``check`` raises InputError or whose id an earlier one has, and
    InputError if the file cannot be read, is packed, holds no record, or has a line of more than ``LINE_LIMIT`` bytes.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start, version = file.read(6), _version(file.fileno())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if path.suffix in (".gz", ".parquet") or any(start.startswith(magic) for magic in PACKINGS):
        raise InputError(f"{path} is packed, and its records have no place to return to: unpack it to .jsonl")
    tasks = [(path, a, min(a + CHUNK, version[0]), check) for a in range(0, version[0], CHUNK)]
    chunks: list[_Chunk] = []
    problems: list[str] = []
    done = 0  # lines
    for chunk in Progress(_each(tasks, workers or cores()), total=len(tasks), desc="lines", unit="part", leave=False):
        problems += [f"{path}:{done + number}: {problem}" for number, problem in chunk.problems]
        chunks.append(replace(chunk, numbers=chunk.numbers + done))
        done += chunk.lines
    digest = hashlib.sha256(b"".join(chunk.digest for chunk in chunks)).hexdigest()
    if not any(len(chunk.starts) for chunk in chunks) and not problems:
        raise InputError(f"{path} holds no records")
    starts, sizes, numbers, marked, keys = (
        np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in ("starts", "sizes", "numbers", "marked", "keys")
    )
    index = LineIndex(path, starts, sizes, numbers, marked, digest, version)
    problems += _repeated(index, keys, check)
    if problems:
        raise FileProblems(path, problems)
    return index


@dataclass(frozen=True)
class _Chunk:
    """What was found in a part of the file: the lines that begin in it, numbered from 1. keys: hashes of the ids."""

    starts: np.ndarray
    sizes: np.ndarray
    numbers: np.ndarray
    marked: np.ndarray
    keys: np.ndarray
    problems: list[tuple[int, str]]
    lines: int
    digest: bytes


def _each(tasks: Sequence[tuple], workers: int) -> Iterator[_Chunk]:
    if min(workers, len(tasks)) < 2:
        yield from (_check_chunk(*task) for task in tasks)
        return
    with worker_processes(min(workers, len(tasks))) as pool:
        try:
            yield from pool.map(_check_chunk, *zip(*tasks, strict=True))
        except BrokenProcessPool:
            raise InputError("a process that checked the lines ended by itself; start the command again") from None


def _check_chunk(path: Path, start: int, end: int, check: Check) -> _Chunk:
    with path.open("rb") as file:
        file.seek(max(0, start - 1))
        before = file.read(1) if start else b"\n"
        block = file.read(end - start)
        rest = b"" if block.endswith(b"\n") else file.readline(LINE_LIMIT + 1)
    digest = hashlib.sha256(block).digest()
    skipped = 0 if before == b"\n" else block.find(b"\n") + 1 or len(block)  # of a line that began before
    content = block[skipped:] + rest if skipped < len(block) else b""
    found: list[tuple[int, int, int, bool, int]] = []
    problems: list[tuple[int, str]] = []
    place, lines = start + skipped, content.split(b"\n") if content else []
    if lines and not lines[-1]:
        del lines[-1]
    for number, line in enumerate(lines, 1):
        first, place = place, place + len(line) + 1
        if len(line) > LINE_LIMIT:
            raise InputError(f"{path}: a line has more than {LINE_LIMIT:,} bytes; is it JSON Lines?")
        if not first and line.startswith(BOM):
            first, line = len(BOM), line.removeprefix(BOM)
        if not line.strip():
            continue
        try:
            name, mark = check(line, number)
        except InputError as error:
            problems.append((number, str(error)))
            continue
        found.append((first, len(line), number, mark, _key(name)))
    starts, sizes, numbers, marks, keys = zip(*found, strict=True) if found else ((), (), (), (), ())
    return _Chunk(
        np.array(starts, np.int64),
        np.array(sizes, np.int32),
        np.array(numbers, np.int64),
        np.array(marks, bool),
        np.array(keys, np.uint64),
        problems,
        len(lines),
        digest,
    )


def _key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _repeated(index: LineIndex, keys: np.ndarray, check: Check) -> Iterable[str]:
    """What is wrong with every line whose id an earlier one has. Only lines with equal hashes are read again."""
    order = np.argsort(keys, kind="stable")
    equal = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    numbers: dict[str, int] = {}
    for place in sorted(order[np.union1d(equal, equal + 1)].tolist()):
        content, number = index.read(place)
        name = check(content, number)[0]
        if numbers.setdefault(name, number) != number:
            yield f"{index.path}:{number}: id {name!r} is also that of {index.path.name}:{numbers[name]}"


def _version(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns

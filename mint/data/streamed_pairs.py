"""Pairs of a file too large to keep in memory: each is read and encoded when its step comes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from mint import parallel
from mint.data.encode import EncodedPair
from mint.data.line_index import LineIndex, index_lines
from mint.data.preferences import Preference, check_fields, identify_record, parse_record
from mint.errors import InputError
from mint.hub import fetch_dataset, is_dataset_id

SAMPLE = 500  # records, evenly spaced, that stand for all in statistics

Encode = Callable[[Preference], EncodedPair | None]  # None for a record that is left out


class StreamedPairs(Sequence[EncodedPair]):
    """The pairs of the records of a file, in its order.

    A record that ``encode`` leaves out is replaced by the next that it keeps, since all lengths are known only when all
    records are encoded; a warning counts them. sample: the pairs of ``sampled`` records, evenly spaced.
    """

    def __init__(self, index: LineIndex, parse: Callable[[bytes, int], Preference], encode: Encode):
        """Raises InputError if ``encode`` keeps no record of the sample."""
        self._index, self._parse, self._encode = index, parse, encode
        self.sha256 = index.sha256  # of the file's contents
        self._left_out: set[int] = set()
        places = np.linspace(0, len(index) - 1, min(SAMPLE, len(index))).astype(int)
        found = [self._encode(self._preference(place)) for place in dict.fromkeys(places.tolist())]
        self.sampled = len(found)
        self.sample = [pair for pair in found if pair is not None]
        if not self.sample:
            raise InputError(f"{index.path}: none of {len(found)} records can be trained on; raise --max-length")

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, place: int) -> EncodedPair: ...
    @overload
    def __getitem__(self, place: slice) -> list[EncodedPair]: ...
    def __getitem__(self, place: int | slice) -> EncodedPair | list[EncodedPair]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        for at in range(len(self)):
            tried = (place + at) % len(self)
            if (pair := self._encode(self._preference(tried))) is not None:
                return pair
            self._warn(tried)
        raise InputError(f"{self._index.path}: no record can be trained on; raise --max-length")

    def _preference(self, place: int) -> Preference:
        return self._parse(*self._index.read(place))

    def _warn(self, place: int) -> None:
        self._left_out.add(place)
        count = len(self._left_out)
        if count in (1, 10, 100, 1000) or count % 10_000 == 0:
            line, here = self._index.numbers[place], " in this process" * (parallel.size() > 1)
            print(
                f"warning: {self._index.path}:{line}: too long, or without a span; the next record takes its place "
                f"({count} such records so far{here})",
                file=sys.stderr,
            )


def read_streamed(
    path: str | Path,
    encode: Encode,
    require_rejected: bool = True,
    fields: Sequence[str] = (),
    drop_spanless: bool = False,
) -> StreamedPairs:
    """The pairs of a preference file (.jsonl), all of whose lines are checked, but not kept.

    drop_spanless: leave out records without spans, if any has one. Raises what
    :func:`mint.data.preferences.read_preferences` raises, which explains the other arguments.
    """
    check_fields(fields)
    local = fetch_dataset(path) if is_dataset_id(path) else Path(path)
    how: dict[str, Any] = {"require_rejected": require_rejected, "fields": tuple(fields)}
    index = index_lines(local, functools.partial(identify_record, **how))
    if drop_spanless and index.marked.any():
        index = index.only(index.marked)
    return StreamedPairs(index, functools.partial(parse_record, **how), encode)

"""The order of the training pairs over the epochs, and the shape of the batches that it gives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

from mint.data.batch import ROW_STEP, EncodedPair, pack

ROW_MULTIPLE = 128  # FlexAttention's block size: static row lengths are a multiple of it


class PairOrder:
    """The stream of reshuffled epochs, cut into steps.

    A function of the seed and the number of pairs alone, so a resumed run continues exactly where it was. The
    permutation of the current epoch is kept: a step costs time in proportion to its own size.
    """

    def __init__(self, total: int, seed: int):
        """total: number of pairs, at least 1."""
        self.total, self.seed = total, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def permutation(self, epoch: int) -> Tensor:
        """[total] int64: the indices of the pairs in the order of ``epoch``, counted from 0."""
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._epoch, self._permutation = epoch, torch.randperm(self.total, generator=generator)
        return self._permutation

    def step(self, step: int, size: int) -> list[int]:
        """Indices of the ``size`` pairs of a step, counted from 0; a step may span several epochs."""
        first, last = step * size, (step + 1) * size
        chosen: list[int] = []
        for epoch in range(first // self.total, (last - 1) // self.total + 1):
            start = epoch * self.total
            chosen += self.permutation(epoch)[max(0, first - start) : last - start].tolist()
        return chosen

    def batches(self, size: int, count: int) -> Iterator[Tensor]:
        """The first ``count`` batches of ``size`` pairs, as tensors of indices [n, size], about an epoch at a time."""
        epoch, rest = 0, torch.empty(0, dtype=torch.int64)
        while count > 0:
            stream = torch.cat([rest, self.permutation(epoch)])
            whole = min(len(stream) // size, count)
            yield stream[: whole * size].view(whole, size)
            epoch, rest, count = epoch + 1, stream[whole * size :], count - whole


class StepPairs(Sequence[EncodedPair]):
    """The pairs of a step, looked up when they are asked for: a process reads those of its own micro-batches alone."""

    def __init__(self, pairs: Sequence[EncodedPair], indices: Sequence[int]):
        self._pairs, self._indices = pairs, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, place: int) -> EncodedPair: ...
    @overload
    def __getitem__(self, place: slice) -> StepPairs: ...
    def __getitem__(self, place: int | slice) -> EncodedPair | StepPairs:
        if isinstance(place, slice):
            return StepPairs(self._pairs, self._indices[place])
        return self._pairs[self._indices[place]]


def batch_shape(
    pairs: Sequence[EncodedPair],
    eval_pairs: Sequence[EncodedPair],
    order: PairOrder,
    batch_size: int,
    count: int,
    compiled: bool,
    split_from: int | None,
) -> dict[str, int]:
    """The shape of all batches of a run, as arguments of :func:`mint.data.batch.collate`.

    order, batch_size, count: the training batches are the first ``count`` of ``order``; evaluation takes the pairs as
    they come. compiled: one row length and row count for all batches, so that a step never recompiles. split_from: mean
    length from which pairs share one row per batch with hardly any padding, where attention skips masked blocks; None
    where it does not.
    """
    lengths = [pair.lengths for pair in pairs]
    flat = [length for some in lengths for length in some]
    one_row = split_from is not None and sum(flat) >= split_from * len(flat)
    if not compiled:
        return {"rows": 1} if one_row else {}
    starts = range(0, len(eval_pairs), batch_size)
    eval_lengths = [[n for pair in eval_pairs[i : i + batch_size] for n in pair.lengths] for i in starts]
    indices = torch.cat(list(order.batches(batch_size, count)))  # [batches, pairs]
    totals, at = torch.tensor([sum(some) for some in lengths])[indices].sum(1).sort(descending=True)
    if one_row:
        longest = max(int(totals[0]), *map(sum, eval_lengths), 0)
    else:
        longest = max(int(torch.tensor([max(some) for some in lengths])[indices].max()), *map(max, eval_lengths), 0)
    multiple = ROW_MULTIPLE if split_from is None else ROW_STEP
    row_length = math.ceil(longest / multiple) * multiple
    rows = max((len(pack(some, row_length)) for some in eval_lengths), default=1)
    for total, batch in zip(totals.tolist(), at.tolist(), strict=True):
        if 2 * total <= (rows + 1) * row_length:  # first-fit leaves no two rows that would fit into one
            break
        rows = max(rows, len(pack([n for i in indices[batch].tolist() for n in lengths[i]], row_length)))
    return {"row_length": row_length, "rows": rows}

"""The order of the training pairs over the epochs, and the shape of the batches that it gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

from mint.data.batch import ROW_STEP
from mint.data.encode import EncodedPair

CUDA_ROW_STEP = 128  # row lengths on CUDA are multiples of it, the tiles of a GPU's matrix products
FITTING = 0.95  # of the batches fit into a row; others are divided
SAMPLED = 20_000  # pairs, from the first of the run, on which that is measured


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
    pairs: Sequence[EncodedPair], order: PairOrder, batch_size: int, by_tokens: bool, split_from: int | None
) -> dict[str, int]:
    """The shape of all batches of a run, as arguments of :func:`mint.data.batch.make_batches`.

    order: of ``pairs``. by_tokens: every batch is one row, and a process's pairs of a step are divided by their tokens,
    into rows that hold ``FITTING`` of all batches of ``batch_size`` pairs and every pair with its twin. split_from:
    mean length from which pairs share one row per batch anyway; None on CUDA.
    """
    if not by_tokens:
        flat = [length for pair in pairs for length in pair.lengths]
        return {"rows": 1} if split_from is not None and sum(flat) >= split_from * len(flat) else {}
    own = torch.tensor([sum(pair.lengths) for pair in pairs])
    batches = torch.cat(list(order.batches(batch_size, max(1, SAMPLED // batch_size))))  # [n, batch_size]
    fitting = own[batches].sum(1).double().quantile(FITTING, interpolation="higher")
    budget = max(int(own.max()), int(fitting))
    return {"rows": 1, "multiple": CUDA_ROW_STEP if split_from is None else ROW_STEP, "budget": budget}

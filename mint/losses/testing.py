"""Statistics from nested lists, for unit tests of losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mint.losses.interface import AnswerStats

Rows = Sequence[Sequence[float]]


def answer_stats(
    logps: Rows,
    ref_logps: Rows | None = None,
    span: Rows | None = None,
    kl_forward: Rows | None = None,
    kl_reverse: Rows | None = None,
    token_count: float | None = None,
    padding: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> AnswerStats:
    """One side of P pairs, from one list per pair with one number per token: ``answer_stats([[-0.7, -1.2], [-0.3]])``.

    The lists may differ in length, which sets ``mask``. span: 0 or 1 for each token. padding: the value outside the
    mask (0 in training; with NaN, a loss that uses it becomes NaN). ``logps`` and both KLs require gradients, so that
    ``side.logps.grad`` [P, L] is set by ``loss.backward()``. Raises ValueError if two statistics differ in shape.
    """
    length = max(1, *map(len, logps))

    def table(name: str, rows: Rows, fill: float) -> Tensor:
        if [*map(len, rows)] != [*map(len, logps)]:
            raise ValueError(f"{name} has rows of {[*map(len, rows)]} tokens, logps of {[*map(len, logps)]}")
        return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], dtype=dtype)

    mask = table("mask", [[1.0] * len(row) for row in logps], 0.0).bool()
    numbers = {"logps": logps, "kl_forward": kl_forward, "kl_reverse": kl_reverse}
    leaves = {n: table(n, rows, padding).requires_grad_() for n, rows in numbers.items() if rows is not None}
    ref = None if ref_logps is None else table("ref_logps", ref_logps, padding)
    marks = None if span is None else table("span", span, 0.0).bool()
    return AnswerStats(mask=mask, ref_logps=ref, span=marks, token_count=token_count, **leaves)

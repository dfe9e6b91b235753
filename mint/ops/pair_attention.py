"""Attention over packed pairs: two calls of ``scaled_dot_product_attention`` per pair.

A dense mask over ``prompt | chosen | rejected`` spends more than half its work on masked positions. Here ``prompt +
chosen`` is one causal call, and the rejected tokens attend to the prompt and themselves in a second.

Legend: B rows, T row length, N heads, K key/value heads, D head size, P pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mint.ops.uncompiled import uncompiled


class PairLayout(NamedTuple):
    """Positions of the pairs. bounds: [P, 5] int64: row, start of prompt, chosen and rejected, and end in the row.

    window: of sliding-window attention.
    """

    bounds: Tensor
    window: int | None = None


def pair_layout(segments: Tensor, window: int | None = None) -> PairLayout:
    """The layout of packed rows from their segments [B, T] (3 * pair + role, -1 on padding)."""
    bounds: dict[tuple[int, int], list[int]] = {}
    for row, line in enumerate(segments):
        values, counts = torch.unique_consecutive(line, return_counts=True)
        start = 0
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value >= 0:
                pair = bounds.setdefault((row, value // 3), [row, start, start, start, start])
                for role in range(value % 3 + 1, 4):
                    pair[role + 1] = start + count
            start += count
    return PairLayout(torch.tensor(list(bounds.values()), dtype=torch.int64).view(-1, 5), window)


@uncompiled  # bounds differ from batch to batch; compiled code would be specialised to each
def pair_attention(q: Tensor, k: Tensor, v: Tensor, layout: PairLayout) -> Tensor:
    """Attention within each pair; rejected tokens do not attend to chosen ones. Zero at padding.

    q: [B, N, T, D].   k, v: [B, K, T, D].   Returns [B, N, T, D].
    """
    bounds, lengths, cell = layout.bounds.tolist(), [], 0
    for row, prompt, _, rejected, end in bounds:
        start = row * q.shape[2]
        lengths += [start + prompt - cell, rejected - prompt, end - rejected]
        cell = start + end
    lengths.append(q.shape[0] * q.shape[2] - cell)  # padding at the end
    # Over the cells of all rows: padding, prompt + chosen and rejected of each pair in turn.
    queries, keys, values = (x.transpose(1, 2).flatten(0, 1).split(lengths) for x in (q, k, v))
    parts, window = [], layout.window
    for pair, (_, prompt, chosen, rejected, end) in enumerate(bounds):
        padding, first, second = range(3 * pair, 3 * pair + 3)
        parts += [torch.zeros_like(queries[padding]), _attend(queries[first], keys[first], values[first], window)]
        if end > rejected:
            k, v = (torch.cat((x[first][: chosen - prompt], x[second])) for x in (keys, values))
            parts.append(_attend(queries[second], k, v, window))
    parts.append(torch.zeros_like(queries[-1]))
    return torch.cat(parts).view(q.shape[0], q.shape[2], *queries[0].shape[1:]).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """[L, N, D] of q [L, N, D], k and v [S, K, D]: causal, the last query at the last key, in a window."""
    before, mask = len(k) - len(q), None
    if before or (window is not None and window < len(k)):
        mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril_(before)
        if window is not None:
            mask = mask.triu_(before - window + 1)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return grouped_attention(q, k, v, mask)[0].transpose(0, 1)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of q [B, N, T, D], and k, v [B, K, S, D], K a divisor of N.

    mask: bool, broadcast to [B, N, T, S]; causal without one (T = S).
    """
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda:  # there, only some kernels read grouped heads; on the CPU copying them is what costs
        groups = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)

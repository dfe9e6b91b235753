"""Attention over packed pairs on CUDA: FlashAttention over sequences of different lengths.

As on the CPU (``mint.ops.pair_attention``), ``prompt + chosen`` is one causal sequence, and the rejected tokens attend
to the prompt and themselves in a second, for which the prompt's keys and values are copied.

Legend: B rows, T row length, N heads, K key/value heads, D head size, S sequences, L keys of all sequences.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mint.ops.pair_attention import pair_layout
from mint.ops.transfer import upload


class FlashLayout(NamedTuple):
    """The sequences of packed rows, over the B * T cells of all rows; padding is in sequences of its own.

    query_starts, key_starts: [S + 1] int32: where each sequence begins among the cells, and among the L keys.
    keys: [L] int64: the cells of the keys.    places: [2, B * T] int64: where a cell is among the keys, and where its
    copy is, -1 without one.     longest: [M, 0] for M keys of the longest sequence: a shape, since code is compiled for
    any shape, but for each integer anew.     window: of sliding-window attention.
    """

    query_starts: Tensor
    key_starts: Tensor
    keys: Tensor
    places: Tensor
    longest: Tensor
    window: int | None


def flash_reads(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether FlashAttention can be used on ``device``, for heads of this dtype and size."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head_dim % 8 or head_dim > 256:
        return False
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (8, 0)


def flash_layout(segments: Tensor, device: torch.device, window: int | None = None) -> FlashLayout:
    """The layout on ``device`` of packed rows from their segments [B, T] on the CPU."""
    rows, length = segments.shape
    sequences, cell = [], 0  # (first cell and end of the copied keys, and of the queries and their own keys)
    for row, prompt, chosen, rejected, end in pair_layout(segments).bounds.tolist():
        prompt, chosen, rejected, end = (row * length + place for place in (prompt, chosen, rejected, end))
        sequences += [(0, 0, cell, prompt), (0, 0, prompt, rejected), (prompt, chosen, rejected, end)]
        cell = end
    sequences = [each for each in (*sequences, (0, 0, cell, rows * length)) if each[2] < each[3]]
    bounds = torch.tensor(sequences)
    copied, own = (bounds[:, 1:] - bounds[:, :-1])[:, ::2].unbind(1)
    keys = torch.cat([torch.arange(*part) for each in sequences for part in (each[:2], each[2:])])
    is_copy = torch.tensor([1, 0]).repeat(len(sequences)).repeat_interleave(torch.stack((copied, own), 1).flatten())
    places = torch.full((2, rows * length), -1)
    places[is_copy, keys] = torch.arange(len(keys))
    starts = torch.stack([F.pad(lengths.cumsum(0), (1, 0)) for lengths in (own, copied + own)]).int()
    query_starts, key_starts = upload(starts, device)
    layout = FlashLayout(
        query_starts.clone(), key_starts.clone(), upload(keys, device), upload(places, device),
        torch.empty(int((copied + own).max()), 0, device=device), window,
    )  # fmt: skip
    for x in (layout.query_starts, layout.key_starts, layout.keys, layout.longest):
        torch._dynamo.maybe_mark_dynamic(x, 0)
    return layout


def flash_attention(q: Tensor, k: Tensor, v: Tensor, layout: FlashLayout) -> Tensor:
    """Attention within each sequence: causal, and in a window to keys fewer than ``window`` positions back.

    q: [B, N, T, D].   k, v: [B, K, T, D], K a divisor of N.   Returns [B, N, T, D].
    """
    from torch.nn.attention.varlen import varlen_attn  # here, since it imports the compiler

    # [B * T, heads, D]; autocast casts v alone
    queries, keys, values = (x.to(v.dtype).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    keys, values = (_Taken.apply(x, layout.keys, layout.places) for x in (keys, values))
    longest = layout.longest.shape[0]
    attended = varlen_attn(
        queries, keys, values, layout.query_starts, layout.key_starts, longest, longest,
        window_size=(-1 if layout.window is None else layout.window - 1, 0), enable_gqa=True,
    )  # fmt: skip
    attended = cast(Tensor, attended)  # a pair only where the log-sum-exp is asked for
    return attended.unflatten(0, (q.shape[0], q.shape[2])).transpose(1, 2)


class _Taken(torch.autograd.Function):
    """x[keys] for x [cells, ...], of which each cell is taken once or twice: its gradient is a sum of two rows.

    That of ``index_select`` adds row by row in atomic operations, which are slow in bfloat16.
    """

    @staticmethod
    def forward(ctx, x: Tensor, keys: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, keys)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        own, copy = ctx.saved_tensors[0]
        copied = grad.index_select(0, copy.clamp(min=0)) * (copy >= 0).to(grad.dtype)[:, None, None]
        return grad.index_select(0, own) + copied, None, None

"""Attention over packed rows: the attention mask, and the backends that apply it.

A row holds whole pairs, each laid out as ``prompt | chosen | rejected``; a segment is 3 * pair + role (role 0 prompt,
1 chosen, 2 rejected), -1 on padding. Legend: B rows, T row length, N heads, K key/value heads, D head size.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from mint.ops.pair_attention import PairLayout, pair_attention, pair_layout

Mask = Tensor | BlockMask | PairLayout | None  # None: plain causal attention
BLOCK = 128  # FlexAttention's block size
COMPILED: dict[str, Any] = {"recompile_limit": 64}  # of graphs by shape, role of the adapter and mode; PyTorch has 8
SPLIT_FROM = 256  # row length from which attention per pair is faster than one with a mask (CPU)


def may_attend(
    q_segment: Tensor,
    k_segment: Tensor,
    q_index: Tensor,
    k_index: Tensor,
    q_position: Tensor,
    k_position: Tensor,
    window: int | None = None,
) -> Tensor:
    """Whether a query attends to a key: same pair, not later in the row, in the prompt or of the query's own role.

    All arguments are integer tensors that broadcast together; padding (-1) attends to padding only, so no row of
    the softmax is empty. window: sliding-window attention to keys fewer than ``window`` positions back.
    """
    same_pair = q_segment // 3 == k_segment // 3
    visible_role = (k_segment % 3 == 0) | (k_segment == q_segment)
    allowed = same_pair & visible_role & (k_index <= q_index)
    return allowed if window is None else allowed & (q_position - k_position < window)


def make_mask(
    segments: Tensor, positions: Tensor, window: int | None = None, backend: str = "auto"
) -> Tensor | BlockMask | PairLayout:
    """The mask of packed rows for :func:`attend`.

    segments, positions: [B, T]. backend: ``dense`` = bool [B, 1, T, T]; ``flex`` = a BlockMask, which skips masked
    blocks; ``split`` = the pairs' bounds, for the CPU, without a window; ``auto`` = flex on CUDA for static rows, which
    are whole blocks, elsewhere split for long rows and dense for short ones.
    """
    if backend == "auto":
        length = segments.shape[1]
        if segments.is_cuda:  # flex needs whole blocks
            backend = "dense" if length % BLOCK else "flex"
        else:
            backend = "split" if length >= SPLIT_FROM and window is None else "dense"
    if backend == "flex":
        return _block_mask(segments, positions, window)
    if backend == "split":
        return pair_layout(segments)
    index = torch.arange(segments.shape[1], device=segments.device)
    mask = may_attend(
        segments[:, :, None], segments[:, None, :], index[:, None], index[None, :],
        positions[:, :, None], positions[:, None, :], window,
    )  # fmt: skip
    return mask.unsqueeze(1)


def _block_mask(segments: Tensor, positions: Tensor, window: int | None) -> BlockMask:
    """``may_attend`` from what is known of the query alone: the kernel reads nothing for a key but, in a window, its
    position.
    """
    rows, length = segments.shape
    first, hidden, own = _key_bounds(segments)

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        allowed = (k <= q) & (k >= first[b, q]) & ((k < hidden[b, q]) | (k >= own[b, q]))
        return allowed if window is None else allowed & (positions[b, q] - positions[b, k] < window)

    create = _compiled(create_block_mask) if segments.is_cuda else create_block_mask
    return create(rule, rows, None, length, length, device=segments.device)


def _key_bounds(segments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(first, hidden, own), each [B, T] int32: a query sees keys from first to itself, without hidden..own - 1.

    first: where its pair begins. In a rejected answer, hidden is where the chosen answer begins and own where the
    rejected one does; elsewhere they are equal. Pairs lie as prompt | chosen | rejected.
    """
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    before = F.pad(segments[:, :-1], (1, 0), value=-1)

    def latest(begins: Tensor) -> Tensor:
        return index.where(begins, -1).cummax(1).values

    first, own = latest(segments // 3 != before // 3), latest(segments != before)
    chosen = latest((segments != before) & (segments % 3 == 1))
    hidden = chosen.where((segments % 3 == 2) & (chosen >= first), own)
    return first.int(), hidden.int(), own.int()


@functools.cache
def _compiled(function: Any) -> Any:
    """``function``, compiled for the first shape that it meets, and for any at the second."""
    return torch.compile(function, **COMPILED)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v under ``mask``; query head n reads key/value head n // (N / K).

    q: [B, N, T, D].   k, v: [B, K, S, D].   mask: as :func:`make_mask` gives it, bool [B, 1, T, S], or None for causal
    (T = S).
    """
    if isinstance(mask, PairLayout):
        return pair_attention(q, k, v, mask)
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, BlockMask):
        flex = flex_attention if torch.compiler.is_compiling() or not q.is_cuda else _compiled(flex_attention)
        return flex(q, k, v, block_mask=mask, enable_gqa=grouped)
    if grouped and q.is_cuda:  # there, only some kernels read grouped heads; on the CPU copying them is what costs
        groups = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)

"""Attention over packed rows: the attention mask, and the backends that apply it.

A row holds whole pairs, each laid out as ``prompt | chosen | rejected``; a segment is 3 * pair + role (role 0 prompt,
1 chosen, 2 rejected), -1 on padding. Legend: B rows, T row length, N heads, K key/value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mint.ops.bfloat16 import has_bfloat16
from mint.ops.flash_attention import FlashLayout, flash_attention, flash_layout
from mint.ops.pair_attention import PairLayout, grouped_attention, pair_attention, pair_layout

Mask = Tensor | PairLayout | FlashLayout | None  # None: plain causal attention
SPLIT_FROM = 256  # row length from which attention per pair is faster than one with a mask


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
    segments: Tensor,
    positions: Tensor,
    window: int | None = None,
    backend: str = "auto",
    host: Tensor | None = None,
    flash: bool = False,
) -> Tensor | PairLayout | FlashLayout:
    """The mask of packed rows for :func:`attend`.

    segments, positions: [B, T]. backend: ``dense`` = bool [B, 1, T, T]; ``split`` = the pairs' bounds; ``flash`` = the
    sequences of FlashAttention; ``auto`` = flash where it can be used (flash, of ``flash_reads``), elsewhere split for
    long rows and dense for short ones. host: ``segments`` on the CPU, where layouts are made.
    """
    host = segments if host is None else host
    if backend == "auto":
        backend = "flash" if flash else "split" if segments.shape[1] >= SPLIT_FROM else "dense"
    if backend == "flash":
        return flash_layout(host, segments.device, window)
    if backend == "split":
        return pair_layout(host, window)
    index = torch.arange(segments.shape[1], device=segments.device)
    mask = may_attend(
        segments[:, :, None], segments[:, None, :], index[:, None], index[None, :],
        positions[:, :, None], positions[:, None, :], window,
    )  # fmt: skip
    return mask.unsqueeze(1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v under ``mask``; query head n reads key/value head n // (N / K).

    q: [B, N, T, D].   k, v: [B, K, S, D].   mask: as :func:`make_mask` gives it, bool [B, 1, T, S], or None for causal
    (T = S). Returns [B, N, T, D] in q's dtype. On the CPU, bfloat16 is computed in float32 where that is faster.
    """
    if isinstance(mask, FlashLayout):
        return flash_attention(q, k, v, mask)
    dtype = q.dtype
    if dtype == torch.bfloat16 and not q.is_cuda and (q.requires_grad or not has_bfloat16()):
        q, k, v = q.float(), k.float(), v.float()
    if isinstance(mask, PairLayout):
        return pair_attention(q, k, v, mask).to(dtype)
    return grouped_attention(q, k, v, mask).to(dtype)

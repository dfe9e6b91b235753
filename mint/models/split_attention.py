"""Attention over packed pairs on the CPU, in pieces that leave out what nobody sees.

A dense mask over ``prompt | chosen | rejected`` spends more than half its work on forbidden places. Here every pair is two
causal runs, ``prompt + chosen`` and ``rejected`` behind the same prompt; a run is worked off in pieces of queries, each
against no more keys than its last query sees. PyTorch's fused CPU kernel does the pieces; its ``is_causal`` saves nothing
below 512 keys, so the pieces are cut here.

Legend: B rows, T row length, N heads, K key/value heads, D head size, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

PIECE = 128  # queries of one piece
_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class PairLayout(NamedTuple):
    """Where the pairs lie. bounds: [P, 5] int64: row, and the start of prompt, chosen, rejected and the end within it."""

    bounds: Tensor


def pair_layout(segments: Tensor) -> PairLayout:
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
    return PairLayout(torch.tensor(list(bounds.values()), dtype=torch.int64).view(-1, 5))


def split_attention(q: Tensor, k: Tensor, v: Tensor, layout: PairLayout) -> Tensor:
    """Attention within each pair, rejected blind to chosen; zero at padding. Differentiable, opaque to torch.compile.

    q: [B, N, T, D].   k, v: [B, K, T, D].
    """
    return torch.ops.mint.split_attention(q, k, v, layout.bounds)[0]


class _Piece(NamedTuple):
    """Queries [start, end) of a run that starts at ``run`` and continues ``prefix`` tokens from ``prompt``."""

    row: int
    prompt: int
    prefix: int
    run: int
    start: int
    end: int

    def keys(self, x: Tensor) -> Tensor:
        """[1, K, prefix + end - run, D]: what the last query of the piece sees."""
        own = x[self.row, :, self.run : self.end]
        if self.prefix:
            own = torch.cat((x[self.row, :, self.prompt : self.prompt + self.prefix], own), dim=1)
        return own.unsqueeze(0)

    def queries(self, x: Tensor) -> Tensor:
        return x[self.row, :, self.start : self.end].unsqueeze(0)

    def mask(self, like: Tensor) -> Tensor:
        """[queries, keys]: 0 where seen, -inf where later."""
        seen = self.prefix + self.start - self.run  # keys before the first query
        count = self.end - self.start
        return like.new_full((count, seen + count), -torch.inf).triu_(seen + 1)

    def add_keys(self, total: Tensor, part: Tensor) -> None:
        total[self.row, :, self.prompt : self.prompt + self.prefix] += part[0, :, : self.prefix]
        total[self.row, :, self.run : self.end] += part[0, :, self.prefix :]


def _pieces(bounds: Tensor) -> Iterator[_Piece]:
    for row, prompt, chosen, rejected, end in bounds.tolist():
        for prefix, run, last in ((0, prompt, rejected), (chosen - prompt, rejected, end)):
            for start in range(run, last, PIECE):
                yield _Piece(row, prompt, prefix, run, start, min(start + PIECE, last))


def _empty_like_heads(x: Tensor) -> Tensor:
    """Zeros of x's shape [B, N, T, D], laid out so that joining the heads costs no copy."""
    return x.new_zeros(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


@torch.library.custom_op("mint::split_attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    out = _empty_like_heads(q)
    normaliser = q.new_zeros(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))  # log sum exp of the scores
    for piece in _pieces(bounds):
        mask = piece.mask(q)
        part, lse = _attention(piece.queries(q), piece.keys(k), piece.keys(v), attn_mask=mask)
        piece.queries(out).copy_(part)
        normaliser[piece.row, :, piece.start : piece.end] = lse[0]
    return out, normaliser


@_forward.register_fake
def _(q, k, v, bounds):
    return _empty_like_heads(q), q.new_zeros(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("mint::split_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, normaliser: Tensor, bounds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q_grad, k_grad, v_grad = (_empty_like_heads(x) for x in (q, k, v))
    for piece in _pieces(bounds):
        lse = normaliser[piece.row, :, piece.start : piece.end].unsqueeze(0).contiguous()
        parts = _attention_backward(
            *(piece.queries(grad), piece.queries(q), piece.keys(k), piece.keys(v), piece.queries(out), lse),
            *(0.0, False),  # dropout, is_causal
            attn_mask=piece.mask(q),
        )
        piece.queries(q_grad).copy_(parts[0])
        piece.add_keys(k_grad, parts[1])
        piece.add_keys(v_grad, parts[2])
    return q_grad, k_grad, v_grad


@_backward.register_fake
def _(grad, q, k, v, out, normaliser, bounds):
    return tuple(_empty_like_heads(x) for x in (q, k, v))


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3], *output, inputs[3])


def _differentiate(ctx, grad, _):
    q, k, v, out, normaliser, bounds = ctx.saved_tensors
    return *_backward(grad, q, k, v, out, normaliser, bounds), None


_forward.register_autograd(_differentiate, setup_context=_keep)

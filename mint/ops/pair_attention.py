"""Attention over packed pairs on the CPU, in pieces that leave out what nobody sees.

A dense mask over ``prompt | chosen | rejected`` spends more than half its work on forbidden places. Here every pair is two
causal runs, ``prompt + chosen`` and ``rejected`` behind the same prompt; a run is worked off in pieces of queries, each
against no more keys than its last query sees. A piece is two products of matrices forward and five backward: its weights fit
the cache, and are taken again for the backward pass, not kept.

Legend: B rows, T row length, N heads, K key/value heads, G = N / K, D head size, P pairs, S keys seen, C queries of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

PIECE = 128  # queries of one piece


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
    return torch.ops.mint.split_attention(q, k, v, layout.bounds)


class _Run(NamedTuple):
    """Tokens [start, end) of a row, which continue the ``prefix`` tokens from ``prompt`` on and see them all."""

    row: int
    prompt: int
    prefix: int
    start: int
    end: int

    def keys(self, x: Tensor) -> Tensor:
        """[K, prefix + end - start, D]: what the last token of the run sees, in float32 at least."""
        own = x[self.row, :, self.start : self.end]
        if self.prefix:
            own = torch.cat((x[self.row, :, self.prompt : self.prompt + self.prefix], own), dim=1)
        return own.to(_wide(x))

    def add_keys(self, total: Tensor, part: Tensor) -> None:
        """Adds ``part``, of the shape of :meth:`keys`, to where the keys lie in ``total``."""
        total[self.row, :, self.prompt : self.prompt + self.prefix] += part[:, : self.prefix]
        total[self.row, :, self.start : self.end] += part[:, self.prefix :]

    def pieces(self) -> Iterator[tuple[slice, int]]:
        """(queries, number of keys that the last of them sees)."""
        for start in range(self.start, self.end, PIECE):
            end = min(start + PIECE, self.end)
            yield slice(start, end), self.prefix + end - self.start

    def queries(self, x: Tensor, piece: slice, kv_heads: int) -> Tensor:
        """[K, G C, D]: the heads that read the same keys and values one below the other, in float32 at least."""
        return x[self.row, :, piece].to(_wide(x)).reshape(kv_heads, -1, x.shape[-1])


def _runs(bounds: Tensor) -> Iterator[_Run]:
    for row, prompt, chosen, rejected, end in bounds.tolist():
        yield _Run(row, prompt, 0, prompt, rejected)
        if end > rejected:
            yield _Run(row, prompt, chosen - prompt, rejected, end)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _later(x: Tensor) -> Tensor:
    """[PIECE, PIECE]: 0 where a query of a piece sees a key of the same piece, -inf where the key comes later."""
    return x.new_full((PIECE, PIECE), -torch.inf, dtype=_wide(x)).triu_(1)


def _zeros_like_heads(x: Tensor) -> Tensor:
    """Zeros of x's shape [B, N, T, D], laid out so that joining the heads costs no copy."""
    return x.new_zeros(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


def _weights(queries: Tensor, keys: Tensor, later: Tensor, count: int) -> Tensor:
    """[K, G C, S]: the softmax of a piece's scores. queries: [K, G C, D]; keys: [K, S, D]; count: C."""
    scores = torch.baddbmm(queries.new_empty(()), queries, keys.mT, beta=0, alpha=keys.shape[-1] ** -0.5)
    scores.view(len(keys), -1, count, keys.shape[1])[..., -count:] += later[:count, :count]
    return scores.softmax(-1)


@torch.library.custom_op("mint::split_attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
    out, later = _zeros_like_heads(q), _later(q)
    for run in _runs(bounds):
        keys, values = run.keys(k), run.keys(v)
        for piece, seen in run.pieces():
            weights = _weights(run.queries(q, piece, len(keys)), keys[:, :seen], later, piece.stop - piece.start)
            part = torch.bmm(weights, values[:, :seen])
            out[run.row, :, piece] = part.view(q.shape[1], -1, q.shape[3])
    return out


@_forward.register_fake
def _(q, k, v, bounds):
    return _zeros_like_heads(q)


@torch.library.custom_op("mint::split_attention_backward", mutates_args=())
def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (q_grad, k_grad, v_grad), later = (_zeros_like_heads(x) for x in (q, k, v)), _later(q)
    scale = q.shape[-1] ** -0.5
    for run in _runs(bounds):
        keys, values = run.keys(k), run.keys(v)
        key_grads, value_grads = torch.zeros_like(keys), torch.zeros_like(values)
        for piece, seen in run.pieces():
            own, own_grad = (run.queries(x, piece, len(keys)) for x in (q, grad))
            weights = _weights(own, keys[:, :seen], later, piece.stop - piece.start)
            value_grads[:, :seen].baddbmm_(weights.mT, own_grad)
            weights_grad = torch.bmm(own_grad, values[:, :seen].mT)
            scores_grad = torch._softmax_backward_data(weights_grad, weights, -1, weights.dtype).mul_(scale)
            key_grads[:, :seen].baddbmm_(scores_grad.mT, own)
            q_grad[run.row, :, piece] = torch.bmm(scores_grad, keys[:, :seen]).view(q.shape[1], -1, q.shape[3])
        run.add_keys(k_grad, key_grads)
        run.add_keys(v_grad, value_grads)
    return q_grad, k_grad, v_grad


@_backward.register_fake
def _(grad, q, k, v, bounds):
    return tuple(_zeros_like_heads(x) for x in (q, k, v))


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):
    return *_backward(grad, *ctx.saved_tensors), None


_forward.register_autograd(_differentiate, setup_context=_keep)

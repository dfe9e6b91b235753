"""FlashAttention's kernels spelled out, so that what is computed around them can be tested without a GPU."""

import itertools

import pytest
import torch


def _sequences(q, k, v, starts, key_starts, causal, left):
    """Of each sequence: its slices of queries and of keys, queries, keys and values [N, L, D], weights [N, L, S].

    The last query is at the place of the last key.
    """
    groups = q.shape[1] // k.shape[1]
    q, k, v = (x.transpose(0, 1).repeat_interleave(n, 0) for x, n in ((q, 1), (k, groups), (v, groups)))
    bounds = [[slice(*each) for each in itertools.pairwise(x.tolist())] for x in (starts, key_starts)]
    for queries, keys in zip(*bounds, strict=True):
        place = torch.arange(keys.start, keys.stop)
        behind = place[-(queries.stop - queries.start) :, None] - place
        assert causal or left >= 0
        seen = (behind >= 0) & ((behind <= left) if left >= 0 else True)
        scores = q[:, queries] @ k[:, keys].mT / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        yield queries, keys, q[:, queries], k[:, keys], v[:, keys], weights


def _forward(q, k, v, starts, key_starts, max_q, max_k, dropout, causal, debug=False, *, window_size_left, **_):
    assert max_q >= starts.diff().max() and max_k >= key_starts.diff().max()
    out = torch.empty_like(q)
    for queries, _, _, _, values, weights in _sequences(q, k, v, starts, key_starts, causal, window_size_left):
        out[queries] = (weights @ values).transpose(0, 1)
    unused = torch.empty(0)
    return out, q.new_zeros(q.shape[1], len(q), dtype=torch.float32), unused, unused, unused


def _backward(
    grad, q, k, v, out, lse, starts, key_starts, max_q, max_k, dropout, causal, seed, unused, *, window_size_left, **_
):
    grads = [torch.zeros_like(x) for x in (q, k, v)]
    for at, seen, queries, keys, values, weights in _sequences(q, k, v, starts, key_starts, causal, window_size_left):
        upstream = grad[at].transpose(0, 1)
        of_weights = upstream @ values.mT
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
        parts = (of_scores @ keys, of_scores.mT @ queries, weights.mT @ upstream)
        for total, place, part in zip(grads, (at, seen, seen), parts, strict=True):
            heads = total.shape[1]  # of a group's queries, the sum
            total[place] = part.unflatten(0, (heads, -1)).sum(1).transpose(0, 1)
    return tuple(grads)


def register() -> torch.library.Library:
    """The kernels as those of ``torch.ops.aten`` on the CPU, which has none, until the library is destroyed."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _forward, "CPU")
    library.impl("_flash_attention_backward", _backward, "CPU")
    return library


@pytest.fixture
def flash_on_cpu():
    """The kernels that ``varlen_attn`` calls, in plain operations."""
    library = register()
    yield
    library._destroy()

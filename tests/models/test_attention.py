"""The attention rule against a row written out by hand, and the backends against softmax spelled out."""

import pytest
import torch

from mint.models.attention import attend, make_mask

# One row: a pair (prompt 2, chosen 2, rejected 2), a second pair (prompt 1, chosen 1, rejected 1), one padding cell.
SEGMENTS = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 4, 5, -1]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 2, 3, 0, 1, 1, 0]])
SEEN = """
    x.........
    xx........
    xxx.......
    xxxx......
    xx..x.....
    xx..xx....
    ......x...
    ......xx..
    ......x.x.
    .........x
"""
SEEN_IN_WINDOW_OF_2 = """
    x.........
    xx........
    .xx.......
    ..xx......
    .x..x.....
    ....xx....
    ......x...
    ......xx..
    ......x.x.
    .........x
"""


def drawn(picture):
    """[T, T] bool: queries down, keys across."""
    return torch.tensor([[cell == "x" for cell in line] for line in picture.split()])


@pytest.mark.parametrize("window, picture", [(None, SEEN), (2, SEEN_IN_WINDOW_OF_2)])
def test_who_sees_whom(window, picture):
    mask = make_mask(SEGMENTS, POSITIONS, window)
    assert mask.shape == (1, 1, 10, 10) and mask.dtype == torch.bool
    assert torch.equal(mask[0, 0], drawn(picture))


def random_qkv(rows, heads, kv_heads, length, size, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(rows, n, length, size) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes]


def spelled_out(q, k, v, seen):
    """Attention one query at a time; seen: [B, T, T] bool."""
    rows, heads, length, size = q.shape
    groups = heads // k.shape[1]
    answers = []
    for b in range(rows):
        for n in range(heads):
            for t in range(length):
                keys = seen[b, t].nonzero().squeeze(1)
                weights = (k[b, n // groups, keys] @ q[b, n, t] / size**0.5).softmax(0)
                answers.append(weights @ v[b, n // groups, keys])
    return torch.stack(answers).view(rows, heads, length, size)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("packed", [True, False])
def test_attention_and_its_gradients_equal_softmax_spelled_out(kv_heads, packed):
    q, k, v = random_qkv(1, 4, kv_heads, 10, 8)
    seen = drawn(SEEN) if packed else torch.ones(10, 10, dtype=torch.bool).tril()
    mask = make_mask(SEGMENTS, POSITIONS) if packed else None
    ours, expected = attend(q, k, v, mask), spelled_out(q, k, v, seen[None])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = (torch.autograd.grad(x, (q, k, v), upstream) for x in (ours, expected))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
@torch.no_grad()  # FlexAttention has no backward pass on the CPU
def test_flex_equals_dense(kv_heads, window):
    segments = torch.cat((SEGMENTS, torch.tensor([[6, 6, 6, 7, 8, 8, 8, -1, -1, -1]])))
    positions = torch.cat((POSITIONS, torch.tensor([[0, 1, 2, 3, 3, 4, 5, 0, 0, 0]])))
    q, k, v = (x.float() for x in random_qkv(2, 4, kv_heads, 10, 8))
    dense, flex = (attend(q, k, v, make_mask(segments, positions, window, b)) for b in ("dense", "flex"))
    assert torch.isfinite(dense).all()
    torch.testing.assert_close(flex, dense, rtol=0, atol=1e-5)

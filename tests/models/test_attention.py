"""The attention rule against a row written out by hand, and the backends against softmax spelled out."""

import pytest
import torch

from mint.models import attention
from mint.models.attention import SPLIT_FROM, attend, make_mask
from mint.ops.flash_attention import FlashLayout, flash_reads
from mint.ops.pair_attention import PairLayout, pair_layout

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
@pytest.mark.parametrize("backend", ["dense", "split", "flash", None])
@pytest.mark.usefixtures("flash_on_cpu")
def test_attention_and_its_gradients_equal_softmax_spelled_out(kv_heads, backend):
    q, k, v = random_qkv(1, 4, kv_heads, 10, 8)
    seen = drawn(SEEN) if backend else torch.ones(10, 10, dtype=torch.bool).tril()
    mask = make_mask(SEGMENTS, POSITIONS, backend=backend) if backend else None
    ours, expected = attend(q, k, v, mask), spelled_out(q, k, v, seen[None])
    if backend == "split":  # which leaves zeros at padding, where nobody looks
        assert not ours[:, :, -1].any()
        ours, expected = ours[:, :, :-1], expected[:, :, :-1]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = (torch.autograd.grad(x, (q, k, v), upstream) for x in (ours, expected))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.usefixtures("flash_on_cpu")
def test_flash_equals_dense(kv_heads, window):
    """Over two rows, with padding within a row and at its end, pairs without some of their parts, and a window."""
    segments = torch.cat((SEGMENTS, torch.tensor([[6, 6, 6, 8, 8, -1, 12, 13, 17, -1]])))
    positions = torch.cat((POSITIONS, torch.tensor([[0, 1, 2, 3, 4, 0, 0, 1, 0, 0]])))
    q, k, v = random_qkv(2, 4, kv_heads, 10, 8)
    real = (segments >= 0)[:, None, :, None]  # padding sees other padding in one, and less of it in the other
    dense, flash = (attend(q, k, v, make_mask(segments, positions, window, b)) * real for b in ("dense", "flash"))
    upstream = torch.randn(dense.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    both = ((x, *torch.autograd.grad(x, (q, k, v), upstream)) for x in (flash, dense))
    for got, wanted in zip(*both, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def packed_rows(lengths):
    """Segments and positions [1, T] of pairs given as (prompt, chosen, rejected) lengths."""
    segments = [3 * n + role for n, pair in enumerate(lengths) for role in range(3) for _ in range(pair[role])]
    positions = [i for p, c, r in lengths for i in (*range(p + c), *range(p, p + r))]
    return torch.tensor([segments]), torch.tensor([positions])


def test_layout_finds_empty_roles_and_later_rows():
    segments = torch.tensor([[0, 0, 1, 2, 2, -1], [3, 4, 4, 6, 7, 8]])
    assert pair_layout(segments).bounds.tolist() == [[0, 0, 2, 3, 5], [1, 0, 1, 3, 3], [1, 3, 4, 5, 6]]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("window", [None, 9])
def test_split_equals_dense_over_several_pairs(compiled, window):
    segments, positions = packed_rows([(150, 30, 140), (3, 200, 0), (1, 1, 1)])
    q, k, v = (x.detach().float().requires_grad_() for x in random_qkv(1, 4, 2, segments.shape[1], 8))
    assert segments.shape[1] >= SPLIT_FROM and isinstance(make_mask(segments, positions), PairLayout)
    run = torch.compile(attend) if compiled else attend
    split = run(q, k, v, make_mask(segments, positions, window))
    dense = attend(q, k, v, make_mask(segments, positions, window, "dense"))
    torch.testing.assert_close(split, dense, rtol=0, atol=1e-5)
    gradients = (torch.autograd.grad((x * x).sum(), (q, k, v)) for x in (split, dense))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "device, dtype, head_dim, reads",
    [
        ("cuda", torch.bfloat16, 128, True),
        ("cuda", torch.float16, 64, True),
        ("cuda", torch.float32, 128, False),
        ("cuda", torch.bfloat16, 20, False),
        ("cuda", torch.bfloat16, 512, False),
        ("cpu", torch.bfloat16, 128, False),
    ],
)
def test_what_flash_attention_reads(device, dtype, head_dim, reads, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert flash_reads(torch.device(device), dtype, head_dim) is reads
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not flash_reads(torch.device(device), dtype, head_dim)


def test_flash_attention_is_taken_where_it_can_be():
    assert isinstance(make_mask(SEGMENTS, POSITIONS, 5, flash=True), FlashLayout)


@pytest.mark.parametrize("backend", ["dense", "split"])
@pytest.mark.parametrize(("instructions", "trained"), [(False, False), (True, False), (True, True)])
def test_bfloat16_on_the_cpu(instructions, trained, backend, monkeypatch):
    """Only inputs and results are rounded; with bfloat16 instructions and no gradients, the softmax's weights too."""
    monkeypatch.setattr(attention, "has_bfloat16", lambda: instructions)
    segments, positions = packed_rows([(20, 9, 13)])
    inputs = [x.detach().bfloat16() for x in random_qkv(1, 4, 2, segments.shape[1], 8)]
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        qkv = [x.to(dtype).requires_grad_(trained) for x in inputs]
        out = attend(*qkv, make_mask(segments, positions, backend=backend))
        results.append([out, *(torch.autograd.grad(out.sum(), qkv) if trained else ())])
    for low, high in zip(*results, strict=True):
        assert low.dtype == torch.bfloat16
        if instructions and not trained:
            assert (low.float() - high).norm() < 0.01 * high.norm()
        else:
            torch.testing.assert_close(low.float(), high, rtol=2**-7, atol=2**-10)

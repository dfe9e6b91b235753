"""The order of the pairs, and batch shapes: the plain definitions, at the cost of an epoch's permutation."""

import random
from dataclasses import replace

import pytest
import torch

from mint.data.batch import EncodedPair, collate, make_batches, pack
from mint.data.order import PairOrder, batch_shape


def plain_order(step, size, total, seed):
    """The definition: every epoch is a permutation drawn from its own seed; a step is a slice of their stream."""
    stream = []
    for epoch in range((step + 1) * size // total + 1):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        stream += torch.randperm(total, generator=generator).tolist()
    return stream[step * size : (step + 1) * size]


@pytest.mark.parametrize("seed", [0, 5, 2**40])
@pytest.mark.parametrize(("size", "total"), [(3, 10), (5, 10), (25, 10), (4, 1)])
def test_steps_are_slices_of_the_stream_of_epochs(size, total, seed):
    order = PairOrder(total, seed)
    steps = [*range(12), 3, 11, 0]  # also out of turn
    assert [order.step(step, size) for step in steps] == [plain_order(step, size, total, seed) for step in steps]
    batches = torch.cat(list(order.batches(size, 12))).tolist()
    assert batches == [plain_order(step, size, total, seed) for step in range(12)]


def test_the_order_stays_the_one_of_earlier_versions():
    assert PairOrder(6, 3).step(0, 9) == [2, 5, 4, 0, 3, 1, 3, 1, 5]


def test_a_permutation_is_drawn_once_an_epoch(monkeypatch):
    drawn, randperm = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda total, **kw: drawn.append(total) or randperm(total, **kw))
    order = PairOrder(100, 0)
    for step in range(100):  # 3 epochs
        order.step(step, 3)
    assert drawn == [100] * 3
    pairs = [EncodedPair(str(n), [1] * n, [2], [3]) for n in range(1, 101)]
    batch_shape(pairs, [], PairOrder(100, 0), 3, 100, compiled=True, split_from=None)
    assert drawn == [100] * 6


@pytest.mark.parametrize(
    ("scale", "split", "expected"), [(1, False, 128), (1, True, 96), (10, False, 1024), (10, True, 1800)]
)
def test_static_shapes_hold_every_batch_of_the_run(scale, split, expected):
    lengths = [scale * n for n in (10, 50, 70, 90, 20, 60, 30)]
    pairs = [EncodedPair(str(n), [1] * (n - 2), [2], [3]) for n in lengths]
    order = PairOrder(5, 0)
    shape = batch_shape(pairs[:5], pairs, order, 3, 8, compiled=True, split_from=256 if split else None)
    assert shape["row_length"] == expected
    for step in range(8):
        collate([pairs[i] for i in order.step(step, 3)], **shape)
    assert all(batch.tokens.shape == (shape["rows"], expected) for batch in make_batches(pairs, 3, **shape))


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("longest", [60, 130, 600])
def test_no_more_rows_than_the_fullest_batch_needs(size, longest):
    draw = random.Random(longest)
    pairs = []
    for n in range(50):
        pair = EncodedPair(str(n), [1] * draw.randint(1, longest), [2], [3])
        twin = EncodedPair(str(n), [1] * draw.randint(1, longest), [2], []) if n % 3 == 0 else None
        pairs.append(replace(pair, twin=twin))
    order = PairOrder(len(pairs), 1)
    shape = batch_shape(pairs, pairs[:5], order, size, 30, compiled=True, split_from=None)
    batches = [[pairs[i] for i in order.step(step, size)] for step in range(30)]
    batches += [pairs[:5][i : i + size] for i in range(0, 5, size)]
    lengths = [[n for pair in batch for n in pair.lengths] for batch in batches]
    assert shape["row_length"] == -(-max(map(max, lengths)) // 128) * 128
    assert shape["rows"] == max(len(pack(some, shape["row_length"])) for some in lengths)


def test_long_pairs_lie_in_one_row_with_little_padding():
    pairs = [EncodedPair(str(n), [1] * (n - 2), [2], [3]) for n in (400, 200, 300)]
    shape = batch_shape(pairs, [], PairOrder(3, 0), 4, 8, compiled=False, split_from=256)
    assert collate(pairs, **shape).tokens.shape == (1, 904)  # the next multiple of 8
    assert batch_shape(pairs[1:2], [], PairOrder(1, 0), 4, 8, compiled=False, split_from=256) == {}

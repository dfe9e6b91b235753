"""The order of the pairs, and batch shapes: the plain definitions, at the cost of an epoch's permutation."""

import random
from dataclasses import replace

import pytest
import torch

from mint import parallel
from mint.data.batch import EncodedPair, batch_count, collate, make_batches
from mint.data.order import PairOrder, batch_shape
from mint.data.packing import divide


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


def pairs_of(lengths, twins=()):
    pairs = [EncodedPair(str(i), [1] * (n - 2), [2], [3]) for i, n in enumerate(lengths)]
    return [replace(pair, twin=replace(pair, rejected=[])) if i in twins else pair for i, pair in enumerate(pairs)]


def rows_of(pairs, shape, parts):
    """(pairs, tokens, shape) of each batch of the run. parts: the indices of the pairs of each step and process."""
    batches = [make_batches([pairs[i] for i in part], 1, **shape) for part in parts]
    return [(batch.pairs, batch.token_total, batch.tokens.shape) for step in batches for batch in step]


@pytest.mark.parametrize(("split_from", "multiple"), [(None, 128), (256, 8)])
@pytest.mark.parametrize(("batch_size", "grad_accum"), [(1, 1), (3, 1), (2, 4), (8, 3)])
def test_rows_by_tokens_hold_every_pair_of_the_run(batch_size, grad_accum, split_from, multiple):
    draw = random.Random(batch_size)
    pairs = pairs_of([draw.randint(3, 900) for _ in range(40)], twins=range(0, 40, 3))
    held_out = pairs_of([draw.randint(3, 900) for _ in range(7)] + [3000])
    order, per_step = PairOrder(len(pairs), 1), batch_size * grad_accum
    shape = batch_shape(pairs, order, batch_size, True, split_from)
    rows = rows_of(pairs, shape, [order.step(step, per_step) for step in range(30)])
    assert sum(count for count, _, _ in rows) == 30 * per_step
    for _, tokens, row in rows:
        assert row == (1, -(-tokens // multiple) * multiple) and tokens <= shape["budget"]
    assert sorted(id for batch in make_batches(held_out, 1, **shape) for id in batch.ids) == list("01234567")


@pytest.mark.parametrize("sigma", [0.35, 0.6])
@pytest.mark.parametrize(("batch_size", "grad_accum", "processes"), [(8, 1, 1), (16, 2, 1), (8, 8, 4), (8, 8, 8)])
def test_rows_by_tokens_have_little_padding(batch_size, grad_accum, processes, sigma, monkeypatch):
    """Log-normal lengths with a median of 700: at most 1.02 cells for each token, in hardly more passes than asked."""
    monkeypatch.setattr(parallel, "_size", processes)
    normal = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    pairs = pairs_of((700 * (sigma * normal).exp()).long().clamp(3, 4096).tolist())
    order, per_step = PairOrder(len(pairs), 0), batch_size * grad_accum
    shape = batch_shape(pairs, order, batch_size, True, None)
    steps = 800 // per_step
    own = [parallel.part(order.step(s, per_step), batch_size, rank) for s in range(steps) for rank in range(processes)]
    rows = rows_of(pairs, shape, own)
    assert sum(row.numel() for _, _, row in rows) <= 1.02 * sum(tokens for _, tokens, _ in rows)
    assert len(rows) <= 1.1 * grad_accum * steps


def test_a_rare_long_pair_does_not_make_every_batch_long():
    """Which may be one of the evaluation, or come later in a streamed file."""
    pairs, held_out = pairs_of([100] * 40), pairs_of([100, 1000])
    shape = batch_shape(pairs, PairOrder(40, 0), 2, True, None)
    assert shape == {"rows": 1, "multiple": 128, "budget": 200}
    later = pairs_of([100, 4000, 100, 100, 100])
    for some, expected in ((pairs[:4], [256, 256]), (held_out, [128, 1024]), (later, [256, 256, 4096])):
        batches = list(make_batches(some, 2, **shape))
        assert [batch.tokens.shape[1] for batch in batches] == expected and batch_count(some, 2, **shape) == len(
            batches
        )


def test_pairs_are_divided_into_few_groups_of_about_equal_length():
    assert divide([5, 9, 3, 7], 24) == [[0, 1, 2, 3]]
    assert divide([5, 9, 3, 7], 12) == [[1, 2], [0, 3]]
    assert divide([6, 6, 6], 11) == [[0], [1], [2]]
    assert divide([], 11) == [] == list(make_batches([], 2, rows=1, budget=8))  # a process without pairs
    lengths = [random.Random(n).randint(1, 90) for n in range(50)]
    groups = divide(lengths, 300)
    sums = [sum(lengths[i] for i in group) for group in groups]
    assert sorted(i for group in groups for i in group) == list(range(50))
    assert max(sums) <= 300 and len(groups) == -(-sum(lengths) // 300) and max(sums) - min(sums) <= 10
    assert divide([5, 9, 2], 8) == [[0, 2], [1]]


def test_long_pairs_lie_in_one_row_with_little_padding():
    pairs = [EncodedPair(str(n), [1] * (n - 2), [2], [3]) for n in (400, 200, 300)]
    shape = batch_shape(pairs, PairOrder(3, 0), 4, False, split_from=256)
    assert collate(pairs, **shape).tokens.shape == (1, 904)  # the next multiple of 8
    assert batch_shape(pairs[1:2], PairOrder(1, 0), 4, False, split_from=256) == {}

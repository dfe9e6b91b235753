"""Ranks, parts and sums, and the shares of a run on 64 processes, without a model."""

import subprocess
import sys

import pytest
import torch

from mint import parallel
from mint.data.batch import EncodedPair, tokens_per_pair
from mint.data.order import PairOrder, StepPairs
from mint.training.forward import Forward
from tests.conftest import ROOT
from tests.parallel.launch import launch


def test_parts_are_adjacent_whole_units_that_differ_by_one_at_most():
    items = list(range(23))
    parts = [parallel.part(items, 4, rank, 4) for rank in range(4)]
    assert parts == [items[:4], items[4:12], items[12:16], items[16:]]
    assert [item for part in parts for item in part] == items
    assert [len(parallel.part(items[:5], 2, rank, 7)) for rank in range(7)] == [0, 0, 2, 0, 2, 0, 1]
    assert parallel.part(items, 4) is not None and list(parallel.part(items, 4)) == items


def test_one_process_starts_nothing():
    code = (
        "import sys, mint.parallel as p\n"
        "with p.processes():\n"
        "    assert (p.rank(), p.size(), p.gather(3), p.on_main(lambda: 4)) == (0, 1, [3], 4)\n"
        "    assert p.sum_step([], {'loss': 1.0}, 5) == ({'loss': 1.0}, 5)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def small_network(absent):
    """Three matrices of two dtypes; ``absent``: indices that have no gradient."""
    shapes, dtypes = ((3, 4), (2,), (5, 1)), (torch.float32, torch.float64, torch.float32)
    network = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in zip(shapes, dtypes, strict=True)]
    for place, p in enumerate(network):
        if place not in absent:
            p.grad = torch.full_like(p, place + 10.0 * (parallel.rank() + 1))
    return network


@pytest.mark.parametrize("bucket", [8, 2**20])
def test_gradients_and_metrics_are_summed_and_absent_ones_stay_absent(tmp_path, monkeypatch, bucket):
    monkeypatch.setattr(parallel, "BUCKET_BYTES", bucket)

    def job():
        with parallel.processes():
            network = small_network({0, 2} if parallel.rank() else {2})
            metrics = {"loss": torch.tensor(0.25), f"of {parallel.rank()}": 1.0}
            total, tokens = parallel.sum_step(network, metrics, 7)
            assert total == {"loss": 0.75, "of 0": 1.0, "of 1": 1.0, "of 2": 1.0} and tokens == 21
            assert torch.equal(network[0].grad, torch.full((3, 4), 10.0))
            assert torch.equal(network[1].grad, torch.full((2,), 63.0, dtype=torch.float64))
            assert network[2].grad is None
            parallel.barrier()
            assert parallel.on_main(parallel.rank) == 0 and parallel.gather(parallel.rank()) == [0, 1, 2]

    ended = launch(3, tmp_path, job)
    assert ended.statuses == [0] * 3, ended.printed


def test_a_process_reads_its_own_pairs_alone_and_token_counts_are_of_all(tmp_path):
    """Of 7 pairs in units of 2: the middle process has 2, and counts as one process would."""
    pairs = [EncodedPair(str(n), [1] * (n + 2), [2] * (n + 1), [3] * (9 - n)) for n in range(8)]

    class Read(list):
        def __getitem__(self, place):
            assert isinstance(place, int)
            read.append(place)
            return list.__getitem__(self, place)

    def job():
        with parallel.processes():
            some = StepPairs(Read(pairs), [6, 5, 4, 3, 2, 1, 0])
            shares = []
            for batch, tokens, share in Forward(None, None, batch_size=2, prompt_targets=True).micro_batches(some):
                assert tokens == pytest.approx(tokens_per_pair(pairs[:7], True), rel=1e-12)
                shares.append((batch.ids, share))
            assert read == [[6, 5], [4, 3], [2, 1, 0]][parallel.rank()]
            assert [share for _, share in shares] == [[2 / 7], [2 / 7], [2 / 7, 1 / 7]][parallel.rank()]
            assert sum((list(ids) for ids, _ in shares), []) == [str(place) for place in read]

    read = []
    ended = launch(3, tmp_path, job)
    assert ended.statuses == [0] * 3, ended.printed


def test_a_million_pairs_on_64_processes():
    """Order, parts and tokens of every rank beyond an epoch of 1,000,000 pairs of 700 tokens, and resuming anywhere."""
    pairs, length, ranks, batch, accumulate = 1_000_000, 700, 64, 4, 128
    size = batch * accumulate
    steps = pairs // size + 10
    order, seen, tokens = PairOrder(pairs, seed=3), torch.zeros(pairs, dtype=torch.int64), [0] * ranks
    kept = {}  # the parts of some steps
    for step in range(steps):
        indices = order.step(step, size)
        parts = [parallel.part(indices, batch, rank, ranks) for rank in range(ranks)]
        assert [index for part in parts for index in part] == indices  # the micro-batches are those of one process
        seen.index_add_(0, torch.tensor(indices), torch.ones(size, dtype=torch.int64))
        for rank, part in enumerate(parts):
            tokens[rank] += length * len(part)
        if step % 500 == 7:
            kept[step] = parts
    extra = steps * size - pairs
    assert seen.unique().tolist() == [1, 2] and (seen == 2).sum() == extra  # every pair once before any comes again
    assert set(tokens) == {steps * size * length // ranks}
    for step, parts in kept.items():  # a run that continues there, on as many processes and on half of them
        indices = PairOrder(pairs, seed=3).step(step, size)
        assert [parallel.part(indices, batch, rank, ranks) for rank in range(ranks)] == parts
        halves = [parallel.part(indices, batch, rank, ranks // 2) for rank in range(ranks // 2)]
        assert halves == [parts[2 * rank] + parts[2 * rank + 1] for rank in range(ranks // 2)]

"""The GPU benchmark in its small version: its parts, its numbers, and that a stopped one goes on."""

import argparse
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import page, parts, peer, worker
from benchmarks.gpu.agreement import compare
from benchmarks.gpu.flops import PEAK, count_flops
from benchmarks.gpu.problems import PROBLEMS
from mint.errors import InputError
from mint.models import init_model

RUNS = ("tiny", ["orpo", "fire"]), ("tiny vision", ["fire"])
TEXT = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 100,
}  # fmt: skip


def run_part(kind, **arguments):
    rows = []
    worker.run_part(kind, arguments, rows.append)
    return rows


@pytest.fixture(scope="module")
def measured():
    """The rows of all steps."""
    return [row for problem, losses in RUNS for row in run_part("steps", problem=problem, objectives=losses, steps=1)]


@pytest.fixture(scope="module")
def rows(measured):
    """Of steps with activations kept, by problem and loss."""
    return {(row["problem"], row["objective"]): row for row in measured if not row["recompute"]}


def test_steps_with_activations_recomputed_are_the_same(measured, rows):
    recomputed = {(row["problem"], row["objective"]): row for row in measured if row["recompute"]}
    assert recomputed.keys() == rows.keys()
    for key, row in recomputed.items():
        assert row["loss"] == pytest.approx(rows[key]["loss"], abs=1e-6) and row["tokens"] == rows[key]["tokens"]
        assert row["graphs"] == row["recompilations"] == 0


def test_operations_by_hand():
    """A layer has 8 (8 + 4) 2 + 3 8 16 = 576 weights; 3 + 2 + 1 tokens see 6 + (6 + 3) + (3 + 1) = 19 keys."""
    flops = count_flops(TEXT, [(3, 2, 1)], reference=False, prompt_targets=False, adapter=10)
    assert (flops.layers, flops.attention) == (4 * 2 * 576 * 6, 12 * 8 * 2 * 19)
    assert (flops.head, flops.adapter) == (4 * 8 * 100 * 3, 6 * 10 * 6)
    more = count_flops(TEXT, [(3, 2, 1)] * 2, reference=True, prompt_targets=True, adapter=10)
    assert (more.layers, more.attention) == (2 * 6 * 2 * 576 * 6, 2 * 16 * 8 * 2 * 19)
    assert (more.head, more.adapter) == (2 * 6 * 8 * 100 * 5, 2 * 6 * 10 * 6)


def test_operations_of_the_reference_are_those_that_pytorch_counts():
    """The reference is a forward pass; PyTorch counts all queries with all keys."""
    model, length = init_model(PROBLEMS["tiny"].config), 32
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(1, length, dtype=torch.int64))
    with_reference, without = (
        count_flops(model.config.raw, [(1, length - 1, 0)], reference, False, 0) for reference in (True, False)
    )
    heads = counter.get_flop_counts()["Global"]
    attention = sum(n for name, n in heads.items() if "attention" in str(name))
    head = 2 * 64 * 512 * length
    assert with_reference.layers - without.layers == counter.get_total_flops() - attention - head
    assert with_reference.head - without.head == head * (length - 1) // length


@pytest.mark.parametrize("problem", ["3B", "8B", "Qwen3-VL-4B"])
def test_published_shapes(problem):
    """The models have about as many parameters as their names say."""
    from mint.models.checkpoint import build_model

    model = build_model(PROBLEMS[problem].config, problem)
    size = sum(p.numel() for p in model.parameters()) / 1e9
    assert size == pytest.approx({"3B": 3.21, "8B": 8.03, "Qwen3-VL-4B": 4.44}[problem], abs=0.01)


def test_pairs_have_the_lengths_of_the_problem():
    lengths = [[len(ids) for ids in pair.values()] for pair in PROBLEMS["3B"].pairs(300)]
    for mean, found in zip((600, 110, 250), zip(*lengths, strict=True), strict=True):
        assert sum(found) / len(found) == pytest.approx(mean, rel=0.06)


def test_steps_are_counted(rows):
    problem = PROBLEMS["tiny"]
    pairs = problem.pairs(problem.per_step)
    tokens = sum(len(ids) for pair in pairs for ids in pair.values())
    targets = {"orpo": tokens - len(pairs), "fire": tokens - sum(len(pair["prompt"]) for pair in pairs)}
    for loss, passes in (("orpo", 4), ("fire", 6)):
        row = rows["tiny", loss]
        assert row["pairs"] == len(pairs) and row["tokens"] == tokens <= row["cells"]
        assert row["flops"]["layers"] == passes * 2 * 36_864 * tokens
        assert row["flops"]["head"] == passes * 64 * 512 * targets[loss]
        assert row["flops"]["adapter"] == 6 * row["trainable"] * tokens
        assert row["parameters"] == 2 * (36_864 + 2 * 64) + 64 + 512 * 64
        assert row["recompilations"] == 0
    assert rows["tiny", "orpo"]["graphs"] == 1
    assert rows["tiny", "fire"]["graphs"] == 1  # of the reference; ORPO has compiled the policy


def test_numbers_of_the_table_agree(rows):
    for row in rows.values():
        found, flops = page.derive(row), row["flops"]
        assert found["pairs"] * row["seconds"] == pytest.approx(row["pairs"])
        assert found["tokens"] * row["seconds"] == pytest.approx(row["tokens"])
        assert (1 - found["padding"]) * row["cells"] == pytest.approx(row["tokens"])
        model = flops["layers"] + flops["attention"] + flops["head"]
        assert found["utilisation"] * PEAK * row["seconds"] == pytest.approx(model)
        assert found["with_adapter"] * PEAK * row["seconds"] == pytest.approx(model + flops["adapter"])


def test_a_pair_with_images_counts_its_corrupted_twin(rows):
    problem = PROBLEMS["tiny vision"]
    pairs = problem.pairs(problem.per_step)
    text = sum(len(ids) for pair in pairs for ids in pair.values())
    assert problem.image_tokens == 4
    assert rows["tiny vision", "fire"]["tokens"] == 2 * (text + 4 * len(pairs))


def test_a_step_agrees_with_float32():
    found = run_part("agreement", cases=["FiRe with images"])
    assert [row["dtype"] for row in found] == ["float32", "bfloat16"]
    assert found[0]["difference"] < 1e-6 and found[0]["worst"] < 1e-5
    assert 1e-4 < found[1]["gradient"] < 0.05
    assert all(line[-1] == "yes" for line in page.agreement(found))
    assert page.agreement([found[0] | {"gradient": 0.1}])[0][-1] == "**no**"


def test_gradients_are_compared_by_norm():
    one, two = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([12.0])}, {"a": torch.tensor([3.0, 4.5])}
    found = compare(two | {"b": one["b"]}, one)
    assert found == pytest.approx({"gradient": 0.5 / 13, "worst": 0.1})


def test_answers_are_decoded_to_their_full_length():
    found = run_part("decoding", problem="tiny", side="ours", length=3)
    assert [(row["prompts"], row["tokens"]) for row in found] == [(1, 3), (16, 48)] * 2
    assert [row["setting"] for row in found] == ["", "", "adapter r = 8", "adapter r = 8"]


def test_the_peer_stands_next_to_ours(rows):
    ours = rows["tiny", "orpo"] | {"seconds": 2.0, "peak_bytes": 2**30, "device": "cuda", "pairs": 4, "loss": 1.0}
    theirs = {name: ours[name] for name in ("problem", "objective", "loss", "trainable", "pairs", "dtype")}
    theirs |= {"side": "trl", "recompute": True, "seconds": 4.0, "peak_bytes": 4 * 2**30}
    slower = theirs | {"seconds": 5.0}
    theirs["at_once"] = 2
    first, second = page.steps([slower, ours, theirs])
    assert first[4] == "2.00" and first[6] == "1.0" and first[7].endswith(" %")
    assert second[3:7] == ["recomputed, 2 pairs at a time", "1.00 (ours 2.00 x)", "", "4.0 (ours 0.25 x)"]
    assert len(first) == len(second) == len(page.TABLES["steps"][1])
    (_, other) = page.steps([ours, theirs | {"loss": 1.1}])
    assert other[4].startswith("not the same problem")
    (_, lacking) = page.steps([ours, {**theirs, "failure": "out of memory"}])
    assert lacking[4] == "out of memory" and len(lacking) == len(first)


@pytest.mark.parametrize("fits, tried", [(8, [8]), (2, [8, 4, 2]), (0, [8, 4, 2, 1])])
def test_the_peer_takes_as_many_pairs_at_a_time_as_fit(fits, tried, monkeypatch):
    sizes = []

    def measure_setting(problem, objective, recompute, size, steps):
        sizes.append(size)
        if size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return {"at_once": size}

    monkeypatch.setattr(peer, "measure_setting", measure_setting)
    expected = {"at_once": fits} if fits else {"failure": "out of memory: CUDA out of memory"}
    assert peer.measure_fitting("3B", "orpo", False, 1) == expected and sizes == tried


def test_tests_are_counted():
    output = "F.s\nFAILED tests/a.py::b - assert 0\n1 failed, 12 passed, 3 skipped, 2 errors in 2.1s\n"
    assert worker.count_tests(output) == {"passed": 12, "failed": 3, "skipped": 3, "names": ["FAILED tests/a.py::b"]}
    with pytest.raises(ValueError, match="without a summary"):
        worker.count_tests("Killed")


PRINTS = "import json, sys; print(json.dumps({'n': 1}), flush=True); "


@pytest.mark.parametrize(
    "then, failure",
    [
        ("", None),
        ("raise MemoryError('too much')", "failed (1): MemoryError: too much"),
        ("import time; time.sleep(60)", "not done in 2 s"),
        ("print('{\"n', end='', flush=True); import os; os.kill(os.getpid(), 9)", "failed (-9): no message"),
    ],
)
def test_a_part_that_fails_keeps_its_rows(then, failure):
    found = parts.collect("part", [sys.executable, "-c", PRINTS + then], 2)
    assert found.rows == [{"n": 1}] and found.failure == failure


def test_a_benchmark_goes_on_with_the_parts_that_are_missing(tmp_path, monkeypatch):
    calls = []

    def run_process(part, python, limit):
        calls.append(part.name)
        failure = "not done in 1 s" if part.name == "tests" and len(calls) < 6 else None
        rows = [{"passed": 3, "failed": 0, "skipped": 0, "names": []}] if part.name == "tests" else []
        return parts.Result(part.name, rows, failure, 1.0)

    monkeypatch.setattr(parts, "run_process", run_process)
    given = {"out": str(tmp_path / "out"), "peer_python": sys.executable, "small": True, "steps": 1, "minutes": 9.0}
    first = gpu.measure(argparse.Namespace(**given))
    assert "* tests: not done in 1 s" in first and "| 3 | 0 | 0 |  |" in first
    assert calls == ["agreement", "steps tiny", "tests", "steps tiny vision", "decoding, ours"]
    second = gpu.measure(argparse.Namespace(**given))
    assert calls[5:] == ["tests"] and "* tests" not in second
    assert "steps tiny, TRL: not run: the peer is not installed" in second
    assert (tmp_path / "out" / parts.PAGE).read_text(encoding="utf-8") == second
    monkeypatch.setattr(gpu, "commit", lambda: "another")
    with pytest.raises(InputError, match="holds results for commit"):
        gpu.measure(argparse.Namespace(**given))
    with pytest.raises(InputError, match="--minutes"):
        gpu.measure(argparse.Namespace(**given | {"minutes": 0}))


def test_no_part_is_started_when_the_time_is_up(tmp_path):
    (result,) = parts.run_parts([parts.Part("tests", "tests", 90)], tmp_path, None, 5)
    assert result.failure == "not run: the time is up; the same command goes on here"

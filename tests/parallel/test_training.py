"""Training in two and four processes: the numbers of one process, one voice, and an end for all."""

# ruff: noqa: F811

import os
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file

import evaluate
import train
from mint.training import curves
from mint.training.reference_store import ReferenceStore
from tests.parallel.launch import launch
from tests.test_train import losses, rows, run, setting, settings  # noqa: F401 (a fixture)

STEP = ("--batch-size", "2", "--grad-accum", "4", "--steps", "2", "--save-every", "1", "--keep", "9")
CLOSE = {"rel": 1e-5, "abs": 1e-6}
LOSS = """
import os, signal
from mint.errors import InputError
from mint.losses import LossOutput
calls = 0
def of_process_1(act):
    global calls
    if os.environ.get("RANK") == "1":
        calls += 1
        if calls == CALL:
            act()
def plain(chosen):
    return LossOutput(-chosen.logp_mean.mean())
def fail(number):
    raise InputError(f"something is wrong in call {number}")
def fails(chosen, rejected):
    of_process_1(lambda: fail(calls))
    return plain(chosen)
def breaks(chosen, rejected):
    of_process_1(lambda: 1 / 0)
    return plain(chosen)
def dies(chosen, rejected):
    of_process_1(lambda: os.kill(os.getpid(), signal.SIGKILL))
    return plain(chosen)
def stops(chosen, rejected):
    of_process_1(lambda: os.kill(os.getpid(), signal.SIGTERM))
    return plain(chosen)
def overflows(chosen, rejected):
    bad = []
    of_process_1(lambda: bad.append(True))
    return LossOutput(plain(chosen).loss * (float("inf") if bad else 1.0))
""".replace("CALL", "4")  # the check of the loss is the first call, the order of the pairs takes none, a step takes two


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(curves, "plot_curves", lambda *_: None)


def flags(setting, out, *extra):
    evaluation = ("--eval-data", f"{setting}/eval.jsonl", "--eval-every", "1", "--best", "eval/loss", "--patience", "2")
    return settings(setting, out, *STEP, *evaluation, *extra)


def start(size, out, arguments):
    return launch(size, out.with_name(f"{out.name}-output"), train.main, arguments)


def weights(out):
    adapter = out / "adapter" / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else out / "model" / "model.safetensors")


def assert_same_run(out, other):
    for row, same in zip(rows(out), rows(other), strict=True):
        assert row.keys() == same.keys()
        for name in row.keys() - {"step_seconds"}:
            assert row[name] == pytest.approx(same[name], **CLOSE), name
    ours, theirs = weights(out), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def alone(setting, tmp_path_factory):
    """A run in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "plot_curves", lambda *_: None)
        run(*flags(setting, out))
    return out


def cut(out, copy):
    """A copy of a run, as if it had been interrupted after its first checkpoint."""
    shutil.copytree(out, copy)
    shutil.rmtree(copy / ("adapter" if (copy / "adapter").exists() else "model"))
    shutil.rmtree(copy / "checkpoints" / "step-2")
    return copy


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_train_as_one_does_and_the_first_alone_prints(setting, alone, tmp_path, size):
    ended = start(size, tmp_path / "run", flags(setting, tmp_path / "run"))
    assert ended.statuses == [0] * size, ended.printed
    assert_same_run(tmp_path / "run", alone)
    assert "step 2: eval loss" in ended.outputs[0] and ended.outputs[0].count("saved ") == 1
    assert ended.outputs[1:] == [""] * (size - 1)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in alone.iterdir()}
    if size == 2:
        run(*flags(setting, cut(tmp_path / "run", tmp_path / "cut"), "--resume", "auto"))  # in one process
        assert_same_run(tmp_path / "cut", alone)


def test_a_run_of_one_process_continues_in_two(setting, alone, tmp_path):
    copy = cut(alone, tmp_path / "run")
    ended = start(2, copy, flags(setting, copy, "--resume", "auto"))
    assert ended.statuses == [0, 0], ended.printed
    assert_same_run(copy, alone)


def test_uneven_parts_give_the_same_numbers_and_a_note(setting, tmp_path):
    uneven = ("--grad-accum", "3", "--steps", "1", "--loss", "sft")
    run(*flags(setting, tmp_path / "one", *uneven))
    ended = start(2, tmp_path / "two", flags(setting, tmp_path / "two", *uneven))
    assert ended.statuses == [0, 0] and "in each step some compute 1 forward passes, others 2" in ended.printed
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_a_cached_reference_in_two_processes(setting, tmp_path, monkeypatch):
    """What is damaged or was left behind is deleted by one of them, and computed again."""
    more = (*STEP, "--loss", "dpo", "--cache-reference")
    run(*settings(setting, tmp_path / "one", *more))
    ended = start(2, tmp_path / "two", settings(setting, tmp_path / "two", *more))
    assert ended.statuses == [0, 0], ended.printed
    assert_same_run(tmp_path / "two", tmp_path / "one")
    copy = cut(tmp_path / "two", tmp_path / "cut")
    damaged, *_ = (copy / "reference").rglob("*.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (damaged.parent / ".writing-1-2.safetensors").touch()
    whole = ReferenceStore._open
    monkeypatch.setattr(ReferenceStore, "_open", lambda *given: [whole(*given), time.sleep(0.5)][0])
    ended = start(2, copy, settings(setting, copy, *more, "--resume", "auto"))
    assert ended.statuses == [0, 0], ended.printed
    assert ended.printed.count("is damaged: the reference of its pairs is computed again") == 1
    assert_same_run(copy, tmp_path / "one")


@pytest.fixture
def bad_loss(tmp_path):
    (tmp_path / "bad.py").write_text(LOSS)
    return tmp_path / "bad.py"


@pytest.mark.parametrize(
    ("loss", "statuses", "message"),
    [
        ("fails", [2, 2], "error: something is wrong in call 4; the last good checkpoint is "),
        ("breaks", [2, 1], "ZeroDivisionError"),
        ("dies", [2, -9], "error: another process of this command has ended or does not answer"),
    ],
)
def test_a_failure_of_one_process_ends_all_with_one_message(setting, tmp_path, bad_loss, loss, statuses, message):
    out = tmp_path / "run"
    ended = start(2, out, settings(setting, out, *STEP, "--loss", f"{bad_loss}:{loss}"))
    assert ended.statuses == statuses, ended.printed
    printed = ended.printed
    assert printed.count("error: ") + printed.count("Traceback") == 1 and message in printed
    assert loss == "breaks" or printed.endswith("checkpoints/step-1 continues from it)\n")


def test_a_signal_to_one_process_stops_all_after_the_same_step(setting, tmp_path, bad_loss):
    out = tmp_path / "run"
    ended = start(2, out, settings(setting, out, *STEP, "--steps", "9", "--loss", f"{bad_loss}:stops"))
    assert ended.statuses == [143, 143], ended.printed
    assert max(losses(out)) == 2 and (out / "checkpoints" / "step-2").is_dir()
    assert ended.printed.count("stopped after step 2 of 9; continue with --resume auto") == 1


def test_a_non_finite_loss_in_one_process_is_a_skipped_step_of_all(setting, tmp_path, bad_loss):
    ended = start(2, tmp_path / "run", settings(setting, tmp_path / "run", *STEP, "--loss", f"{bad_loss}:overflows"))
    assert ended.statuses == [0, 0], ended.printed
    assert [row["step"] for row in rows(tmp_path / "run") if len(row.get("skipped", ())) == 8] == [2]
    assert ended.printed.count("step 2: non-finite loss") == 1


def test_mistakes_are_reported_once(setting, alone, tmp_path):
    for arguments, message in (
        (settings(setting, tmp_path / "run"), "a step of --grad-accum 1 cannot be shared by 2 processes: --grad-accum"),
        ([], "the demo runs in one process: start it without torchrun"),
        (["--bath-size", "2"], "unknown argument '--bath-size'; did you mean --batch-size?"),
    ):
        ended = start(2, tmp_path / "output", arguments)
        assert ended.statuses == [2, 2] and ended.printed.startswith(f"error: {message}")
        assert ended.printed.count("error: ") == 1
    assert not (tmp_path / "run").exists()


def test_another_data_file_on_a_node_is_noticed(setting, tmp_path):
    def begin():
        data = f"{setting}/{'eval' if os.environ['RANK'] == '1' else 'pairs'}.jsonl"
        return train.main(settings(setting, tmp_path / "run", *STEP, "--data", data))

    ended = launch(2, tmp_path / "output", begin)
    assert ended.statuses == [2, 2]
    assert "error: process 1 has other settings or training pairs than process 0" in ended.printed


def test_a_command_that_runs_in_one_process_says_so(tmp_path):
    ended = launch(2, tmp_path, lambda: evaluate.main(["style", "pairs.jsonl"]))
    assert ended.statuses == [2, 2]
    assert ended.printed == "error: this command runs in one process: start it without torchrun\n"

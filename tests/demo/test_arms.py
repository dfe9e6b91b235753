"""Arms of an experiment: side by side, each once."""

import json
import math
import os
import signal
from concurrent.futures import Future
from pathlib import Path

import pytest

from mint.demo import arms
from mint.demo.arms import Arm, Exam, arm_jobs, run_arm, side_by_side
from mint.errors import InputError, Stopped


class InThisProcess:
    """An executor without processes, so that a test's changes hold inside."""

    def __init__(self, *_, **__):
        pass

    def submit(self, function, *args):
        future: Future = Future()
        future.set_result(function(*args))
        return future

    def shutdown(self, **_):
        pass


def test_jobs_run_in_processes_of_their_own_and_are_printed(tmp_path, capsys):
    jobs = [(f"job {n}", write_process, (tmp_path / str(n),)) for n in range(2)]
    side_by_side(jobs, workers=2)
    assert all(int((tmp_path / str(n)).read_text()) != os.getpid() for n in range(2))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and printed[0].startswith("1/2 job ") and printed[1].startswith("2/2 job ")


def write_process(file: Path):
    file.write_text(str(os.getpid()))


def test_a_mistake_in_a_job_is_raised_here():
    with pytest.raises(InputError, match="no such thing"):
        side_by_side([("a job", fail, ()), ("a long one", math.sqrt, (2,))], workers=1)


def fail():
    raise InputError("no such thing")


def test_a_job_that_a_signal_stops_ends_its_process():
    with pytest.raises(InputError, match="a process ended before its job"):
        side_by_side([("a job", stop, ()), ("the next", math.sqrt, (2,))], workers=1)


def stop():
    raise Stopped(signal.SIGTERM)


def test_an_arm_that_was_stopped_while_it_trained_starts_again_and_a_finished_one_does_not(tmp_path, monkeypatch):
    arm, exam = Arm("row", tmp_path / "arm", tmp_path / "base", {"loss": "sft", "full": True}), Exam([], [])
    runs = []

    def train(config):
        runs.append(config)
        assert not Path(config.out).exists()
        Path(config.out).mkdir(parents=True)
        if len(runs) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(arms, "load_train", lambda: train)
    monkeypatch.setattr(Exam, "ask", lambda *_: [])
    with pytest.raises(KeyboardInterrupt):
        run_arm(arm, exam)
    assert [name for name, *_ in arm_jobs([arm], exam)] == ["row"]
    run_arm(arm, exam)
    assert len(runs) == 2 and runs[1].loss == "sft" and runs[1].model == str(tmp_path / "base")
    assert arm_jobs([arm], exam) == [] and arm.answers(exam) == []


def test_an_arm_with_checkpoints_goes_on_from_the_last(tmp_path, monkeypatch):
    arm = Arm("row", tmp_path, tmp_path / "base", {"loss": "sft", "full": True})
    checkpoint = tmp_path / "run" / "checkpoints" / "step-3"
    checkpoint.mkdir(parents=True)
    seen = []
    monkeypatch.setattr(arms, "load_train", lambda: lambda config: seen.append((config.resume, checkpoint.is_dir())))
    monkeypatch.setattr(Exam, "ask", lambda *_: [])
    exams = Exam([], [], ("rank", "greedy"), name="first"), Exam([], [])
    run_arm(arm, *exams)
    assert seen == [("auto", True)] and arm.is_finished(*exams)
    assert {file.name for file in tmp_path.glob("*.jsonl")} == {"first-rank.jsonl", "first-greedy.jsonl", "rank.jsonl"}


def test_an_arm_with_other_settings_is_not_taken_for_finished(tmp_path):
    arm, exam = Arm("row", tmp_path, tmp_path / "base", {"loss": "sft", "steps": 3, "data": "a.jsonl"}), Exam([], [])
    (tmp_path / "trained.json").write_text(json.dumps({"loss": "sft", "steps": 3, "data": "moved/a.jsonl"}))
    assert len(arm_jobs([arm], exam)) == 1
    (tmp_path / "trained.json").write_text(json.dumps({"loss": "sft", "steps": 2, "data": "a.jsonl"}))
    with pytest.raises(InputError, match="trained with other settings"):
        arm_jobs([arm], exam)

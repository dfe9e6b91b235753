"""Kills, signals and failures: a run keeps what it has, says so in its exit status, and can be continued."""

# ruff: noqa: F811

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from mint.training import setup
from tests.conftest import ROOT
from tests.test_train import losses, rows, run, setting, settings  # noqa: F401 (a fixture)


def start(setting, out, *extra):
    command = [sys.executable, str(ROOT / "train.py"), *settings(setting, out, *extra)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_step(out, step, process):
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        metrics = Path(out) / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= step:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0])


LONG = ("--steps", "40", "--save-every", "5", "--lora-dropout", "0.1")


def test_resume_after_a_kill_gives_the_same_losses_to_the_bit(setting, tmp_path):
    whole = start(setting, tmp_path / "whole", *LONG)
    killed = start(setting, tmp_path / "killed", *LONG)
    wait_for_step(tmp_path / "killed", 12, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # a kill may cut the last line
    (tmp_path / "killed" / "checkpoints" / ".writing-1-step-99").mkdir()  # or a checkpoint
    (tmp_path / "killed" / ".old-1-adapter").mkdir()  # or the result
    (tmp_path / "killed" / ".writing-1-config.toml").touch()  # or a file
    again = start(setting, tmp_path / "killed", *LONG, "--resume", "auto")
    output = again.communicate()[0]
    assert again.returncode == 0, output
    whole.communicate()
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "killed")] == list(range(1, 41))
    saved = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert saved == ["step-35", "step-40"] and not list((tmp_path / "killed").glob(".*"))


def test_sigterm_saves_the_run_and_gives_its_status(setting, tmp_path):
    process = start(setting, tmp_path / "run", "--steps", "5000")
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    last = max(losses(tmp_path / "run"))
    assert process.returncode == 143 and "Traceback" not in output
    assert f"stopped after step {last} of 5000; continue with --resume auto --out {tmp_path}/run" in output
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{last}" and (tmp_path / "run" / "curves.png").is_file()


HANDLED = (signal.SIGTERM, signal.SIGINT)


def during(step, monkeypatch, act):
    """Calls ``act`` while the gradients of ``step`` (counted from 1) are computed."""
    compute, calls = train.accumulate_gradients, []

    def replacement(*arguments):
        calls.append(True)
        if len(calls) == step:
            act()
        return compute(*arguments)

    monkeypatch.setattr(train, "accumulate_gradients", replacement)


def test_ctrl_c_saves_the_run_and_gives_its_status(setting, tmp_path, monkeypatch, capsys):
    during(2, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train.main(settings(setting, tmp_path / "run", "--steps", "5")) == 130
    assert "stopped after step 2 of 5; continue with --resume auto" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "step-2").is_dir() and (tmp_path / "run" / "curves.png").is_file()


def test_a_second_signal_ends_at_once(setting, tmp_path, monkeypatch, capfd):
    def twice():
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)

    during(3, monkeypatch, twice)
    assert train.main(settings(setting, tmp_path / "run", "--steps", "5")) == 130
    errors = capfd.readouterr().err
    assert errors.count("a second signal ends at once") == 1 and errors.endswith("interrupted\n")
    assert max(losses(tmp_path / "run")) == 2 and not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_signal_in_the_last_step_lets_the_run_finish(setting, tmp_path, monkeypatch):
    during(2, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train.main(settings(setting, tmp_path / "run", "--steps", "2")) == 143
    assert (tmp_path / "run" / "adapter").is_dir()


def test_ctrl_c_while_the_model_loads_shows_no_traceback(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, "load_policy", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert train.main(settings(setting, tmp_path / "run")) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("fails", [False, True])
def test_signal_handlers_are_restored(setting, tmp_path, monkeypatch, fails):
    before = [signal.getsignal(number) for number in HANDLED]
    if fails:
        during(1, monkeypatch, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        run(*settings(setting, tmp_path / "run", "--steps", "1"))
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_resuming_full_fine_tuning(setting, tmp_path):
    common = ("--full", "--lr", "1e-3", "--steps", "6", "--save-every", "3")
    run(*settings(setting, tmp_path / "whole", *common))
    run(*settings(setting, tmp_path / "again", *common))
    checkpoint = tmp_path / "again" / "checkpoints" / "step-3"
    run(*settings(setting, tmp_path / "again", *common, "--resume", str(checkpoint)))
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")

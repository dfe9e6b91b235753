"""The parser and the exit statuses that the commands share."""

import os
import signal

import pytest

from mint.cli import Parser, guard, run_command
from mint.errors import InputError, Stopped


def parser() -> Parser:
    made = Parser(prog="tool")
    made.add_argument("--batch-size", type=int)
    made.add_argument("--learning-rate", type=float)
    return made


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batchsize", "3"], "error: unknown argument '--batchsize'; did you mean --batch-size?"),
        (["--batch", "3"], "error: unknown argument '--batch'; did you mean --batch-size?"),
        (["--learning_rate=1"], "error: unknown argument '--learning_rate=1'; did you mean --learning-rate?"),
        (["--zzz"], "error: unknown argument '--zzz'; see tool --help"),
        (["--batch-size", "x"], "error: argument --batch-size: invalid int value: 'x'"),
    ],
)
def test_a_mistake_is_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        parser().parse_args(argv)
    assert exit.value.code == 2
    assert capsys.readouterr().err == message + "\n"


def test_a_sub_command_looks_among_its_own_flags(capsys):
    def add(commands):
        commands.add_parser("list").add_argument("--limit", type=int)

    with pytest.raises(SystemExit):
        run_command("test", [add], ["list", "--limits", "3"])
    assert "did you mean --limit?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, 0, ""),
        (InputError("no such file"), 2, "error: no such file\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Stopped(signal.SIGTERM, "stopped after step 3"), 143, "stopped after step 3\n"),
    ],
)
def test_exit_statuses(error, status, message, capsys):
    def job():
        if error is not None:
            raise error

    assert guard(job) == status
    assert capsys.readouterr().err == message


def test_sigterm_runs_finally_blocks_and_its_handler_is_restored(capsys):
    before, closed = signal.getsignal(signal.SIGTERM), []

    def job():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            closed.append(True)

    assert guard(job) == 143 and closed
    assert signal.getsignal(signal.SIGTERM) is before

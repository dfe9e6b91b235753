"""The parser and the exit statuses that the commands share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import generate_prefs
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


ROOT = Path(__file__).parents[1]


def imported(code):
    """The modules that ``code`` imports in a new interpreter."""
    code += "\nimport sys; print('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("command", ["evaluate", "generate_prefs"])
def test_help_imports_no_sub_command(command):
    """Only the parser and the list of commands: no PyTorch, no task, no drawing code."""
    found = imported(f"import {command}\ntry:\n    {command}.main(['--help'])\nexcept SystemExit:\n    pass")
    assert "torch" not in found and "numpy" not in found
    ours = {name for name in found if name.startswith("mint")}
    assert ours == {"mint", "mint.cli", "mint.errors", "mint.ranges", "mint.tasks"}


def test_readers_and_tasks_import_no_drawing_code():
    """The readers draw a face only where one is asked for; the flags of a sub-command need its own module alone."""
    found = imported("from mint.tasks import cohorts")
    assert not [name for name in found if name.startswith("mint.synthetic")]
    found = imported("import evaluate\ntry:\n    evaluate.main(['vqa', '--help'])\nexcept SystemExit:\n    pass")
    assert "mint.tasks.vqa" in found
    assert not {"mint.tasks.disease", "mint.tasks.compare_page", "matplotlib", "mint.synthetic"} & found


def test_aliases_of_sub_commands(capsys):
    for name, alias in (("disease", "mml"), ("tissue", "clip")):
        texts = []
        for word in (name, alias):
            with pytest.raises(SystemExit):
                generate_prefs.main([word, "--help"])
            texts.append(capsys.readouterr().out.partition("\n\n")[2])
        assert texts[0] == texts[1] and "--label-first" in texts[0]

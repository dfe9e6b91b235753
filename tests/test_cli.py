"""The parser and the exit statuses that the commands share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import generate_prefs
from mint.cli import Parser, guard, run_command, users_umask
from mint.errors import InputError, Stopped, describe_error, quote


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
    assert ours == {"mint", "mint.cli", "mint.errors", "mint.parallel", "mint.ranges", "mint.tasks"}


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


# -- privacy -----------------------------------------------------------------------------------------------------


def modes(folder):
    """The modes of everything in a folder, by its relative path."""
    return {str(path.relative_to(folder)): oct(path.stat().st_mode & 0o777) for path in folder.rglob("*")}


def test_what_a_command_writes_is_the_users_alone(tmp_path):
    """Whatever writes it: a library too. Afterwards, and for the cache of the hub, the user's umask counts."""
    before = os.umask(0o022)

    def job():
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        (tmp_path / "run" / "file").write_text("x")
        with users_umask():
            (tmp_path / "hub").mkdir()
        subprocess.run([sys.executable, "-c", f"open({str(tmp_path / 'run' / 'child')!r}, 'w')"], check=True)

    try:
        assert guard(job) == 0
        (tmp_path / "later").touch()
        with users_umask():
            (tmp_path / "outside").touch()
    finally:
        os.umask(before)
    private = {"run": "0o700", "run/checkpoints": "0o700", "run/file": "0o600", "run/child": "0o600"}
    assert modes(tmp_path) == private | {"hub": "0o755", "later": "0o644", "outside": "0o644"}


def test_messages_hold_no_password(capsys):
    def job():
        raise InputError("no connection to https://user:p@ss@example.com/x by http://proxy:1234, a@b")

    guard(job)
    assert capsys.readouterr().err == "error: no connection to https://***@example.com/x by http://proxy:1234, a@b\n"
    with pytest.raises(SystemExit):
        parser().parse_args(["https://user:pass@example.com"])
    assert "pass" not in capsys.readouterr().err


def test_texts_of_records_are_shown_on_request_only():
    def quoted(*argv):
        assert not vars(parser().parse_args(argv)).keys() - {"batch_size", "learning_rate"}  # no setting to save
        return quote("a note"), quote("x" * 100), describe_error(ValueError("a note"))

    hidden = "[6 characters; --show-text shows them]", "[100 characters; --show-text shows them]", "ValueError"
    assert quoted() == hidden
    assert quoted("--show-text") == ("'a note'", f"'{'x' * 60}...'", "ValueError: a note")
    assert quoted() == hidden

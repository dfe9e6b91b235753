"""Every command in a process without a network: nothing phones home, prints texts of records or opens its files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import generate_prefs
from mint.demo import __main__ as demo
from mint.tasks import TASKS

ROOT = Path(__file__).parents[1]
# Python runs a module of this name at its start, in child processes too. An audit hook sees every connection and every
# look-up of a name; the attempt is written down, in case that somebody catches the error.
NO_NETWORK = """
import os, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        if event == "socket.connect" and isinstance(arguments[1], (str, bytes)):
            return  # a Unix socket, between processes
        with open(os.environ["ATTEMPTS"], "a") as file:
            file.write(f"{event} {arguments}\\n")
        raise OSError("there is no network in this test")

sys.addaudithook(refuse)
"""
SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")


def start(folder, *command):
    """Runs Python with ``command`` without a network; (the finished process, the attempts to reach one)."""
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(NO_NETWORK)
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    environment |= {"PYTHONPATH": f"{folder}/hook{os.pathsep}{ROOT}", "ATTEMPTS": f"{folder}/attempts"}
    environment |= {"XDG_CACHE_HOME": f"{folder}/cache", "HF_HOME": f"{folder}/hub", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, umask=0o022
    )
    attempts = folder / "attempts"
    return done, attempts.read_text() if attempts.exists() else ""


def test_the_hook_sees_what_is_caught(tmp_path):
    """A connection whose failure is passed over, of a child process; and the hub, which a data set's id asks for."""
    child = (
        "import contextlib, socket\nwith contextlib.suppress(OSError):\n    socket.socket().connect(('192.0.2.1', 9))"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    code += "\nimport mint.hub; mint.hub.fetch_dataset('owner/name')"
    done, attempts = start(tmp_path, "-c", code)
    assert "InputError: owner/name" in done.stderr and "('192.0.2.1', 9)" in attempts
    assert "socket.getaddrinfo" in attempts and "huggingface.co" in attempts, done.stderr


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(folder of everything that the commands wrote, the finished process, attempts to reach a network)."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "out" / "inputs").mkdir(parents=True)
    return folder / "out", *start(folder, str(ROOT / "tests" / "every_command.py"), str(folder / "out"))


def test_no_command_uses_the_network(ran):
    folder, done, attempts = ran
    assert done.returncode == 0, done.stderr[-3000:]
    assert attempts == ""
    names = {f"evaluate {name}" for name in (*TASKS, "inspect", "compare", "style")}
    names |= {f"generate_prefs {name}" for name in (*generate_prefs.ALIASES, *generate_prefs.OTHERS)}
    names |= {f"demo {name}" for name in ("base", "cohort", "tiles", "radiographs", "reader", "gallery")}
    assert len(demo.COMMANDS) == 6
    modules = {path.stem for path in (ROOT / "mint").glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    names |= {"privacy scan" if name == "privacy" else name for name in modules} | {"train"}
    assert set(json.loads((folder / "inputs" / "ran.json").read_text())) == names


def test_nothing_prints_texts_of_records(ran):
    """Nor are they saved with the answers of an evaluation."""
    folder, done, _ = ran
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (folder / "rad" / "test.jsonl").read_text().splitlines()]
    texts = {line for pair in pairs for line in pair["prompt"][-1]["content"].splitlines() if len(line) > 30}
    texts |= {pair["chosen"] for pair in pairs} | {one["question"] for one in asked}
    texts |= {one["answer"] for one in asked if len(one["answer"]) > 30}
    assert len(texts) > 30
    assert not [text for text in texts if text in done.stdout + done.stderr]
    places = ("a", "b", "tissue", "vqa", "report", "sensitivity", "attention")
    saved = [file for place in places for file in (folder / place).rglob("*.json*")]
    contents = "".join(file.read_text() for file in saved)
    assert len(saved) > 15 and not [text for text in texts if json.dumps(text, ensure_ascii=False)[1:-1] in contents]


def test_what_is_written_is_the_users_alone(ran):
    folder, *_ = ran
    own = [path for path in folder.rglob("*") if "inputs" not in path.relative_to(folder).parts]
    wrong = {path for path in own if path.stat().st_mode & 0o777 != (0o700 if path.is_dir() else 0o600)}
    assert len(own) > 150 and not wrong

"""Atomic writes, and paths that are checked before a model is loaded."""

import argparse
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest
from safetensors import SafetensorError

import evaluate
from mint.errors import InputError
from mint.evaluation import decoding
from mint.files import (
    append_text,
    check_paths,
    check_unused,
    file_aside,
    folder_aside,
    lock,
    make_folder,
    remove_leftovers,
    write_aside,
)
from mint.teachers import clip_teacher, vilt_teacher


@pytest.fixture
def folder(tmp_path):
    for name in ("model", "empty", "adapter", "folds"):
        (tmp_path / name).mkdir()
    for name in ("model/config.json", "adapter/adapter_config.json", "file", "folds/folds.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"cases": "no"}, "--cases .*no does not exist"),
        ({"teacher_cases": "no"}, "--teacher-cases .*no does not exist"),
        ({"model": "empty"}, "--model: .*empty is not a model directory: config.json is missing"),
        ({"model": "file"}, "file is a file"),
        ({"model": "no/such/model"}, "neither a directory nor a hub id"),
        ({"teacher": ["model", "empty"]}, "--teacher: .*empty is not a model directory"),
        ({"eval_data": "no.jsonl"}, "--eval-data .*no.jsonl does not exist"),
        ({"adapter": "empty"}, "--adapter .*empty holds no adapter: adapter_config.json is missing"),
        ({"adapter": "adapter"}, "adapter_model.safetensors is missing"),
        ({"out": "file/below"}, "--out .*below cannot be written: .*file is not a folder"),
    ],
)
def test_what_is_missing(folder, flags, message):
    def place(value):
        return [place(one) for one in value] if isinstance(value, list) else f"{folder}/{value}"

    placed = {name: place(value) for name, value in flags.items()}
    with pytest.raises(InputError, match=message):
        check_paths(argparse.Namespace(**placed))


def test_what_is_there(folder):
    flags = {
        "cases": f"{folder}/file",
        "model": f"{folder}/model",
        "teacher": [f"{folder}/folds", "owner/name"],
        "data": "a/b:train",
    }
    check_paths(argparse.Namespace(**flags, out=f"{folder}/new/below", images=None))
    check_paths(argparse.Namespace(out=f"{folder}/file"))


@pytest.mark.parametrize(
    ("flag", "wrong"),
    [("--adapter", "empty"), ("--out", "file/x"), ("--out", "file"), ("--questions", "no"), ("--images", "no")],
)
def test_no_model_is_loaded_for_a_wrong_path(folder, monkeypatch, capsys, flag, wrong):
    def load(*_, **__):
        raise AssertionError("a model is loaded")

    for module, name in ((decoding, "load_language_model"), (vilt_teacher, "load_model"), (clip_teacher, "load_clip")):
        monkeypatch.setattr(module, name, load)
    (folder / "questions.json").write_text(json.dumps([]))
    command = [
        "vqa",
        "--model",
        f"{folder}/model",
        "--questions",
        f"{folder}/questions.json",
        flag,
        f"{folder}/{wrong}",
    ]
    assert evaluate.main(command) == 2
    assert capsys.readouterr().err.startswith(f"error: {flag} ")


# -- atomic writes -----------------------------------------------------------------------------------------------


def test_a_file_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "image.png"
    with file_aside(path) as aside:
        assert aside.suffix == ".png" and aside.parent == path.parent
        aside.write_bytes(b"first")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), file_aside(path) as aside:
        aside.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"first" and [file.name for file in path.parent.iterdir()] == ["image.png"]
    with pytest.raises(InputError, match="image.png/below cannot be written"):
        write_aside(path / "below", "text")


@pytest.mark.parametrize("sync", [False, True])
def test_a_folder_is_replaced_when_it_is_complete(tmp_path, sync):
    folder = tmp_path / "model"
    with folder_aside(folder, sync) as aside:
        (aside / "a").write_text("first")
    with pytest.raises(KeyboardInterrupt), folder_aside(folder, sync) as aside:
        raise KeyboardInterrupt
    assert (folder / "a").read_text() == "first"
    with folder_aside(folder, sync) as aside:
        (aside / "b").touch()
    assert [file.name for file in folder.iterdir()] == ["b"] and list(tmp_path.iterdir()) == [folder]


def test_two_writers_of_the_same_file_do_not_meet(tmp_path):
    """Not even with the same process id, as in two containers that share a disk."""
    with file_aside(tmp_path / "x") as ours:
        with file_aside(tmp_path / "x") as theirs:
            theirs.write_text("theirs")
        ours.write_text("ours")
    assert (tmp_path / "x").read_text() == "ours"
    with folder_aside(tmp_path / "f") as ours, folder_aside(tmp_path / "f") as theirs:
        assert ours != theirs


def test_a_folder_that_a_killed_writer_had_moved_away_is_moved_back(tmp_path):
    for name in (".old-1a-model", ".old-2b-other", "other", ".writing-1a-model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]
    assert [(tmp_path / name / "file").read_text() for name in ("model", "other")] == [".old-1a-model", "other"]


def test_leftovers_of_other_names_stay(tmp_path):
    for name in (".writing-1a-demo-1", ".writing-1a-demo-2"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, name="demo-1")
    assert [path.name for path in tmp_path.iterdir()] == [".writing-1a-demo-2"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_is_one_message_that_names_the_final_place(tmp_path, error):
    with pytest.raises(InputError) as raised:
        with folder_aside(tmp_path / "step-1") as folder, file_aside(folder / "state.pt"):
            raise error
    assert str(raised.value).startswith(f"{tmp_path}/step-1/state.pt cannot be written: ")
    assert str(raised.value).endswith("No space left on device") and not list(tmp_path.iterdir())


# -- locks -------------------------------------------------------------------------------------------------------


def test_a_lock_is_refused_while_another_process_holds_it_and_free_after_its_death(tmp_path):
    code = "import sys, time; from mint.files import lock\n"
    code += f"with lock({str(tmp_path / 'lock')!r}, 'busy'):\n    print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="^in use$"), lock(tmp_path / "lock", "in use"):
        pass
    other.kill()
    other.communicate()
    with lock(tmp_path / "lock", "in use"):
        assert (tmp_path / "lock").exists()
    assert not list(tmp_path.iterdir())


def test_a_lock_is_waited_for(tmp_path, capsys):
    order = []

    def second():
        with lock(tmp_path / "lock", "waiting", wait=True):
            order.append("second")

    with lock(tmp_path / "lock", "in use"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and capsys.readouterr().err == "waiting\n"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    ran = []
    with lock(tmp_path / "lock", "in use"):
        ran.append(True)
    said = capsys.readouterr().err
    assert ran and f"{tmp_path} cannot be locked" in said and "no locks here" in said and len(said.splitlines()) == 1


def test_a_place_for_a_lock_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/lock cannot be written"), lock(tmp_path / "file" / "lock", "in use"):
        pass


def test_an_existing_file_or_a_folder_with_files_is_not_unused(tmp_path):
    (tmp_path / "empty").mkdir()
    check_unused(tmp_path / "empty", tmp_path / "absent")
    (tmp_path / "empty" / "file").touch()
    for path in (tmp_path / "empty", tmp_path / "empty" / "file"):
        with pytest.raises(InputError, match="exists already: delete it, or give another --out"):
            check_unused(tmp_path / "absent", path)


def test_files_and_folders_are_the_users_alone(tmp_path):
    """Also for programs that call the package and have another umask, and for writers that make the file anew."""
    before = os.umask(0o022)
    try:
        make_folder(tmp_path / "made")
        write_aside(tmp_path / "below" / "text", "x")
        append_text(tmp_path / "made" / "rows", "x")
        with file_aside(tmp_path / "anew") as aside:
            assert aside.stat().st_mode & 0o777 == 0o600
            aside.unlink()
            aside.touch(0o644)
        with folder_aside(tmp_path / "model") as aside:
            assert aside.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    found = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert {path: mode for path, mode in found.items() if (tmp_path / path).is_dir()} == dict.fromkeys(
        ("made", "below", "model"), 0o700
    )
    assert {found[name] for name in ("below/text", "made/rows", "anew")} == {0o600}

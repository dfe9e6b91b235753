"""Damaged checkpoints and logs: a run is continued from what is intact, or refused with the name of the file."""

# ruff: noqa: F811

import errno
import random
import shutil

import pytest
import torch
from safetensors import SafetensorError

import train
from benchmarks.faults.damages import DAMAGES, add_odd_folders, remove_checksums
from mint.config import TrainConfig
from mint.errors import InputError
from mint.files import lock
from mint.models import adapter_files
from mint.training import curves, run_directory
from mint.training.checkpoints import check_checkpoint, read_state
from mint.training.run_directory import RunDirectory, choose_checkpoint
from tests.test_train import losses, rows, run, setting, settings  # noqa: F401 (a fixture)

SHORT = ("--steps", "3", "--save-every", "1", "--keep", "3", "--batch-size", "2")


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(curves, "plot_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def finished(setting, tmp_path_factory):
    """A run of three steps with all its checkpoints."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run(*settings(setting, out, *SHORT))
    return out


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def resumed(out, resume="auto"):
    return choose_checkpoint(TrainConfig(out=str(out), resume=resume))


def adapter(out):
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def test_every_file_has_a_checksum(finished):
    checkpoint = finished / "checkpoints" / "step-3"
    check_checkpoint(checkpoint)
    files = {"state.pt", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert set(read_state(checkpoint)["files"]) == files


@pytest.mark.parametrize("name", DAMAGES)
def test_auto_goes_back_to_the_newest_intact_checkpoint(copy, name, capsys):
    newest, before = (copy / "checkpoints" / f"step-{step}" for step in (3, 2))
    DAMAGES[name](newest, random.Random(0))
    assert resumed(copy) == before
    assert f"the checkpoint {newest} is damaged: " in (said := capsys.readouterr().err)
    assert f"{before} is resumed instead" in said and len(said.splitlines()) == 1
    with pytest.raises(InputError, match="step-3 is (damaged|not a checkpoint)"):
        resumed(copy, str(newest))


def test_the_damaged_file_is_named(copy):
    checkpoint = copy / "checkpoints" / "step-3"
    DAMAGES["adapter/adapter_model.safetensors: flip_bit"](checkpoint, random.Random(0))
    with pytest.raises(InputError, match="adapter/adapter_model.safetensors differs from its checksum"):
        check_checkpoint(checkpoint)


def test_no_intact_checkpoint_is_no_fresh_start(setting, copy, capsys):
    before = (copy / "metrics.jsonl").read_bytes()
    for step in (1, 2, 3):
        (copy / "checkpoints" / f"step-{step}" / "state.pt").unlink()
    assert train.main(settings(setting, copy, *SHORT, "--resume", "auto")) == 2
    assert "has no intact checkpoint" in capsys.readouterr().err and (copy / "metrics.jsonl").read_bytes() == before


def test_odd_folder_names_are_left_alone(setting, copy):
    odd = add_odd_folders(copy / "checkpoints")
    assert resumed(copy) == copy / "checkpoints" / "step-3"
    run(*settings(setting, copy, *SHORT, "--resume", "auto"))
    kept = {path.name for path in (copy / "checkpoints").iterdir()}
    assert {path.name for path in odd} - kept == {"step-" + "9" * 200}  # the only one with a checkpoint's name


def test_a_renamed_checkpoint_is_not_another_step(copy):
    (copy / "checkpoints" / "step-3").rename(copy / "checkpoints" / "step-30")
    assert resumed(copy).name == "step-2"


def test_a_run_goes_on_from_an_intact_checkpoint_with_the_same_numbers(setting, finished, copy, capsys):
    newest = copy / "checkpoints" / "step-3"
    DAMAGES["state.pt: truncate"](newest, random.Random(1))
    run(*settings(setting, copy, *SHORT, "--resume", "auto"))
    assert losses(copy) == losses(finished) and adapter(copy) == adapter(finished)
    check_checkpoint(newest)  # written anew; the damaged one is kept
    assert (copy / "checkpoints" / "superseded" / "step-3" / "state.pt").is_file()


def test_a_checkpoint_without_checksums_is_resumed_with_a_note(setting, finished, copy, capsys):
    shutil.rmtree(copy / "checkpoints" / "step-3")
    remove_checksums(copy / "checkpoints" / "step-2")
    run(*settings(setting, copy, *SHORT, "--resume", "auto"))
    assert "has no checksums: it is not verified" in capsys.readouterr().err and adapter(copy) == adapter(finished)


@pytest.mark.parametrize(
    "name", ["state.pt: truncate", "adapter/adapter_model.safetensors: truncate", "state.pt: empty"]
)
def test_damage_that_only_loading_shows(setting, copy, name, capsys):
    newest = copy / "checkpoints" / "step-3"
    remove_checksums(newest)
    DAMAGES[name](newest, random.Random(0))
    assert train.main(settings(setting, copy, *SHORT, "--resume", str(newest))) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("error: ") and newest.name in errors[-1]


DAMAGED_ROWS = (b"[1]", b'"x"', b"{}", b'{"step": null}', b'{"step": "2", "loss": 1}', b'{"step": 2, "loss": "x"}')
DAMAGED_ROWS += (b'{"step": 2, "loss": [', b'{"step": 2, "loss": "\xf0\x9f', b"[" * 100_000, b"\xff\xfe")


def test_damaged_metrics_cost_their_rows_alone(setting, finished, copy):
    (copy / "metrics.jsonl").write_bytes(b"\n".join((*DAMAGED_ROWS, (finished / "metrics.jsonl").read_bytes())))
    (copy / "samples.jsonl").write_bytes('{"step": 1, "answer": "\u00e9'.encode()[:-1])
    run(*settings(setting, copy, *SHORT, "--resume", "auto"))
    assert RunDirectory(TrainConfig(out=str(copy))).rows() == rows(finished)
    assert (copy / "samples.jsonl").read_bytes() == b""


def test_the_new_checkpoint_is_never_pruned(setting, copy):
    """Beside checkpoints of higher steps, as another copy of the folder may bring them in during a run."""
    (copy / "checkpoints" / "step-3").rename(copy / "checkpoints" / "step-90")
    (copy / "checkpoints" / "step-2").rename(copy / "checkpoints" / "step-91")
    saved, directory = [], RunDirectory(TrainConfig(out=str(copy)))
    directory.save_result = lambda model, folder: saved.append(folder)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    written = directory.save_checkpoint(4, None, optimizer, keep=1)
    assert written.is_dir() and [path.name for path in (copy / "checkpoints").iterdir() if path != written] == [
        "step-91"
    ]


# -- failures of the disk ----------------------------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, "No space left on device")


def failing(function, error, at):
    """``function``, which raises ``error`` from its call number ``at`` on."""
    calls = []

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) >= at:
            raise error
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize(
    ("owner", "name", "at", "error"),
    [
        (torch, "save", 3, FULL),
        (adapter_files, "save_file", 3, SafetensorError("I/O error: No space left on device (os error 28)")),
        (run_directory, "_append", 3, OSError(errno.EROFS, "Read-only file system", "metrics.jsonl")),
        (adapter_files, "save_file", 4, OSError(errno.ENOSPC, "No space left on device")),  # the result itself
    ],
)
def test_a_full_or_read_only_disk_ends_with_the_last_good_checkpoint(
    setting, finished, tmp_path, monkeypatch, capsys, owner, name, at, error
):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing(getattr(owner, name), error, at))
        assert train.main(settings(setting, out, *SHORT)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    last = out / "checkpoints" / ("step-3" if at == 4 else "step-2")
    assert message.startswith("error: ") and ("No space left" in message or "Read-only" in message)
    assert f"the last good checkpoint is {last} (--resume {last} continues from it)" in message
    assert ".writing" not in message and not list(out.rglob(".*"))
    run(*settings(setting, out, *SHORT, "--resume", str(last)))
    assert adapter(out) == adapter(finished) and losses(out) == losses(finished)


def test_files_removed_during_a_run(setting, tmp_path, monkeypatch, capsys):
    out, log = tmp_path / "run", RunDirectory.log

    def log_and_remove(self, row):
        log(self, row)
        if row["step"] == 2:
            shutil.rmtree(out)

    monkeypatch.setattr(RunDirectory, "log", log_and_remove)
    assert train.main(settings(setting, out, "--steps", "4")) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


# -- locks -------------------------------------------------------------------------------------------------------


def test_what_a_kill_has_left_is_removed(setting, copy):
    left = [copy / ".writing-1-x", copy / "checkpoints" / ".writing-2-x", copy / "adapter" / ".writing-3-x"]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_text("half")
    assert train.main(settings(setting, copy, *SHORT, "--resume", "auto")) == 0
    assert not [file for file in left if file.exists()]


def test_a_folder_in_use_is_refused(setting, copy, capsys):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    with lock(copy / ".lock", "in use"):
        assert train.main(settings(setting, copy, *SHORT, "--resume", "auto")) == 2
    assert f"error: {copy} is in use by another run" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before
    assert train.main(settings(setting, copy, *SHORT, "--resume", "auto")) == 0  # the lock is free again


def test_what_a_refused_run_made_is_removed(setting, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "new" / "below", tmp_path / "mine"):
        assert train.main([*settings(setting, out), "--lora-targets", "none_such"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and "none_such" in capsys.readouterr().err

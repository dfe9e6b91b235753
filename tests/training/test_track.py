"""Trackers get every row of the metrics; one that is not installed is named before anything is loaded."""

# ruff: noqa: F811

import sys
import types

import pytest

import train
from mint.training import setup
from tests.test_train import rows, run, setting, settings  # noqa: F401 (a fixture)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_rows_reach_the_tracker(setting, tmp_path, monkeypatch, name):
    calls = []
    fake = types.ModuleType(name)
    fake.init = lambda **settings: calls.append(("init", settings))
    fake.log = lambda numbers, step: calls.append((step, numbers))
    fake.finish = lambda: calls.append(("finish", None))
    monkeypatch.setitem(sys.modules, name, fake)
    run(*settings(setting, tmp_path / "run", "--steps", "2", "--track", name, "--eval-data", f"{setting}/eval.jsonl"))
    (first, started), *logged, (last, _) = calls
    assert (first, last) == ("init", "finish") and started["name"] == "run" and started["config"]["lora_rank"] == 4
    assert [step for step, _ in logged] == [row["step"] for row in rows(tmp_path / "run")] == [0, 1, 2, 2]
    assert logged[1][1] == {key: value for key, value in rows(tmp_path / "run")[1].items() if key != "step"}


def test_tensorboard(setting, tmp_path, monkeypatch):
    scalars, closed = [], []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def __enter__(self):
            return self

        def __exit__(self, *_):
            closed.append(self.folder)

        def add_scalar(self, name, value, step):
            scalars.append((name, value, step))

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    run(*settings(setting, tmp_path / "run", "--steps", "2", "--track", "tensorboard"))
    assert closed == [f"{tmp_path}/run/tensorboard"]
    assert [(v, s) for n, v, s in scalars if n == "loss"] == [
        (row["loss"], row["step"]) for row in rows(tmp_path / "run")
    ]


def test_a_tracker_that_is_not_installed(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what an import of it then raises
    monkeypatch.setattr(setup, "load_language_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert train.main(settings(setting, tmp_path / "run", "--track", "wandb")) == 2
    assert "--track wandb needs the package wandb: pip install wandb" in capsys.readouterr().err

"""Settings of train.py: the help, what it imports, and which of file and command line wins."""

import inspect
import subprocess
import sys

import pytest

from mint.config import TrainConfig
from mint.errors import InputError
from mint.flags import loss_settings, parse
from mint.losses import loss_names
from mint.losses.interface import LOSSES, PRESETS
from tests.conftest import ROOT


def imported_by(*command):
    """The modules that a command imports, and what it prints."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}, done.stdout


def test_help_is_grouped_and_imports_neither_pytorch_nor_drawing_code():
    modules, text = imported_by("train.py", "--help")
    assert "mint.config" in modules
    heavy = ("torch", "numpy", "PIL", "mint.losses", "mint.models", "mint.demo", "mint.synthetic")
    assert not [name for name in modules if name.startswith(heavy)]
    headings = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith((" ", "usage"))]
    assert headings[1:] == ["data", "model", "adapter", "loss", "optimisation", "hardware", "output"]
    assert "dpo       beta 0.1, label_smoothing 0.0, kind sigmoid\n" in text
    assert "peak learning rate (default 5e-05)" in text


def test_the_settings_in_the_help_are_those_of_the_losses():
    listed = loss_settings()
    assert sorted(listed) == loss_names()
    for name, settings in listed.items():
        function, fixed = PRESETS.get(name, (LOSSES.get(name), {}))
        parameters = inspect.signature(function).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default not in (None, inspect.Parameter.empty)}
        assert settings == {key: value for key, value in defaults.items() if key not in fixed}


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], {"tau": 2}),
        (["--loss", "mine.py:f"], {"tau": 2}),
        (["--loss", "dpo"], {}),
        (["--loss", "dpo", "--loss-arg", "beta=1"], {"beta": 1}),
        (["--loss-arg", "beta=1"], {"tau": 2, "beta": 1}),
    ],
)
def test_settings_in_a_file_belong_to_its_loss(tmp_path, arguments, settings):
    (tmp_path / "run.toml").write_text('loss = {name = "mine.py:f", tau = 2}\n')
    assert parse(TrainConfig, ["--config", f"{tmp_path}/run.toml", *arguments], "").loss_args == settings
    (tmp_path / "run.toml").write_text("loss = {tau = 2}\n")  # of whichever loss
    assert parse(TrainConfig, ["--config", f"{tmp_path}/run.toml", "--loss", "dpo"], "").loss_args == {"tau": 2}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--patience", "2"], "--patience needs --best"),
        (["--best", "eval/loss"], "give --eval-data and --eval-every"),
        (
            ["--best", "eval/loss", "--eval-every", "5", "--model", "m", "--data", "d"],
            "give --eval-data and --eval-every",
        ),
        (["--sample-every", "-1"], "--sample-every must be at least 0, not -1"),
        (["--steps", "0"], "--steps must be at least 1, not 0"),
        (["--epochs", "0"], "--epochs must be positive, not 0.0"),
        (["--shard", "--dry-run"], "leave out --shard"),
    ],
)
def test_contradictions(flags, message):
    with pytest.raises(InputError, match=message):
        parse(TrainConfig, flags, "")

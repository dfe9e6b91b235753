"""Paths and adapter settings are checked before the model is loaded, and the settings that a run had are recorded."""

# ruff: noqa: F811

import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import train
from mint.config import TrainConfig
from mint.errors import InputError
from mint.models import load_model
from mint.models.lora import adapter_settings, add_lora, save_adapter
from mint.training import setup
from mint.training.curves import plot_curves, smooth
from mint.training.run_directory import check_run
from tests.test_train import run, setting, settings  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def adapter(setting):
    """An adapter of rank 8 on two of the layers' linear modules."""
    model = add_lora(load_model(setting / "model"), rank=8, alpha=16, dropout=0.1, targets="q_proj,v_proj")
    save_adapter(model, setting / "adapter")
    return setting / "adapter"


@pytest.fixture
def config(setting, tmp_path):
    return TrainConfig(model=str(setting / "model"), data=str(setting / "pairs.jsonl"), out=str(tmp_path / "run"))


def test_good_paths_pass(config, adapter):
    check_run(replace(config, eval_data=config.data, adapter=str(adapter), lora_rank=8, rslora=False))
    assert not Path(config.out).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "missing.jsonl"}, "--data missing.jsonl does not exist"),
        ({"eval_data": "missing.jsonl"}, "--eval-data missing.jsonl does not exist"),
        ({"data": "{folder}"}, "--data .* is not a file"),
        ({"adapter": "{folder}"}, "holds no adapter"),
        ({"resume": "{folder}"}, "is not a checkpoint"),
        ({"out": "{folder}/pairs.jsonl/run"}, "pairs.jsonl is not a folder"),
        ({"image_features": "{folder}/pairs.jsonl"}, "--image-features .*pairs.jsonl is not a folder"),
    ],
)
def test_bad_paths_are_named_before_the_model_is_loaded(setting, config, monkeypatch, changes, message):
    monkeypatch.setattr(setup, "load_language_model", lambda *_, **__: pytest.fail("the model was loaded"))
    changes = {name: value.format(folder=setting) for name, value in changes.items()}
    with pytest.raises(InputError, match=message):
        train.train(replace(config, **changes))


def test_pairs_of_the_hub_need_no_file_here(config):
    check_run(replace(config, data="owner/name", eval_data="owner/name:test"))


def test_a_folder_with_a_run_is_not_written_over(setting, tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        run(*settings(setting, tmp_path / name, "--steps", "1"))
    before = (tmp_path / "b" / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(setup, "load_language_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert train.main(settings(setting, tmp_path / "b")) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert train.main(settings(setting, tmp_path / "b", "--resume", f"{tmp_path}/a/checkpoints/step-1")) == 2
    assert "holds another run than --resume" in capsys.readouterr().err
    assert (tmp_path / "b" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lora_rank": 64}, "--lora-rank 64: the adapter in .* has 8; leave --lora-rank out"),
        ({"lora_rank": 16}, "--lora-rank 16"),  # the default, given
        ({"lora_alpha": 32.0}, "--lora-alpha 32.0: the adapter in .* has 16"),
        ({"lora_dropout": 0.0}, "--lora-dropout 0.0: the adapter in .* has 0.1"),
        ({"rslora": True}, "--rslora True: the adapter in .* has False"),
    ],
)
def test_settings_that_are_not_the_adapters_are_refused(config, adapter, flags, message):
    with pytest.raises(InputError, match=message):
        check_run(replace(config, adapter=str(adapter), **flags))


def test_other_targets_than_the_adapters_are_refused(config, adapter):
    with pytest.raises(InputError, match=r"--lora-targets q_proj: .* covers other layers .q_proj,v_proj"):
        train.train(replace(config, adapter=str(adapter), lora_targets="q_proj"))


def recorded(out):
    settings = tomllib.loads((out / "config.toml").read_text())
    return {name: settings[name] for name in TrainConfig.LORA_DEFAULTS}


def test_the_adapters_own_settings_are_recorded(setting, tmp_path, adapter):
    base = ["--model", f"{setting}/model", "--data", f"{setting}/pairs.jsonl", "--device", "cpu", "--steps", "1"]
    run(*base, "--out", f"{tmp_path}/a", "--adapter", str(adapter), "--lora-targets", "v_proj,q_proj")
    assert recorded(tmp_path / "a") == {
        "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.1, "lora_targets": "q_proj,v_proj", "rslora": False
    }  # fmt: skip
    run("--config", f"{tmp_path}/a/config.toml", "--out", f"{tmp_path}/again")
    run(*base, "--out", f"{tmp_path}/fresh", "--lora-rank", "4")
    assert recorded(tmp_path / "fresh") == {**TrainConfig.LORA_DEFAULTS, "lora_rank": 4}


def test_the_curves(tmp_path, monkeypatch):
    """The NLL has its own axes; of many points the raw line is pale beside the moving average, of few there is one."""
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    rows = [{"step": i, "loss": float(i % 2), "nll_loss": 2.0, "lr": 1e-5} for i in range(40)]
    plot_curves([*rows, {"step": 39, "eval/loss": 0.5}], tmp_path / "many.png")
    plot_curves(rows[:5], tmp_path / "few.png")
    many, few = ([axis for axis in figure.axes if axis.get_visible()] for figure in drawn)
    assert [axis.get_title() for axis in many] == ["loss", "negative log-likelihood", "learning rate"]
    assert [len(axis.lines) for axis in many] == [3, 2, 1] and [len(axis.lines) for axis in few] == [1, 1, 1]
    assert many[0].lines[0].get_ydata().tolist() == [row["loss"] for row in rows]  # raw
    assert many[0].lines[1].get_xdata().tolist() == list(range(2, 38))
    assert abs(many[0].lines[1].get_ydata() - 0.5).max() < 0.2 and many[1].get_ylabel() == "nats per token"
    assert many[2].lines[0].get_ydata().tolist() == [1e-5] * 40  # not smoothed


def test_smoothing_takes_whole_windows_only():
    assert smooth([1.0, 2.0, 6.0, 3.0], 1) == pytest.approx([3.0, 11 / 3])
    line = [2.0 - 0.1 * step for step in range(30)]
    assert smooth(line, 4) == pytest.approx(line[4:-4])


def test_no_metrics_no_curves(tmp_path):
    plot_curves([], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lr", "nan"), "--lr must be a finite number, not nan"),
        (("--epochs", "inf"), "--epochs must be a finite number, not inf"),
        (("--seed", "99999999999999999999"), "--seed must be in"),
    ],
)
def test_values_that_cannot_be_meant(setting, tmp_path, capsys, flags, message):
    assert train.main([*settings(setting, tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"lora_alpha": "16"}, "lora_alpha must be a number, not '16'"),
        ({"r": True}, "r must be a whole number, not True"),
        ({"rank_pattern": ["a"]}, "rank_pattern must be an object"),
    ],
)
def test_settings_of_an_adapter_of_a_wrong_type(adapter, tmp_path, content, message):
    shutil.copytree(adapter, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | content))
    with pytest.raises(InputError, match=message):
        adapter_settings(tmp_path / "adapter")

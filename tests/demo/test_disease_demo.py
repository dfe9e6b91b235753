"""The disease demo from nothing to its table, made small."""

import json
import signal

import pytest

import train
from mint import processes
from mint.config import TrainConfig
from mint.demo import disease_demo, scarce, stages
from mint.demo.cache import cache_folder
from mint.errors import Stopped
from mint.teachers import findings_teacher
from tests.demo.test_arms import InThisProcess

STUDENTS = ["student before", "student after"]


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(processes, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(disease_demo, "DIAGNOSED", 60)
    monkeypatch.setattr(disease_demo, "FACES", 40)
    monkeypatch.setattr(disease_demo, "UNSEEN", 10)
    for name, value in (("UNDIAGNOSED", 40), ("READ", (30, 11))):
        monkeypatch.setattr(scarce, name, value)
    monkeypatch.setattr(findings_teacher.READING, "epochs", 1)
    for recipe in (scarce.BASE, scarce.ALIGN):
        monkeypatch.setitem(recipe, "steps", 3)
        monkeypatch.setitem(recipe, "batch_size", 4)


def test_first_start_builds_once_trains_and_prints_the_table(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    disease_demo.run(TrainConfig(loss="orpo", out=str(out), device="cpu"), train.train)
    printed = capsys.readouterr().out
    assert "Does a model that reads notes" in printed and "minutes on two CPU cores" in printed
    steps = ["building the demo data", "1/3 ", "2/3 ", "3/3 ", "aligning the model of", "10 unseen cases"]
    places = [printed.find(step) for step in steps]
    assert -1 not in places and places == sorted(places)
    table = json.loads((out / "metrics.json").read_text())["rows"]
    assert list(table) == [disease_demo.BOTH, disease_demo.TEXT, *disease_demo.COMPARED, *STUDENTS]
    assert all(row["cases"] == 10 for row in table.values())
    assert table[disease_demo.BOTH]["coverage"] == 1
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 10
    assert f"page: {out}/comparison.html" in printed.splitlines()[-1]
    compared = json.loads((out / "comparison.json").read_text())["systems"]
    assert list(compared)[:2] == STUDENTS and set(compared) == set(table)
    assert all(
        compared[name]["metrics"][score]["value"] == pytest.approx(table[name][score])
        for name in compared
        for score in ("top_1", "car")
    )
    folder = cache_folder("demo", disease_demo.SOURCES)
    assert len((folder / "pairs.jsonl").read_text().splitlines()) == 40 * scarce.PAIRS.variants
    assert len((folder / "unseen.jsonl").read_text().splitlines()) == 10

    second = TrainConfig(loss="dpo", steps=2, out=str(tmp_path / "second"), device="cpu")
    monkeypatch.setattr(disease_demo, "compare", lambda *_: None)
    disease_demo.run(second, train.train)
    assert "building" not in capsys.readouterr().out
    steps = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == [1, 2]  # the user's settings win


def test_a_build_that_is_stopped_leaves_nothing_and_says_so(small, tmp_path):
    with pytest.raises(Stopped, match="stopped while the demo data were being built") as stop:
        disease_demo.run(TrainConfig(), stopped)
    assert stop.value.number == signal.SIGTERM and not list((tmp_path / "cache" / "mint").iterdir())


def stopped(config):
    raise Stopped(signal.SIGTERM, "stopped after step 3 of 6")


def test_a_run_that_is_stopped_is_not_evaluated(tmp_path):
    with pytest.raises(Stopped, match="stopped after step 3 of 6"):
        stages.align(TrainConfig(), stopped, disease_demo.ALIGN, tmp_path, lambda *_: pytest.fail("evaluated"))


def test_flags_of_an_adapter_turn_full_training_off(tmp_path):
    assert stages.complete(TrainConfig(), scarce.ALIGN, tmp_path).full
    for given in (TrainConfig(adapter="runs/sft/adapter"), TrainConfig(lora_rank=8)):
        config = stages.complete(given, scarce.ALIGN, tmp_path)
        assert not config.full and config.lora_rank == given.lora_rank and config.lr == scarce.ALIGN["lr"]

"""The disease demo from nothing to its table, made small."""

import dataclasses
import json
import signal

import pytest

import train
from mint.config import TrainConfig
from mint.demo import disease_demo, stages
from mint.demo.cache import cache_folder, cached
from mint.errors import Stopped


def test_first_start_builds_once_trains_and_prints_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(disease_demo, "SHOWN", (100, 10))
    monkeypatch.setattr(disease_demo, "TAUGHT", (50, 11))
    monkeypatch.setattr(disease_demo, "RANKED", (20, 12))
    monkeypatch.setattr(disease_demo, "UNSEEN", (10, 13))
    monkeypatch.setattr(disease_demo, "FACES", {"count": 100, "epochs": 1})
    monkeypatch.setattr(disease_demo, "TEACHER", dataclasses.replace(disease_demo.TEACHER, epochs=1))
    monkeypatch.setattr(disease_demo, "TEACH", disease_demo.TEACH | {"steps": 6, "batch_size": 16})
    monkeypatch.setattr(disease_demo, "ALIGN", disease_demo.ALIGN | {"steps": 3, "batch_size": 4})
    out = tmp_path / "run"
    disease_demo.run(TrainConfig(loss="orpo", out=str(out), device="cpu"), train.train)
    printed = capsys.readouterr().out
    assert "building the demo data" in printed and "a few minutes on two CPU cores" in printed
    steps = ["1/4 ", "2/4 ", "3/4 ", "4/4 ", "aligning the model of", "10 unseen cases"]
    places = [printed.find(step) for step in steps]
    assert -1 not in places and places == sorted(places)
    table = json.loads((out / "metrics.json").read_text())["rows"]
    teachers, students = (
        ["teacher, image + text", "teacher, text only"],
        ["student before (text only)", "student after (text only)"],
    )
    assert list(table) == teachers + students and all(row["cases"] == 10 for row in table.values())
    assert table["teacher, image + text"]["coverage"] == 1
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 10
    assert f"page: {out}/comparison.html" in printed.splitlines()[-1]
    compared = json.loads((out / "comparison.json").read_text())["systems"]
    assert list(compared) == [*students, *teachers]
    assert all(
        compared[name]["metrics"][score]["value"] == pytest.approx(table[name][score])
        for name in compared
        for score in ("top_1", "car")
    )
    folder = cache_folder("demo", disease_demo.SOURCES)
    made = {"blank", "done", "lessons.jsonl", "model", "pairs.jsonl", "portraits", "teacher", "unseen.jsonl"}
    assert {path.name for path in folder.iterdir()} == made

    second = TrainConfig(loss="dpo", steps=2, out=str(tmp_path / "second"), device="cpu")
    monkeypatch.setattr(disease_demo, "compare", lambda *_: None)
    disease_demo.run(second, train.train)
    assert "building" not in capsys.readouterr().out
    steps = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == [1, 2]  # the user's settings win


def stopped(config):
    raise Stopped(signal.SIGTERM, "stopped after step 3 of 6")


def test_a_build_that_is_stopped_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(Stopped, match="stopped while the demo data were being built") as stop:
        cached("demo", disease_demo.SOURCES, lambda folder: disease_demo.build_base(folder, stopped), "no time")
    assert stop.value.number == signal.SIGTERM and not list((tmp_path / "cache" / "mint").iterdir())


def test_a_run_that_is_stopped_is_not_evaluated(tmp_path):
    with pytest.raises(Stopped, match="stopped after step 3 of 6"):
        stages.align(TrainConfig(), stopped, disease_demo.ALIGN, tmp_path, lambda *_: pytest.fail("evaluated"))


def test_an_adapter_keeps_its_own_rank(tmp_path):
    config = stages.complete(TrainConfig(adapter="runs/sft/adapter"), disease_demo.ALIGN, tmp_path)
    assert config.lora_rank is None and config.lr == disease_demo.ALIGN["lr"]
    assert stages.complete(TrainConfig(), disease_demo.ALIGN, tmp_path).lora_rank == disease_demo.ALIGN["lora_rank"]

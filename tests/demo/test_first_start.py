"""The embedded default from nothing to its table, made small."""

import dataclasses
import json
import signal

import pytest

import train
from mint.config import TrainConfig
from mint.demo import first_start
from mint.demo.cache import cache_folder, cached
from mint.errors import Stopped


def test_first_start_builds_once_trains_and_prints_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(first_start, "SHOWN", (200, 10))
    monkeypatch.setattr(first_start, "TAUGHT", (100, 11))
    monkeypatch.setattr(first_start, "RANKED", (40, 12))
    monkeypatch.setattr(first_start, "UNSEEN", (10, 13))
    monkeypatch.setattr(first_start, "FACES", {"count": 100, "epochs": 1})
    monkeypatch.setattr(first_start, "TEACHER", dataclasses.replace(first_start.TEACHER, epochs=1))
    monkeypatch.setattr(first_start, "TEACH", first_start.TEACH | {"steps": 6, "batch_size": 16})
    monkeypatch.setattr(first_start, "ALIGN", first_start.ALIGN | {"steps": 3, "batch_size": 4})
    out = tmp_path / "run"
    first_start.run(TrainConfig(loss="orpo", out=str(out), device="cpu"), train.train)
    printed = capsys.readouterr().out
    assert "building the embedded default" in printed and "a few minutes on two CPU cores" in printed
    steps = ["1/4 ", "2/4 ", "3/4 ", "4/4 ", "aligning the model of", "10 unseen patients"]
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
    folder = cache_folder("demo", first_start.SOURCES)
    made = {"blank", "done", "lessons.jsonl", "model", "pairs.jsonl", "portraits", "teacher", "unseen.jsonl"}
    assert {path.name for path in folder.iterdir()} == made

    second = TrainConfig(loss="dpo", steps=2, out=str(tmp_path / "second"), device="cpu")
    first_start.run(second, train.train)
    assert "building" not in capsys.readouterr().out
    steps = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == [1, 2]  # the user's settings win


def stopped(config):
    raise Stopped(signal.SIGTERM, "stopped after step 3 of 6")


def test_a_build_that_is_stopped_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(Stopped, match="stopped while the embedded default was being built") as stop:
        cached("demo", first_start.SOURCES, lambda folder: first_start.build_base(folder, stopped), "no time")
    assert stop.value.number == signal.SIGTERM and not list((tmp_path / "cache" / "mint").iterdir())


def test_a_run_that_is_stopped_is_not_evaluated(tmp_path):
    with pytest.raises(Stopped, match="stopped after step 3 of 6"):
        first_start.align(TrainConfig(), stopped, first_start.ALIGN, tmp_path, lambda *_: pytest.fail("evaluated"))


def test_an_adapter_keeps_its_own_rank(tmp_path):
    config = first_start.complete(TrainConfig(adapter="runs/sft/adapter"), first_start.ALIGN, tmp_path)
    assert config.lora_rank is None and config.lr == first_start.ALIGN["lr"]
    assert first_start.complete(TrainConfig(), first_start.ALIGN, tmp_path).lora_rank == first_start.ALIGN["lora_rank"]

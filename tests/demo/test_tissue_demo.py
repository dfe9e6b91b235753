"""The tissue demo from nothing to its table, made small."""

import dataclasses
import json

from PIL import Image

import train
from mint.data.preferences import read_preferences
from mint.data.tiles import PANNUKE_TISSUES
from mint.demo import tissue_demo
from mint.demo.cache import cache_folder


def test_it_builds_once_trains_and_prints_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, tiles in (("SHOWN", (2, 20)), ("TAUGHT", (1, 21)), ("RANKED", (2, 22)), ("UNSEEN", (1, 23))):
        monkeypatch.setattr(tissue_demo, name, tiles)
    monkeypatch.setattr(tissue_demo, "TEACHER", dataclasses.replace(tissue_demo.TEACHER, epochs=1))
    monkeypatch.setattr(tissue_demo, "TEACH", tissue_demo.TEACH | {"steps": 25, "batch_size": 8})
    monkeypatch.setattr(tissue_demo, "ALIGN", tissue_demo.ALIGN | {"steps": 3, "batch_size": 4})
    out = tmp_path / "run"
    assert train.main(["--loss", "orpo", "--demo", "tissue", "--device", "cpu", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "building the demo data" in printed and "19 unseen tiles" in printed
    table = json.loads((out / "metrics.json").read_text())["rows"]
    assert list(table) == ["teacher", "student before", "student after"]
    assert table["teacher"]["coverage"] == 1 and all(row["tiles"] == 19 for row in table.values())
    assert table["student after"]["known"] > 0.5
    assert (out / "report.html").is_file() and Image.open(out / "confusion.png").width > 500
    assert printed.splitlines()[-2:] == [f"page: {out}/comparison.html", f"page: {out}/report.html"]
    assert all(name in (out / "comparison.html").read_text() for name in table)
    folder = cache_folder("tissue", tissue_demo.SOURCES)
    assert {path.name for path in folder.iterdir()} == {
        "blank", "done", "lessons.jsonl", "model", "pairs.jsonl", "teacher", "tiles"
    }  # fmt: skip
    for record in read_preferences(folder / "lessons.jsonl", require_rejected=False):
        listed = record.chosen.text.splitlines()[1:]
        assert listed[0] == f"1. {record.id.split('-')[2]}" or " " in listed[0]
        assert len({line.split(". ")[1] for line in listed} & set(PANNUKE_TISSUES)) == 5

    monkeypatch.setattr(tissue_demo, "compare", lambda *_: None)
    assert (
        train.main(["--loss", "sft", "--demo", "tissue", "--device", "cpu", "--steps", "2", "--out", f"{tmp_path}/b"])
        == 0
    )
    assert "building" not in capsys.readouterr().out
    steps = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == [1, 2]  # the user's settings win

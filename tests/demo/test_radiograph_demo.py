"""The radiograph demo, made small: every stage runs, the cache is used again, both tables are printed."""

import json

import pytest

import train
from mint.data.chat import load_tokenizer
from mint.data.preferences import read_preferences
from mint.demo import radiograph_demo


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A few images and steps; the policy is too little taught to answer, so the true answers stand for its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, drawn in (("SHOWN", (5, 1)), ("TAUGHT", (6, 1)), ("ASKED", 6), ("REPORTED", 2), ("UNSEEN", (5, 3))):
        monkeypatch.setattr(radiograph_demo, name, drawn)
    for recipe in (radiograph_demo.DESCRIBING, radiograph_demo.TEACH, radiograph_demo.ALIGN):
        monkeypatch.setitem(recipe, "steps", 2)
    true = lambda task, loaded, questions, **_: [question.answer for question in questions]  # noqa: E731
    monkeypatch.setattr(radiograph_demo.Vqa, "ask", true)
    return tmp_path


def test_the_whole_of_it(small, monkeypatch, capsys):
    assert train.main(["--loss", "fire", "--demo", "radiograph", "--out", f"{small}/run", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "100.0 % right as they stood" in printed and "by a mask" in printed
    assert printed.count("| before |") == 2 and printed.count("| after |") == 2 and "drop, lesion" in printed
    pages = [f"{small}/run/comparison.html", f"{small}/run/sensitivity/comparison.html"]
    assert printed.splitlines()[-2:] == [f"page: {page}" for page in pages]
    (cache,) = (small / "cache" / "mint").glob("radiograph-*")
    pairs = read_preferences(cache / "pairs.jsonl")
    assert all(len(pair.corrupted_images) == ("mask" in pair.extra) for pair in pairs)  # a denial has nothing to hide
    assert all((cache / name).is_file() for pair in pairs for name in pair.corrupted_images)
    assert sum(pair.id.startswith("reported") for pair in pairs) == 2
    assert all(pair.chosen.spans or pair.rejected.spans for pair in pairs)
    assert not list(cache.glob("*describing*")) and (cache / "model" / "config.json").is_file()
    rows = [json.loads(line) for line in (small / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and 0.693147 < rows[0]["loss"] < 1.1 * 0.693147  # ln 2, and of some a tenth of it
    monkeypatch.setattr(radiograph_demo, "compare", lambda *_: None)
    assert train.main(["--loss", "mdpo", "--demo", "radiograph", "--out", f"{small}/again", "--device", "cpu"]) == 0
    assert "building the demo data" not in capsys.readouterr().out
    for name in ("before", "after"):
        scores = json.loads((small / "run" / f"scores-{name}" / "metrics.json").read_text())["scores"]
        assert scores["clinical"]["value"] == 1.0
        assert (small / "run" / f"scores-{name}" / "sensitivity" / "metrics.json").is_file()
    _, offsets = load_tokenizer(str(cache / "model")).answer_offsets("There is a large nodule on the left.")
    assert all(" " not in "There is a large nodule on the left."[start:end].strip() for start, end in offsets)  # words

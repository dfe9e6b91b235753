"""The window into a pair: its numbers are the loss's, its page is whole."""

import json
import re

import pytest
import torch

import evaluate
import train
from mint.data.preferences import write_jsonl
from tests.tasks.test_compare import Page
from tests.test_corrupted_images import pictured  # noqa: F401
from tests.test_train_images import arguments, records, setting  # noqa: F401


def inspect(folder, *extra):
    command = ["inspect", "--model", f"{folder}/model", "--data", f"{folder}/pairs.jsonl", "--device", "cpu"]
    return evaluate.main([*command, "--out", f"{folder}/pair.html", *extra])


def test_the_terms_are_those_of_training(pictured, capsys):  # noqa: F811
    """After some steps: the terms sum to the loss that train.py reports of the same pair."""
    common = ["--loss", "fire", "--lr", "1e-2", "--lora-targets", "language_model"]
    assert train.main(arguments(pictured, *common, "--steps", "5")) == 0
    one = [json.loads(line) for line in (pictured / "pairs.jsonl").read_text().splitlines()][0]
    write_jsonl(pictured / "one.jsonl", [one])
    capsys.readouterr()
    assert inspect(pictured, "--adapter", f"{pictured}/run/adapter") == 0
    printed = capsys.readouterr().out
    terms = {name: float(value) for name, value in re.findall(r"([a-zA-Z][\w. ]*?) (\d+\.\d{5})", printed)}
    assert list(terms)[0] == "ranking" and terms["loss"] != pytest.approx(1.1 * 0.6931, abs=1e-3)
    assert sum(value for name, value in terms.items() if name != "loss") == pytest.approx(terms["loss"], abs=5e-5)
    more = ["--adapter", f"{pictured}/run/adapter", "--data", f"{pictured}/one.jsonl", "--out", f"{pictured}/again"]
    assert (
        train.main(arguments(pictured, "--loss", "fire", "--steps", "1", "--eval-data", f"{pictured}/one.jsonl", *more))
        == 0
    )
    first = json.loads((pictured / "again" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["eval/loss"] == pytest.approx(1.1 * 0.693147, abs=1e-4)  # there the adapter is the reference


def test_the_page(pictured, capsys):  # noqa: F811
    assert inspect(pictured, "--row", "1") == 0
    text = (pictured / "pair.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.open and not page.scripts and len(page.links) == 4  # two images, and where the model looks on them
    assert "attention, clean" in text and "attention, corrupted" in text
    assert text.count("under the corrupted image") == 2 and "KL(pi || ref)" in text and "border-bottom" in text
    assert inspect(pictured, "--row", "2", "--out", f"{pictured}/second.html") == 0  # without a corrupted image
    assert (pictured / "second.html").read_text().count("under the corrupted image") == 0
    assert inspect(pictured, "--row", "5", "--out", f"{pictured}/x") == 2 and "4 records" in capsys.readouterr().err
    assert inspect(pictured) == 2 and "pair.html exists already" in capsys.readouterr().err


def test_spans_from_the_difference(setting, capsys):  # noqa: F811
    write_jsonl(setting / "pairs.jsonl", list(records(2)))
    assert inspect(setting, "--spans", "changes") == 0
    text = (setting / "pair.html").read_text()
    marked = re.findall(r"border-bottom[^>]*>([^<]*)</span>", text)
    assert "".join(dict.fromkeys(marked)).strip() and "It" not in "".join(marked)
    assert (
        torch.tensor([float(v) for v in re.findall(r'title="([-+]\d\.\d+)"', text)]).abs().max() < 1e-3
    )  # no adapter: pi = ref

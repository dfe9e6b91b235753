"""The window into a pair: its numbers are the loss's, its page is whole."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import train
from mint.data.preferences import write_jsonl
from mint.tasks.inspect_pair import _outline, loss_of_run
from tests.tasks.test_compare import Page
from tests.test_corrupted_images import pictured  # noqa: F401
from tests.test_train_images import arguments, records, setting  # noqa: F401


def inspect(folder, *extra):
    command = ["inspect", "--model", f"{folder}/model", "--data", f"{folder}/pairs.jsonl", "--device", "cpu"]
    return evaluate.main([*command, "--out", f"{folder}/pair.html", *extra])


@pytest.mark.parametrize("kl_over", ["span", "all"])
def test_the_terms_are_those_of_training(pictured, capsys, kl_over):  # noqa: F811
    """After some steps: the terms sum to the loss that train.py reports of the same pair, a KL is its line's sum."""
    common = ["--loss", "fire", "--lr", "1e-2", "--lora-targets", "language_model", "--loss-arg", f"kl_over={kl_over}"]
    assert train.main(arguments(pictured, *common, "--steps", "5")) == 0
    one = [json.loads(line) for line in (pictured / "pairs.jsonl").read_text().splitlines()][0]
    write_jsonl(pictured / "one.jsonl", [one])
    capsys.readouterr()
    assert inspect(pictured, "--adapter", f"{pictured}/run/adapter") == 0
    printed = capsys.readouterr().out
    terms = {name: float(value) for name, value in re.findall(r"([a-zA-Z][\w. ]*?) (\d+\.\d{5})", printed)}
    assert list(terms)[0] == "ranking" and terms["loss"] != pytest.approx(1.1 * 0.6931, abs=1e-3)
    assert sum(value for name, value in terms.items() if name != "loss") == pytest.approx(terms["loss"], abs=5e-5)
    (divergence,) = re.findall(r"KL\(ref \|\| pi\): sum ([\d.]+) nats", (pictured / "pair.html").read_text())
    assert 0.005 * float(divergence) == pytest.approx(terms["KL forward x 0.005"], abs=1e-5)
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
    assert text.count("under the corrupted image") == 2 and "KL(pi || ref)" in text and 'class="token marked"' in text
    assert "-3 <span" in text and "+3 nats" in text and "Loss: fire" in text  # the scale is fixed and labelled
    sizes = re.findall(r'flex: ([\d.]+) 1 0"><img alt="(?:clean|corrupted)"[^>]* width="(\d+)" height="(\d+)"', text)
    assert len(sizes) == 2 and all(float(flex) == pytest.approx(int(w) / int(h), abs=1e-3) for flex, w, h in sizes)
    assert inspect(pictured, "--row", "2", "--out", f"{pictured}/second.html") == 0  # without a corrupted image
    assert (pictured / "second.html").read_text().count("under the corrupted image") == 0
    rows = [json.loads(line) for line in (pictured / "pairs.jsonl").read_text().splitlines()]
    write_jsonl(pictured / "boxed.jsonl", [row | {"boxes": [[1, 1, 4, 4]]} for row in rows])
    boxed = ["--data", f"{pictured}/boxed.jsonl", "--row", "3", "--out", f"{pictured}/third.html"]
    assert inspect(pictured, *boxed) == 0  # the corrupted image has another size than the box was drawn for
    assert "Yellow line" in (pictured / "third.html").read_text() and "Yellow line" not in text
    assert inspect(pictured, "--row", "5", "--out", f"{pictured}/x") == 2 and "4 records" in capsys.readouterr().err
    assert inspect(pictured) == 2 and "pair.html exists already" in capsys.readouterr().err


def test_spans_from_the_difference(setting, capsys):  # noqa: F811
    write_jsonl(setting / "pairs.jsonl", list(records(2)))
    assert inspect(setting, "--spans", "changes") == 0
    text = (setting / "pair.html").read_text()
    marked = re.findall(r'class="token marked"[^>]*>([^<]*)<', text)
    assert "".join(dict.fromkeys(marked)).strip() and "It" not in "".join(marked)
    assert (
        torch.tensor([float(v) for v in re.findall(r'title="([-+]\d\.\d+)"', text)]).abs().max() < 1e-3
    )  # no adapter: pi = ref


def test_the_settings_are_those_of_the_adapters_run(pictured, capsys):  # noqa: F811
    """Loss, its settings and spans come from config.toml beside the adapter or above a checkpoint; flags win."""
    run = ["--loss", "dpo", "--beta", "0.7", "--spans", "changes", "--steps", "1", "--lora-targets", "language_model"]
    assert train.main(arguments(pictured, *run)) == 0
    loss, spans = loss_of_run(f"{pictured}/run/adapter", {})
    assert (loss.name, loss.options, spans) == ("dpo", {"beta": 0.7}, "changes")
    assert loss_of_run(f"{pictured}/run/checkpoints/step-1/adapter", {"beta": 0.2})[0].options == {"beta": 0.2}
    shutil.copytree(pictured / "run" / "adapter", pictured / "elsewhere" / "adapter")
    assert loss_of_run(f"{pictured}/elsewhere/adapter", {})[0].name == loss_of_run(None, {})[0].name == "fire"
    capsys.readouterr()
    assert inspect(pictured, "--adapter", f"{pictured}/run/adapter") == 0
    value = float(re.search(r"^loss (\S+)$", capsys.readouterr().out, re.MULTILINE)[1])
    text = (pictured / "pair.html").read_text()
    gaps = [float(v) for v in re.findall(r"log pi - log ref: sum ([-+][\d.]+) nats", text)[:2]]
    assert "Loss: dpo" in text and "beta 0.7" in text
    assert value == pytest.approx(math.log1p(math.exp(-0.7 * (gaps[0] - gaps[1]))), abs=2e-4)  # no spans for dpo


def test_the_lesion_is_outlined():
    """A line around the mask in the enlarged picture; inside it and away from it nothing changes."""
    mask = np.zeros((30, 60), dtype=bool)
    mask[10:20, 20:40] = True
    plain = Image.new("RGB", (60, 30), (90, 90, 90))
    pixels = np.asarray(_outline(plain, mask))
    assert pixels.shape == (210, 420, 3) and np.array_equal(_outline(plain, None), np.full((210, 420, 3), 90))
    assert (pixels[105, 139] == (255, 214, 0)).all() and (pixels[105, 136] == 0).all()  # the mask begins at 140
    assert (pixels[75:135, 145:275] == 90).all() and (pixels[:60] == 90).all()

"""The second task as a user runs it: tiles, a CLIP, its pairs, a student that reads images, scores and a page."""

import json

import numpy as np
import pytest
from PIL import Image

import evaluate
import generate_prefs
import train
from mint.data.tiles import PANNUKE_TISSUES
from mint.demo import __main__ as demo


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tissue")
    assert demo.main(["tiles", "--out", f"{folder}/tiles", "--train", "3", "--test", "1"]) == 0
    command = ["clip", "--cases", f"{folder}/tiles", "--split", "train", "--fit", f"{folder}/clip", "--teacher-epochs", "1"]
    assert generate_prefs.main([*command, "--out", f"{folder}/tiles/pairs.jsonl", "--device", "cpu"]) == 0
    command = ["base", "--pairs", f"{folder}/tiles/pairs.jsonl", "--out", f"{folder}/blank", "--shape", "demo", "--images"]
    assert demo.main([*command, "--vocabulary", "500"]) == 0
    common = ["--model", f"{folder}/blank", "--data", f"{folder}/tiles/pairs.jsonl", "--device", "cpu", "--batch-size", "8"]
    assert train.main(["--loss", "orpo", "--full", "--steps", "25", "--lr", "2e-3", *common, "--out", f"{folder}/run"]) == 0
    return folder


def tissue(setting, out, *arguments):
    command = ["tissue", "--cases", f"{setting}/tiles", "--split", "test", "--teacher", f"{setting}/clip", "--device", "cpu"]
    return evaluate.main([*command, "--out", str(out), *arguments])


def test_a_student_that_has_learned_the_form(setting, tmp_path, capsys):
    assert tissue(setting, tmp_path / "s", "--model", f"{setting}/run/model", "--name", "student") == 0
    assert "19 tiles, 0 answers without a list" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "s").iterdir()}
    assert files == {"confusion.png", "metrics.json", "predictions.jsonl", "report.html", "tissues.csv"}
    metrics = json.loads((tmp_path / "s" / "metrics.json").read_text())
    assert list(metrics["rows"]) == ["upstream (zero-shot CLIP)", "student"]
    assert metrics["rows"]["upstream (zero-shot CLIP)"]["coverage"] == 1 and metrics["rows"]["student"]["known"] > 0.5
    assert np.sum(metrics["confusion"]) == 19 and tuple(metrics["tissues"]) == PANNUKE_TISSUES
    records = [json.loads(line) for line in (tmp_path / "s" / "predictions.jsonl").read_text().splitlines()]
    assert sum(record["top_5"] for record in records) / 19 == pytest.approx(metrics["rows"]["student"]["top_5"])
    assert all((tmp_path / "s" / record["image"]).is_file() and len(record["teacher"]) == 5 for record in records)
    page = (tmp_path / "s" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 20 and "http" not in page
    assert len((tmp_path / "s" / "tissues.csv").read_text().splitlines()) == 20
    with Image.open(tmp_path / "s" / "confusion.png") as picture:
        assert min(picture.size) > 500


def test_only_models_that_write_are_trained(setting, capsys):
    command = ["--model", f"{setting}/clip", "--data", f"{setting}/tiles/pairs.jsonl", "--out", f"{setting}/no"]
    assert train.main([*command, "--steps", "1"]) == 2
    assert "is a clip model, which writes no text" in capsys.readouterr().err and not (setting / "no").exists()


def test_the_upstream_alone(setting, tmp_path):
    assert tissue(setting, tmp_path / "u", "--ranker-only") == 0
    rows = json.loads((tmp_path / "u" / "metrics.json").read_text())["rows"]
    assert list(rows) == ["upstream (zero-shot CLIP)"] and rows["upstream (zero-shot CLIP)"]["car"] > 0.9


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "{}/text"], "reads no images"),
        (["--model", "{}/clip"], "is a clip model, which writes no text"),
        (["--ranker-only", "--adapter", "x"], "--adapter goes with --model"),
        (["--ranker-only", "--bottom-q", "15"], "overlap"),
        (["--ranker-only", "--teacher", "{}/blank"], "is no CLIP"),
    ],
)
def test_mistakes(setting, tmp_path, capsys, arguments, message):
    if not (setting / "text").exists():
        command = ["base", "--pairs", f"{setting}/tiles/pairs.jsonl", "--out", f"{setting}/text", "--shape", "demo"]
        assert demo.main([*command, "--vocabulary", "500"]) == 0
    assert tissue(setting, tmp_path / "x", *(part.replace("{}", str(setting)) for part in arguments)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()

"""The second task as a user runs it: tiles, a CLIP, its pairs, a student that reads images, scores and a page."""

import json
import re
import shutil

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
    command = f"clip --cases {folder}/tiles --split train --fit {folder}/clip --teacher-epochs 1".split()
    assert generate_prefs.main([*command, "--out", f"{folder}/tiles/pairs.jsonl", "--device", "cpu"]) == 0
    command = ["base", "--vision", "--pairs", f"{folder}/tiles/pairs.jsonl", "--out", f"{folder}/blank"]
    assert demo.main([*command, "--shape", "demo", "--vocabulary", "500"]) == 0
    common = [
        "--model",
        f"{folder}/blank",
        "--data",
        f"{folder}/tiles/pairs.jsonl",
        "--device",
        "cpu",
        "--batch-size",
        "8",
    ]
    assert (
        train.main(["--loss", "orpo", "--full", "--steps", "25", "--lr", "2e-3", *common, "--out", f"{folder}/run"])
        == 0
    )
    return folder


def tissue(setting, out, *arguments):
    command = [
        "tissue",
        "--cases",
        f"{setting}/tiles",
        "--split",
        "test",
        "--teacher",
        f"{setting}/clip",
        "--device",
        "cpu",
    ]
    return evaluate.main([*command, "--out", str(out), *arguments])


def test_another_prompt_of_pairs_and_scores(setting, tmp_path):
    prompt = tmp_path / "prompt.toml"
    prompt.write_text('user = "Which {count} of {tissues}?"\nheader = "ORGANS:"\n')
    command = ["tissue", "--cases", f"{setting}/tiles", "--split", "test", "--teacher", f"{setting}/clip"]
    assert generate_prefs.main([*command, "--prompt", str(prompt), "--out", f"{tmp_path}/pairs.jsonl"]) == 0
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert all(pair["prompt"] == pairs[0]["prompt"] and pair["chosen"].startswith("ORGANS:\n1. ") for pair in pairs)
    assert pairs[0]["prompt"] == [{"role": "user", "content": f"Which 5 of {', '.join(PANNUKE_TISSUES)}?"}]
    lines = [json.dumps({"id": pair["id"], "answer": f"1. Lung\nORGANS:\n1. {pair['tissue']}"}) for pair in pairs]
    (tmp_path / "theirs.jsonl").write_text("\n".join(lines))
    scored = ("--predictions", f"{tmp_path}/theirs.jsonl", "--prompt", str(prompt), "--name", "theirs")
    assert tissue(setting, tmp_path / "scores", *scored) == 0
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["rows"]["theirs"]["top_1"] == 1


def test_pairs_of_a_students_own_lists(setting, tmp_path):
    command = f"tissue --cases {setting}/tiles --split test --teacher {setting}/clip --device cpu --reject policy"
    policy = f"--policy {setting}/run/model --policy-samples 2 --policy-tokens 40 --out {tmp_path}/pairs.jsonl"
    assert generate_prefs.main([*command.split(), *policy.split()]) == 0
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    report = json.loads((tmp_path / "pairs.jsonl.report.json").read_text())["pairs"]
    assert report["notes"] == len(PANNUKE_TISSUES) == len(rows) + report["same"] + report["without_list"]
    assert rows and all(len(row["teacher"]["list_scores"]) == 2 and row["images"] for row in rows)
    assert any(row["rejected"].startswith("MOST_LIKELY_TISSUE:") for row in rows)


def test_a_student_that_has_learned_the_form(setting, tmp_path, capsys):
    assert tissue(setting, tmp_path / "s", "--model", f"{setting}/run/model", "--name", "student") == 0
    *_, summary, saved_in = capsys.readouterr().out.splitlines()
    assert summary.startswith("19 tiles, 0 answers without a list: top-1 ") and "macro F1 " in summary
    assert saved_in.startswith(f"saved in {tmp_path}/s: confusion.png, metrics.json")
    files = {path.name for path in (tmp_path / "s").iterdir()}
    results = {"confusion.png", "metrics.json", "predictions.jsonl", "report.html", "tissues.csv"}
    assert files == results | {"answers.jsonl", "settings.json"}
    metrics = json.loads((tmp_path / "s" / "metrics.json").read_text())
    assert list(metrics["rows"]) == ["teacher (zero-shot CLIP)", "student"]
    assert metrics["rows"]["teacher (zero-shot CLIP)"]["coverage"] == 1 and metrics["rows"]["student"]["known"] > 0.5
    assert np.sum(metrics["confusion"]) == 19 and tuple(metrics["tissues"]) == PANNUKE_TISSUES
    records = [json.loads(line) for line in (tmp_path / "s" / "predictions.jsonl").read_text().splitlines()]
    assert sum(record["top_5"] for record in records) / 19 == pytest.approx(metrics["rows"]["student"]["top_5"])
    assert all((tmp_path / "s" / record["images"][0]).is_file() and len(record["teacher"]) == 5 for record in records)
    page = (tmp_path / "s" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 19 and "http" not in page and "<script" not in page
    wrong = sum(not record["top_1"] for record in records)
    assert page.count('class="tile wrong"') == wrong and page.count('class="tile plain"') == 19 - wrong
    cells = re.findall(
        r"<td[^>]*>(\d+)<br><small>(\d+)</small>", page
    )  # one tile of each tissue: 1 is 100 % of its row
    assert cells == [("1", "100")] * 19
    assert len((tmp_path / "s" / "tissues.csv").read_text().splitlines()) == 20
    answers = tmp_path / "s" / "answers.jsonl"
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:7]))
    assert tissue(setting, tmp_path / "s", "--model", f"{setting}/run/model", "--name", "student", "--resume") == 0
    again = [json.loads(line) for line in (tmp_path / "s" / "predictions.jsonl").read_text().splitlines()]
    assert again == records and len(answers.read_text().splitlines()) == 19
    with Image.open(tmp_path / "s" / "confusion.png") as picture:
        assert min(picture.size) > 500


def test_only_models_that_write_are_trained(setting, capsys):
    command = ["--model", f"{setting}/clip", "--data", f"{setting}/tiles/pairs.jsonl", "--out", f"{setting}/no"]
    assert train.main([*command, "--steps", "1"]) == 2
    assert "is a clip model, which writes no text" in capsys.readouterr().err and not (setting / "no").exists()


def test_the_teacher_alone(setting, tmp_path):
    assert tissue(setting, tmp_path / "u", "--ranker-only") == 0
    rows = json.loads((tmp_path / "u" / "metrics.json").read_text())["rows"]
    assert list(rows) == ["teacher (zero-shot CLIP)"] and rows["teacher (zero-shot CLIP)"]["car"] > 0.9


def test_evaluations_are_compared(setting, tmp_path, capsys):
    assert tissue(setting, tmp_path / "u", "--ranker-only") == 0
    assert tissue(setting, tmp_path / "s", "--model", f"{setting}/run/model", "--name", "student") == 0
    command = ["compare", f"teacher={tmp_path}/u", f"{tmp_path}/s", "--out", f"{tmp_path}/c", "--case-pages", "4"]
    command += ["--images", str(setting)]
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    assert "| | runs | top-1 | top-5 | known names |" in printed and "| teacher | student | top-5 |" in printed
    page = (tmp_path / "c" / "comparison.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "Place of the true tissue" in page and "Note</b>" not in page
    systems = json.loads((tmp_path / "c" / "comparison.json").read_text())["systems"]
    assert sum(systems["teacher"]["ranks"].values()) == 19
    records = [json.loads(line) for line in (tmp_path / "u" / "predictions.jsonl").read_text().splitlines()]
    assert systems["teacher"]["ranks"].get("1", 0) == sum(r["listed"][0] == r["tissue"] for r in records)
    command = ["compare", f"both={tmp_path}/u,{tmp_path}/d", "--out", f"{tmp_path}/both"]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "metrics.json").write_text('{"rows": {"a": {}}}')
    scores = dict.fromkeys(["top_1", "top_10", "top_1_exact", "top_10_exact", "hallucination_free"], 1.0)
    scores |= dict.fromkeys(["coverage", "avoidance", "car"], 1.0)
    (tmp_path / "d" / "predictions.jsonl").write_text(json.dumps({"id": "a", "disease": "x", "listed": [], **scores}))
    assert evaluate.main(command) == 2 and "joins evaluations of diseases and of tissues" in capsys.readouterr().err


def test_few_tissues_and_several_views(setting, tmp_path):
    """Three tissues: one is chosen, one rejected; every tile gives three pairs, two of them of turned parts."""
    tiles = shutil.copytree(setting / "tiles", tmp_path / "tiles")
    rows = (tiles / "tiles.csv").read_text().splitlines()
    few = [row for row in rows[1:] if any(name in row for name in ("Colon", "Liver", "Lung"))]
    (tiles / "few.csv").write_text("\n".join([rows[0], *few]) + "\n")
    command = ["clip", "--cases", f"{tiles}/few.csv", "--split", "train", "--teacher", f"{setting}/clip"]
    out = tmp_path / "few.jsonl"
    assert generate_prefs.main([*command, "--views", "3", "--out", str(out), "--device", "cpu"]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 27 and len({record["id"] for record in records}) == 27
    for record in records:
        assert "Name the most likely of these tissues" in record["prompt"][0]["content"]
        assert (
            record["chosen"].count("\n") == record["rejected"].count("\n") == 1
            and record["chosen"] != record["rejected"]
        )
    assert sum(record["images"][0].startswith("few.views/") for record in records) == 18
    common = ["--model", f"{setting}/blank", "--data", str(out), "--device", "cpu", "--steps", "1"]
    assert train.main(["--loss", "orpo", "--full", *common, "--out", f"{tmp_path}/run"]) == 0
    command = ["tissue", "--cases", f"{tiles}/few.csv", "--split", "test", "--teacher", f"{setting}/clip"]
    assert (
        evaluate.main([*command, "--model", f"{tmp_path}/run/model", "--out", f"{tmp_path}/s", "--device", "cpu"]) == 0
    )
    records = [json.loads(line) for line in (tmp_path / "s" / "predictions.jsonl").read_text().splitlines()]
    assert len(records) == 3 and all(len(record["teacher"]) == 1 for record in records)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "{}/text"], "reads no images"),
        (["--model", "{}/clip"], "is a clip model, which writes no text"),
        (["--ranker-only", "--adapter", "x"], "--adapter goes with --model"),
        (["--ranker-only", "--max-pixels", "9"], "--max-pixels goes with --model"),
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

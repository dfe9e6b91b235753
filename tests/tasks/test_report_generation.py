"""Scores of reports: by hand, against nltk's corpus BLEU, findings with their denials; the command on a tiny model."""

import dataclasses
import json

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from PIL import Image

import evaluate
from mint.demo.tiny_model import TOWER, write_base
from mint.errors import InputError
from mint.evaluation.scores import estimate
from mint.tasks.base import score_answers
from mint.tasks.report_generation import (
    COLUMNS,
    LONGEST,
    Report,
    by_finding,
    read_findings,
    rouge_l,
    score_report,
    stated,
)
from mint.tasks.vqa import words

REFERENCE = "The heart is enlarged. There is a small left pleural effusion. No pneumothorax or focal consolidation."
TOLD = "There is cardiomegaly. There is no pleural effusion. No pneumothorax. Degenerative changes of the spine."


def summarize(scores):
    return estimate(COLUMNS, [[dataclasses.asdict(score) for score in scores]])


def test_findings_by_hand():
    """Cardiomegaly by another name; the effusion is denied; the spine is added. pneumothorax: denied by both."""
    findings = read_findings()
    assert stated(REFERENCE, findings) == ({"cardiomegaly", "pleural effusion"}, {"pneumothorax", "consolidation"})
    assert stated(TOLD, findings) == ({"cardiomegaly", "scoliosis"}, {"pleural effusion", "pneumothorax"})
    score = score_report(TOLD, REFERENCE, findings)
    assert score.found == (1, 2, 2) and score.denied == (1, 2, 2)
    means = summarize([score, score_report(REFERENCE, REFERENCE, findings)])
    assert means["precision"].value == pytest.approx(3 / 4) and means["recall"].value == pytest.approx(3 / 4)
    assert means["f1"].value == pytest.approx(3 / 4) and means["denied"].value == pytest.approx(3 / 4)
    rows = {row["finding"]: row for row in by_finding([TOLD], [REFERENCE], findings)}
    assert set(rows) == {"cardiomegaly", "pleural effusion", "scoliosis"}
    assert rows["pleural effusion"] == {
        "finding": "pleural effusion",
        "n_shared": 0,
        "n_predicted": 0,
        "n_reference": 1,
    }


def test_said_both_ways_counts_as_there():
    findings = read_findings()
    assert stated("No left pleural effusion. A right pleural effusion.", findings) == ({"pleural effusion"}, set())


def test_bleu_is_that_of_nltk():
    """Over corpora of random texts, also such with repeated words; to 1e-9."""
    rng = np.random.default_rng(0)
    vocabulary = ["no", "acute", "effusion", "heart", "normal", "lungs", "clear", "the"]
    texts = [[" ".join(rng.choice(vocabulary, rng.integers(6, 30))) for _ in range(2)] for _ in range(25)]
    means = summarize([score_report(told, true, ()) for told, true in texts])
    told, true = [words(pair[0]) for pair in texts], [[words(pair[1])] for pair in texts]
    for n in range(1, LONGEST + 1):
        assert means[f"bleu_{n}"].value == pytest.approx(corpus_bleu(true, told, weights=[1 / n] * n), abs=1e-9)
        assert means[f"bleu_{n}"].low <= means[f"bleu_{n}"].value <= means[f"bleu_{n}"].high


def test_rouge_and_meteor_by_hand():
    """LCS "a c d" of 4 and 5 words: 6 / 9. METEOR: three matches in two chunks, one of them by its stem."""
    assert rouge_l("a b c d".split(), "a c x d y".split()) == pytest.approx(6 / 9)
    assert rouge_l([], ["a"]) == 0.0
    score = score_report("left effusions unchanged today", "left effusion is unchanged", ())
    precision, recall = 3 / 4, 3 / 4
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    assert score.meteor == pytest.approx(mean * (1 - 0.5 * (2 / 3) ** 3))
    assert score_report("", "a b", ()).meteor == 0.0


def test_empty_and_bad(tmp_path):
    empty = summarize([score_report("", "Clear lungs.", read_findings())])
    assert all(np.isfinite(e.value) and e.value == 0.0 for e in empty.values())
    with pytest.raises(InputError, match="no reports"):
        score_answers(Report(), "x", [], [])
    (tmp_path / "twice.tsv").write_text("a\tb\nc\tA\n")
    with pytest.raises(InputError, match="names 'a' twice"):
        read_findings(tmp_path / "twice.tsv")
    with pytest.raises(InputError, match="cannot be read"):
        read_findings(tmp_path / "none.tsv")


def test_the_command_on_iu_xray(tmp_path, capsys):
    """Two views of a patient go into one prompt; the split that is asked for is read."""
    for name in ("p1/0.png", "p1/1.png", "p2/0.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 16), 90).save(tmp_path / "images" / name)
    rows = {
        "train": [{"id": "p0", "report": "x", "image_path": ["none.png"], "split": "train"}],
        "test": [
            {"id": "p1", "report": REFERENCE, "image_path": ["p1/0.png", "p1/1.png"], "split": "test"},
            {"id": "p2", "report": "Clear lungs.", "image_path": ["p2/0.png"], "split": "test"},
        ],
    }
    (tmp_path / "annotation.json").write_text(json.dumps(rows))
    texts = [REFERENCE, TOLD, "user assistant system"]
    model = write_base(tmp_path / "model", texts, "demo", 300, vision={**TOWER, "patch_size": 16})
    command = ["report", "--model", f"{model}", "--reports", f"{tmp_path}/annotation.json", "--max-new-tokens", "8"]
    assert evaluate.main([*command, "--device", "cpu", "--name", "tiny", "--out", f"{tmp_path}/out"]) == 0
    printed = capsys.readouterr().out
    assert "2 questions on 2 images (2 open)" in printed and "| tiny |" in printed and "2 reports" in printed
    saved = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [len(row["images"]) for row in saved] == [2, 1] and saved[0]["reference"] == REFERENCE
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())["scores"]) >= {"bleu_4", "meteor", "f1"}
    *_, summary, saved_in = printed.splitlines()
    assert (
        "BLEU-1 " in summary and saved_in == f"saved in {tmp_path}/out: findings.csv, metrics.json, predictions.jsonl"
    )
    assert (tmp_path / "out" / "findings.csv").read_text().startswith("finding,n_shared,n_predicted,n_reference\n")
    assert evaluate.main([*command, "--split", "val", "--device", "cpu", "--out", f"{tmp_path}/other"]) != 0
    assert "no split 'val'" in capsys.readouterr().err

"""Scores of reports: by hand, against nltk's corpus BLEU, findings with their denials; the command on a tiny model."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from nltk.translate.bleu_score import corpus_bleu
from PIL import Image

import evaluate
from mint.data.chat import load_tokenizer
from mint.demo.tiny_model import TOWER, write_base
from mint.errors import InputError
from mint.evaluation import green
from mint.evaluation.scores import estimate
from mint.models import load_model, save_model
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
from tests.prefs.test_edit_pairs import Server, address  # noqa: F401

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
    with pytest.raises(InputError, match="does not exist"):
        read_findings(tmp_path / "none.tsv")


@pytest.fixture
def iu_xray(tmp_path):
    """annotation.json of two patients, the first with two views, and a tiny model; the command that scores it."""
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
    return [*command, "--device", "cpu", "--name", "tiny", "--keep-notes"]


def saved(folder):
    """(metrics.json, records) of an evaluation."""
    records = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return json.loads((folder / "metrics.json").read_text()), records


def test_the_command_on_iu_xray(iu_xray, tmp_path, capsys):
    """Two views of a patient go into one prompt; the split that is asked for is read."""
    assert evaluate.main([*iu_xray, "--out", f"{tmp_path}/out"]) == 0
    printed = capsys.readouterr().out
    assert "2 questions on 2 images (2 open)" in printed and "| tiny |" in printed and "2 reports" in printed
    metrics, records = saved(tmp_path / "out")
    assert [len(row["images"]) for row in records] == [2, 1] and records[0]["reference"] == REFERENCE
    assert set(metrics["scores"]) >= {"bleu_4", "meteor", "f1"}
    assert not {"green", "chexbert_micro_14", "radgraph_partial", "judged"} & set(metrics["scores"])
    *_, summary, saved_in = printed.splitlines()
    assert (
        "BLEU-1 " in summary and saved_in == f"saved in {tmp_path}/out: findings.csv, metrics.json, predictions.jsonl"
    )
    assert (tmp_path / "out" / "findings.csv").read_text().startswith("finding,n_shared,n_predicted,n_reference\n")
    assert evaluate.main([*iu_xray, "--split", "val", "--out", f"{tmp_path}/other"]) != 0
    assert "no split 'val'" in capsys.readouterr().err


REPLY = "[Clinically Significant Errors]:\n(b) Missing: 1. Mass.\n\n[Matched Findings]:\n3. Heart; Spine; Lungs."


def teach(judge, reply):
    """Trains a judge to give one reply to every prompt."""
    model, tokenizer = load_model(judge), load_tokenizer(judge, template=green.TEMPLATE)
    answer = tokenizer.encode_answer(reply)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for candidate in [TOLD, REFERENCE] * 15:
        tokens = torch.tensor([tokenizer.encode_chat(green.green_prompt(REFERENCE, candidate)) + answer])
        logits = model(tokens)[0, -len(answer) - 1 : -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model, judge)


def test_green_by_a_judge_that_is_decoded_here(iu_xray, tmp_path, capsys, monkeypatch):
    """A random judge's replies count as 0 and are named. A finished evaluation can be scored with it; kept replies are
    not decoded again, until the judge's weights are others: those of one that was taught its reply."""
    monkeypatch.setattr(green, "MAX_NEW_TOKENS", 40)
    command = [*iu_xray, "--out", f"{tmp_path}/out"]
    assert evaluate.main(command) == 0
    texts = [green.green_prompt(REFERENCE, TOLD)[0]["content"], REPLY]
    judge = write_base(tmp_path / "judge", texts, "shallow", 500)
    command += ["--green", str(judge), "--resume"]
    capsys.readouterr()
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    assert "| GREEN |" in printed and "GREEN: 2 of 2 replies cannot be parsed and count as 0: p1, p2" in printed
    metrics, random = saved(tmp_path / "out")
    assert metrics["green_unparsed"] == ["p1", "p2"] and metrics["scores"]["green"]["value"] == 0.0
    kept = tmp_path / "out" / "green.jsonl"
    first, _ = (json.loads(line) for line in kept.read_text().splitlines())
    assert first["reply"] == random[[row["id"] for row in random].index(first["id"])]["green_reply"]
    kept.write_text(json.dumps({**first, "reply": REPLY}) + "\n")
    assert evaluate.main(command) == 0
    assert "GREEN: 1 of 2 replies" in capsys.readouterr().out
    metrics, records = saved(tmp_path / "out")
    scores = {row["id"]: row["green"] for row in records}
    assert scores[first["id"]] == 3 / 4 and metrics["scores"]["green"]["value"] == 3 / 8
    assert metrics["scores"]["green_error_b"]["value"] == 1.0 and len(metrics["green_unparsed"]) == 1
    assert len(kept.read_text().splitlines()) == 2
    teach(judge, REPLY)
    assert evaluate.main(command) == 0
    assert "cannot be parsed" not in capsys.readouterr().out
    metrics, records = saved(tmp_path / "out")
    assert {row["green_reply"] for row in records} == {REPLY} and metrics["scores"]["green"]["value"] == 3 / 4
    assert evaluate.main([*command[:-2], f"{tmp_path}/none", "--resume"]) == 2


def test_labels_of_a_finished_evaluation(iu_xray, tmp_path, capsys):
    command = [*iu_xray, "--out", f"{tmp_path}/out"]
    assert evaluate.main(command) == 0
    labels = {"prediction": [1] + [0] * 13, "reference": [1, 1] + [0] * 12}
    entities = {"entities": {"1": {"tokens": "heart", "label": "ANAT-DP", "relations": []}}}
    row = {"chexbert": labels, "radgraph": {"prediction": entities, "reference": entities}}
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps({"id": "p1", **row}) + "\n")
    command += ["--labels", str(file), "--resume"]
    assert evaluate.main(command) == 2 and "lacks 1 reports: p2" in capsys.readouterr().err
    file.write_text("".join(json.dumps({"id": name, **row}) + "\n" for name in ("p1", "p2")))
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    assert "CheXbert micro F1, 14 | CheXbert macro F1, 14 | CheXbert micro F1, 5 " in printed
    scores = saved(tmp_path / "out")[0]["scores"]
    assert scores["chexbert_micro_14"]["value"] == pytest.approx(2 / 3) and scores["radgraph_partial"]["value"] == 1.0
    assert scores["chexbert_macro_14"]["value"] == pytest.approx(1 / 14) and scores["chexbert_micro_5"]["value"] == 0.0


def test_a_chat_model_judges_reports(iu_xray, tmp_path, address, capsys):  # noqa: F811
    """The same judge as of questions: each report beside its reference."""
    command = [*iu_xray, "--out", f"{tmp_path}/out", "--judge", "some-model"]
    assert evaluate.main(command) == 2 and "--judge needs --url" in capsys.readouterr().err
    Server.reply = "No."
    assert evaluate.main([*command, "--url", address, "--per-minute", "100000"]) == 0
    assert "accuracy by judge" in capsys.readouterr().out
    assert saved(tmp_path / "out")[0]["scores"]["judged"]["value"] == 0.0
    asked = [body["messages"][1]["content"] for _, _, body in Server.bodies]
    assert len(asked) == 2 and f"Reference: {REFERENCE}\nAnswer: " in asked[0]

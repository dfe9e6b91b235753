"""Scores of answers by hand; decoding that looks at the image; what is saved."""

import json
import math
from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

import evaluate
from mint.data.questions import Question
from mint.errors import InputError
from mint.evaluation.decoding import load_vision_model
from mint.tasks.base import score_answers
from mint.tasks.vqa import Vqa, score_answer, scorer_table, yes_no_scores
from tests.prefs.test_edit_pairs import Server, address  # noqa: F401
from tests.test_train_images import become, setting  # noqa: F401


def question(answer, kind="open", image="a.png"):
    return Question("1", Path(image), "What is it?", answer, kind)


def test_closed_answers_by_hand():
    for answer, truth, closed, unparsed in (
        ("No, there is no effusion.", "no", 1, 0),
        ("Yes", "No", 0, 0),
        ("It looks normal.", "No", 0, 1),
        ("nothing", "no", 0, 1),
        ("The left side is.", "left side", 1, None),
        ("It is left sided", "left side", 0, None),
    ):
        score = score_answer(answer, question(truth, "closed"))
        assert (score.closed, score.unparsed, score.open) == (closed, unparsed, None)


def test_open_answers_by_hand():
    """Of "right upper lobe" two words of three; one of four told words is wrong twice over."""
    score = score_answer("The upper lobe, the", question("right upper lobe"))
    assert score.open == pytest.approx(2 / 3) and (score.exact, score.closed) == (0, None)
    assert score.f1 == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)) and score.bleu_1 == pytest.approx(2 / 4)
    short = score_answer("Lobe", question("right upper lobe"))
    assert short.bleu_1 == pytest.approx(math.exp(1 - 3)) and short.open == pytest.approx(1 / 3)
    assert score_answer("right, upper LOBE!", question("Right upper lobe.")).exact == 1
    empty = score_answer("", question("lobe"))
    assert (empty.open, empty.f1, empty.bleu_1, empty.exact) == (0, 0, 0, 0)


def test_clinically_right_by_hand():
    truth = {"findings": [{"name": "mass", "present": True, "side": "left"}], "answer": "yes"}
    for answer, right in (
        ("Yes, on the left there is a mass.", 1),
        ("Yes", 1),
        ("There is a mass on the right.", 0),
        ("No mass.", 0),
        ("The image is blurred.", 0),
        ("", 0),
    ):
        asked = Question("1", Path("a.png"), "Is there a mass?", "yes", "closed", {}, truth)
        assert score_answer(answer, asked).clinical == right
    assert score_answer("Yes", question("yes", "closed")).clinical is None


def test_means_draw_an_image_together():
    """Two images of ten questions that agree: the interval is that of two draws."""
    questions = [question("yes", "closed", f"{i % 2}.png") for i in range(20)]
    means = score_answers(Vqa(), "x", questions, ["yes" if i % 2 else "no" for i in range(20)]).means
    assert (means["closed"].value, means["closed"].low, means["closed"].high) == (0.5, 0.0, 1.0) and "open" not in means
    with pytest.raises(InputError, match="no questions"):
        score_answers(Vqa(), "x", [], [])


def test_yes_and_no_by_hand():
    """Of three true "yes" two are found, of two "no" one is said, one cannot be parsed."""
    truths = ["yes", "yes", "yes", "no", "no", "left"]
    told = ["yes", "Yes, it is", "no", "no mass", "unclear", "yes"]
    questions = [question(truth, "closed") for truth in truths]
    found = yes_no_scores(told, questions)
    assert found == pytest.approx({"accuracy": 3 / 5, "precision": 1.0, "recall": 2 / 3, "f1": 0.8, "yes_rate": 2 / 5})
    assert yes_no_scores(["a"], [question("left")]) is None
    assert "yes rate 40.0" in Vqa().text([score_answers(Vqa(), "x", questions, told)])


def test_every_scorer_has_closed_open_and_overall():
    """Closed: exact 1 of 2, found 2 of 2. Open: exact 0 of 1, two words of three. The judge rejects the first."""
    questions = [question("yes", "closed"), question("no", "closed"), question("right upper lobe")]
    answers = ["yes", "No, it is not.", "upper lobe"]
    replies = {"Answer: yes": "no", "Answer: No, it is not.": "yes", "Answer: upper lobe": "yes"}
    task = Vqa(judge=lambda requests: (replies[r[1]["content"].splitlines()[-1]] for r in requests))
    result = score_answers(task, "x", questions, answers)
    values = {name: result.means[name].value for name in ("exact_closed", "exact_open", "exact", "recall")}
    assert values == pytest.approx({"exact_closed": 1 / 2, "exact_open": 0, "exact": 1 / 3, "recall": (2 + 2 / 3) / 3})
    judged = {name: result.means[name].value for name in ("judged_closed", "judged_open", "judged")}
    assert judged == pytest.approx({"judged_closed": 1 / 2, "judged_open": 1, "judged": 2 / 3})
    rows = [row.split(" | ") for row in scorer_table(result.means, "some-model").splitlines()]
    found = [[row[0], *(cell.split(" ")[0] for cell in row[1:])] for row in rows if len(row) > 1]
    assert found == [
        ["| scorer", "closed", "open", "overall"],
        ["| exact match", "50.0", "0.0", "33.3"],
        ["| closed: yes, no or option found; open: token recall", "100.0", "66.7", "88.9"],
        ["| judge some-model", "50.0", "100.0", "66.7"],
    ]
    alone = score_answers(Vqa(), "x", questions[:2], answers[:2])
    assert "judge" not in scorer_table(alone.means) and scorer_table(alone.means) in Vqa().text([alone])
    assert "| exact match | 50.0 (50.0-50.0) |  | 50.0 (50.0-50.0) |" in scorer_table(alone.means)


def test_vqa_rad_and_slake_as_published(tmp_path, capsys):
    """Answers of another system; the three tables of both sets follow from their kinds of questions."""
    Image.new("RGB", (8, 8)).save(tmp_path / "source.jpg")
    rows = [("Yes", "CLOSED "), ("No", "CLOSED"), ("Left lung", "OPEN")]
    answers = ["yes", "yes", "left"]
    (tmp_path / "answers.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "answer": answer}) + "\n" for i, answer in enumerate(answers))
    )
    for field, more in (("image_name", {"image_organ": "CHEST"}), ("img_name", {"q_lang": "en"})):
        records = [
            {"qid": i, field: "source.jpg", "question": "Is it?", "answer": answer, "answer_type": kind, **more}
            for i, (answer, kind) in enumerate(rows)
        ]
        (tmp_path / "test.json").write_text(json.dumps(records))
        command = ["vqa", "--predictions", f"{tmp_path}/answers.jsonl", "--questions", f"{tmp_path}/test.json"]
        assert evaluate.main([*command, "--out", f"{tmp_path}/{field}"]) == 0
        printed = capsys.readouterr().out
        assert (
            "| exact match | 50.0 (" in printed
            and "| closed: yes, no or option found; open: token recall | " in printed
        )
        scores = json.loads((tmp_path / field / "metrics.json").read_text())["scores"]
        assert (scores["closed"]["value"], scores["open"]["value"], scores["recall"]["value"]) == (0.5, 0.5, 0.5)
        assert (scores["exact_open"]["value"], scores["exact"]["value"]) == (0.0, pytest.approx(1 / 3))


def test_the_command(setting, tmp_path, capsys):  # noqa: F811
    rows = [{"image": f"tiles/{c}.png", "question": f"Is it {c}?", "answer": "yes"} for c in ("red", "green", "blue")]
    (setting / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = f"vqa --model {setting}/model --questions {setting}/questions.jsonl --images {setting}".split()
    command += ["--device", "cpu", "--max-new-tokens", "4", "--instruction", "Answer yes or no."]
    bad = [{**rows[0], "truth": {"findings": [{}]}}]
    (setting / "bad.jsonl").write_text("\n".join(map(json.dumps, bad)))
    wrong = ["vqa", "--model", f"{setting}/model", "--questions", f"{setting}/bad.jsonl", "--images", str(setting)]
    assert evaluate.main(wrong) == 2 and "question 1: truth of the wrong form" in capsys.readouterr().err
    few = ["--max-pixels", "600"]
    assert evaluate.main([*command, *few]) == 2 and "--max-pixels is for Qwen-VL models" in capsys.readouterr().err
    for family in ("llava", "qwen3_vl"):
        if family != "llava":
            become(setting, family)
            command += few
            loading = {"device": "cpu", "dtype": "auto", "chat_date": "26 Jul 2024", "adapter": None, "max_pixels": 600}
            assert load_vision_model(Namespace(model=setting / "model", **loading))[2].processor.most == 600
        assert evaluate.main([*command, "--out", f"{tmp_path}/{family}", "--name", family]) == 0
        printed = capsys.readouterr().out
        assert "3 questions on 3 images (3 closed)" in printed and f"| {family} |" in printed
        record = json.loads((tmp_path / family / "metrics.json").read_text())
        lines = [json.loads(line) for line in (tmp_path / family / "predictions.jsonl").read_text().splitlines()]
        assert not any({"question", "truth"} & line.keys() for line in lines)
        assert record["settings"]["max_pixels"] == (None if family == "llava" else 600)
        assert record["scores"]["closed"]["value"] == sum(line["closed"] for line in lines) / 3
        assert all((tmp_path / family / line["images"][0]).is_file() for line in lines)
    assert evaluate.main([*command, "--out", f"{tmp_path}/first", "--limit", "2"]) == 0
    *_, summary, saved_in = capsys.readouterr().out.splitlines()
    assert summary.startswith("2 questions: closed accuracy ") and "exact match " in summary
    assert "exact match, closed" not in summary  # scores of the second table alone
    assert saved_in == f"saved in {tmp_path}/first: metrics.json, predictions.jsonl"
    assert len((tmp_path / "first" / "predictions.jsonl").read_text().splitlines()) == 2


def test_sampled_answers_of_a_resumed_evaluation(setting, tmp_path, monkeypatch):  # noqa: F811
    """The answer to the second question is kept; the others are decoded with the images and draws of their place."""
    rows = [
        {"images": [f"tiles/{c}.png"], "question": f"Is it {c}?", "answer": "yes"} for c in ("red", "green", "blue")
    ]
    (setting / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = f"vqa --model {setting}/model --questions {setting}/questions.jsonl --images {setting}".split()
    command += ["--device", "cpu", "--max-new-tokens", "6", "--decode", "sample", "--out", f"{tmp_path}/out"]
    assert evaluate.main(command) == 0
    whole = (tmp_path / "out" / "predictions.jsonl").read_text()
    answers = tmp_path / "out" / "answers.jsonl"
    answers.write_text(
        "".join(line for line in answers.read_text().splitlines(keepends=True) if json.loads(line)["id"] == "2")
    )
    assert evaluate.main([*command, "--resume", "--batch-size", "1"]) == 0
    assert (tmp_path / "out" / "predictions.jsonl").read_text() == whole
    assert len({json.loads(line)["answer"] for line in whole.splitlines()}) == 3
    monkeypatch.setattr(Vqa, "decode", None)  # the answers are there: the texts are added to them
    assert evaluate.main([*command, "--resume", "--keep-notes"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [(line["question"], line["truth"]) for line in lines] == [(row["question"], "yes") for row in rows]


def test_a_judge(setting, tmp_path, address, capsys):  # noqa: F811
    """Over a real connection: every answer beside its reference, a reply without a verdict is none."""
    rows = [{"image": "tiles/red.png", "question": f"What is {c}?", "answer": f"the {c} one"} for c in "abc"]
    (setting / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = f"vqa --model {setting}/model --questions {setting}/questions.jsonl --images {setting}".split()
    command += ["--device", "cpu", "--max-new-tokens", "4", "--judge", "some-model"]
    assert evaluate.main(command) == 2 and "--judge needs --url" in capsys.readouterr().err
    Server.reply = "Yes."
    command += ["--url", address, "--per-minute", "100000"]
    assert evaluate.main([*command, "--out", f"{tmp_path}/out"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy by judge" in printed and "| judge some-model |" in printed
    asked = [body["messages"][1]["content"] for _, _, body in Server.bodies]
    assert all(f"Reference: the {c} one" in text for c, text in zip("abc", asked, strict=True))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["scores"]["judged"]["value"] == 1.0
    Server.reply = "Perhaps."
    assert evaluate.main([*command, "--out", f"{tmp_path}/other"]) == 0
    assert "accuracy by judge" not in capsys.readouterr().out
    assert evaluate.main([*command, "--out", f"{tmp_path}/out", "--resume"]) == 0
    assert len(Server.bodies) == 6  # replies are kept

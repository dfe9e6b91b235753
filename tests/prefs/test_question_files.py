"""Published questions for a policy's own answers: truths, boxes by name, files from their folder."""

import json
from pathlib import Path

import pytest
from PIL import Image

import generate_prefs
from mint.data.questions import read_questions
from mint.prefs.edit_pairs import read_asked


@pytest.fixture
def slake(tmp_path):
    for name in ("xmlab1", "xmlab2"):
        (tmp_path / "imgs" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "imgs" / name / "source.jpg")
    boxes = [{"Liver": [1, 2, 10, 6]}, {"Left Lung": [0, 0, 5, 5]}, {"Left Lung": [6, 0, 5, 5]}]
    (tmp_path / "imgs" / "xmlab1" / "detection.json").write_text(json.dumps(boxes))
    row = {"img_name": "xmlab1/source.jpg", "q_lang": "en", "answer_type": "CLOSED"}
    rows = [
        {**row, "qid": 1, "question": "Is the liver healthy?", "answer": "No"},
        {**row, "qid": 2, "question": "What is abnormal?", "answer": "left lung", "answer_type": "OPEN"},
        {**row, "qid": 3, "question": "Which is larger, heart or lung?", "answer": "Lung"},
        {**row, "qid": 4, "question": "肝脏?", "answer": "是", "q_lang": "zh"},
        {**row, "qid": 5, "question": "Is the liver healthy?", "answer": "Yes", "img_name": "xmlab2/source.jpg"},
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    return tmp_path


def test_slake_with_its_boxes(slake, capsys):
    """Boxes of what is spoken of, whole names alone: "lung" is not "left lung"."""
    assert generate_prefs.main(["questions", "--vqa", f"{slake}/train.json"]) == 0
    assert "4 questions on 2 images" in capsys.readouterr().out
    first, second, third, other = read_asked(slake / "questions.jsonl")
    assert first.images == ("imgs/xmlab1/source.jpg",) and first.truth.answer == "no" and first.answer == "No"
    assert first.raw["boxes"] == [[1, 2, 11, 8]]
    assert second.raw["boxes"] == [[0, 0, 5, 5], [6, 0, 11, 5]] and second.truth.answer is None
    assert "boxes" not in third.raw and third.truth.answer is None
    assert "boxes" not in other.raw and other.truth.answer == "yes"


def test_what_is_written_can_be_evaluated(slake):
    """The reader of ``evaluate.py vqa`` finds the same questions; where nothing is known there is no truth."""
    source, _ = read_questions(slake / "train.json")
    assert generate_prefs.main(["questions", "--vqa", f"{slake}/train.json"]) == 0
    written, _ = read_questions(slake / "questions.jsonl")
    fields = [[(q.id, q.text, q.answer, q.kind, [Path(name).resolve() for name in q.images]) for q in some]
              for some in (source, written)]  # fmt: skip
    assert fields[0] == fields[1]
    assert [q.truth for q in written] == [{"answer": "no"}, None, None, {"answer": "yes"}]


def test_the_folder_must_hold_the_images(slake, capsys):
    (slake / "other").mkdir()
    assert generate_prefs.main(["questions", "--vqa", f"{slake}/train.json", "--out", f"{slake}/other"]) == 2
    assert "the images do not lie in" in capsys.readouterr().err
    assert not (slake / "other" / "questions.jsonl").exists()


def test_views_need_masks(slake, capsys):
    assert generate_prefs.main(["questions", "--vqa", f"{slake}/train.json", "--views", "3"]) == 2
    assert "--views is of --lesions" in capsys.readouterr().err


def test_both_sources_at_once_are_refused(slake):
    with pytest.raises(SystemExit):
        generate_prefs.main(["questions", "--vqa", "a.json", "--lesions", "b.tsv"])

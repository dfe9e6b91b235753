"""Questions about images: the published forms, their images, bad records by number; MMedPO's pairs."""

import gzip
import json
import os
import pickle
import tarfile

import pytest
from PIL import Image

import generate_prefs
from mint.data.preferences import read_preferences
from mint.data.questions import read_mmedpo, read_questions, yes_or_no
from mint.data.spans import mark_changes
from mint.data.vqa_files import read_boxes
from mint.errors import FileProblems, InputError

RAD = {
    "qid": 4,
    "image_name": "a.jpg",
    "image_organ": "CHEST",
    "question": "Is it large?",
    "answer": "No",
    "answer_type": "CLOSED ",
}


@pytest.fixture
def folder(tmp_path):
    for name in ("images/a.jpg", "imgs/xmlab1/source.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    return tmp_path


def write(path, records):
    text = json.dumps(records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_vqa_rad(folder):
    """Answers may be numbers, types end in a space."""
    rows = [RAD, {**RAD, "qid": 5, "question": "How many?", "answer": 2, "answer_type": "OPEN"}]
    questions, report = read_questions(write(folder / "trainset.json.gz", rows))
    first, second = questions
    assert (first.id, first.text, first.answer, first.kind) == ("4", "Is it large?", "No", "closed")
    assert first.image == folder / "images" / "a.jpg" and first.traits == {"image_organ": "CHEST"}
    assert (second.answer, second.kind) == ("2", "open")
    assert report == "2 questions on 1 images (1 closed, 1 open)"


def test_slake(folder):
    row = {"img_name": "xmlab1/source.jpg", "question": "What organ?", "answer": "Liver", "q_lang": "en", "qid": 1}
    row |= {"answer_type": "OPEN", "location": "Abdomen", "modality": "CT"}
    rows = [row, {**row, "qid": 2, "q_lang": "zh", "question": "什么器官?", "answer": "肝"}]
    (question,), report = read_questions(write(folder / "train.json", rows))
    assert question.traits == {"location": "Abdomen", "modality": "CT"} and "1 in other languages passed over" in report
    (chinese,), _ = read_questions(folder / "train.json", language="zh")
    assert chinese.answer == "肝"
    with pytest.raises(InputError, match="no questions in the language 'fr'"):
        read_questions(folder / "train.json", language="fr")


def test_json_lines(folder):
    (folder / "own.jsonl").write_text(
        '{"image": "images/a.jpg", "question": "Any mass?", "answer": "Yes, a small one"}\n\n'
        '{"image": "images/a.jpg", "question": "Where?", "answer": "left"}\n'
    )
    questions, _ = read_questions(folder / "own.jsonl", folder)
    assert [(q.id, q.kind) for q in questions] == [("1", "closed"), ("3", "open")]
    line = '{"image": "images/a.jpg", "question": "Is it\u2028large?", "answer": "no"}\n'
    (folder / "own.jsonl").write_text(line, encoding="utf-8")  # a line end to Python, none to JSON Lines
    assert read_questions(folder / "own.jsonl", folder)[0][0].text == "Is it\u2028large?"


def test_every_bad_record_is_named(folder):
    rows = [
        RAD,
        {**RAD, "qid": 5, "image_name": "none.jpg"},
        {**RAD, "qid": 6, "image_name": "../trainset.json"},
        {**RAD, "qid": 7, "answer": ""},
        {**RAD, "qid": 8, "answer_type": "MAYBE"},
        {**RAD, "qid": 4},
        {"question": "a", "answer": "b"},
        "text",
    ]
    with pytest.raises(FileProblems) as error:
        read_questions(write(folder / "trainset.json", rows))
    assert [problem.split(": ", 1)[0].rsplit(":")[-1] for problem in error.value.problems] == list("2345678")
    wanted = [
        "does not exist",
        "outside the folder",
        "answer must be a text",
        "'maybe' is none of",
        "id '4' is also that of trainset.json:1",
    ]
    for problem, part in zip(error.value.problems, [*wanted, "no image", "must be an object"], strict=True):
        assert part in problem
    for content, message in (("{", "neither a JSON list nor JSON Lines"), ("[]", "holds no questions")):
        (folder / "bad.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_questions(folder / "bad.json")
    with pytest.raises(InputError, match="is not a folder of images"):
        read_questions(folder / "trainset.json", folder / "nowhere")


@pytest.mark.parametrize(
    "text, found",
    [
        ("Yes.", "yes"),
        ("No, it is not; yes", "no"),
        ("There is no mass", "no"),
        ("normal", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_yes_and_no_are_whole_words(text, found):
    assert yes_or_no(text) == found


def test_mmedpo_pairs(folder, capsys):
    turns = [{"from": "human", "value": "<image>\nIs it large?"}, {"from": "gpt", "value": " No"}]
    record = {"id": 3, "image": "a.jpg", "conversations": turns, "weighted_score": 0.2}
    record["rejected_conversations"] = [turns[0], {"from": "gpt", "value": " Yes, it is."}]
    path = write(folder / "pairs.json", [record])
    command = ["mmedpo", "--pairs", str(path), "--images", f"{folder}/images", "--out", f"{folder}/out.jsonl"]
    assert generate_prefs.main(command) == 0 and "1 pairs on 1 images" in capsys.readouterr().out
    (pair,) = read_preferences(folder / "out.jsonl")
    assert (pair.id, pair.chosen.text, pair.rejected.text, pair.images) == ("3", "No", "Yes, it is.", ("images/a.jpg",))
    assert pair.prompt == [{"role": "user", "content": "Is it large?"}] and pair.extra == {"weight": 0.2}
    other = [{"from": "human", "value": "<image>\nIs it small?"}, {"from": "gpt", "value": "Yes"}]
    bad = [{**record, "image": "b.jpg"}, {**record, "rejected_conversations": other}, {"id": 1}]
    with pytest.raises(FileProblems) as error:
        read_mmedpo(write(folder / "pairs.json", bad), folder / "images")
    wanted = ["does not exist", "the same question", "not of MMedPO's form"]
    assert all(part in problem for part, problem in zip(wanted, error.value.problems, strict=True))


def test_real_questions(shared_data, tmp_path):
    """VQA-RAD's training part and MMedPO's pairs on it, as they were published; every image is opened."""
    source = shared_data / "vqa_rad"
    if not source.is_dir():
        pytest.skip("VQA-RAD is not present beside the project")
    with tarfile.open(source / "images.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    questions, report = read_questions(source / "trainset.json.gz", tmp_path / "images")
    assert report.startswith("2314 questions") and report.endswith("(1416 closed, 898 open)")
    assert sum(yes_or_no(question.answer) is not None for question in questions if question.kind == "closed") > 1300
    pairs = read_mmedpo(source / "preference_pairs.mmedpo.json.gz", tmp_path / "images")
    assert len(pairs) == 1375
    sides = [mark_changes(pair["chosen"], pair["rejected"]) for pair in pairs]
    assert all(chosen.spans or rejected.spans for chosen, rejected in sides)


def test_path_vqa(folder):
    """Pickles of plain records; images by their first part's folder, without an ending."""
    (folder / "images" / "val").mkdir()
    Image.new("RGB", (8, 6)).save(folder / "images" / "val" / "val_0261.jpg")
    rows = [
        {"image": "val_0261", "question": "What have lost their nuclei?", "answer": "neutrophils"},
        {"image": "val_0261", "question": "Are they intact?", "answer": "no"},
    ]
    (folder / "val_qa.pkl").write_bytes(pickle.dumps(rows))
    questions, report = read_questions(folder / "val_qa.pkl")
    assert [(q.answer, q.kind) for q in questions] == [("neutrophils", "open"), ("no", "closed")]
    assert questions[0].image == folder / "images" / "val" / "val_0261.jpg" and report.startswith(
        "2 questions on 1 images"
    )


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_a_pickle_cannot_run_anything(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "bad.pkl").write_bytes(pickle.dumps([Harmful()]))
    with pytest.raises(InputError, match="not a pickle of plain records: it wants"):
        read_questions(folder / "bad.pkl")
    assert not (folder / "harmed").exists()
    (folder / "cut.pkl").write_bytes(pickle.dumps([{"image": "a"}])[:-4])
    with pytest.raises(InputError, match="not a pickle of plain records"):
        read_questions(folder / "cut.pkl")
    (folder / "one.pkl").write_bytes(pickle.dumps({"image": "a"}))
    with pytest.raises(InputError, match="no list of records"):
        read_questions(folder / "one.pkl")


def test_boxes_of_slake(folder):
    image = folder / "imgs" / "xmlab1" / "source.jpg"
    assert read_boxes(image) == {}
    image.with_name("detection.json").write_text(
        '[{"Liver": [1, 2, 3.5, 4]}, {"Lung": [0, 0, 2, 2]}, {"Lung": [4, 0, 2, 2]}]'
    )
    assert read_boxes(image) == {"Liver": [[1, 2, 4.5, 6]], "Lung": [[0, 0, 2, 2], [4, 0, 6, 2]]}
    image.with_name("detection.json").write_text('[{"Liver": [1, 2]}]')
    with pytest.raises(InputError, match="not of SLAKE's form"):
        read_boxes(image)

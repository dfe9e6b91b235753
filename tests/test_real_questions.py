"""The comparison on radiology questions: its parts, its edits, and the whole of it at the smallest size."""

import argparse
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import real_questions
from benchmarks.fire.methods import OURS, WIDER
from benchmarks.real_questions import ANOTHER, OWN, compare_rows, edit, read_organs, write_parts
from mint import processes
from mint.data.questions import read_questions
from mint.demo import arms
from mint.demo.radiograph_demo import VISION
from mint.demo.tiny_model import write_base
from mint.errors import InputError
from mint.evaluation import statistics
from mint.prefs.claims import Truth
from mint.prefs.question_files import QuestionRecord
from mint.training import curves
from tests.demo.test_arms import InThisProcess

ORGANS = ("HEAD", "CHEST", "ABD")


@pytest.fixture
def vqa(tmp_path):
    """Forty grey images, each of another brightness, with a closed and an open question about each."""
    folder, records = tmp_path / "vqa", []
    (folder / "images").mkdir(parents=True)
    for number in range(40):
        name, organ = f"{number}.jpg", ORGANS[number % 3]
        Image.new("L", (90, 70), 5 * number).save(folder / "images" / name)
        shared = {"image_name": name, "image_organ": organ}
        closed = {"question": "Is it a chest?", "answer": "yes" if organ == "CHEST" else "No", "answer_type": "CLOSED"}
        opened = {"question": "Which organ is it?", "answer": organ.lower(), "answer_type": "OPEN"}
        records += [{"qid": 2 * number + i, **shared, **asked} for i, asked in enumerate((closed, opened))]
    (folder / "trainset.json").write_text(json.dumps(records))
    return folder / "trainset.json"


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def brightness(file):
    with Image.open(file) as image:
        assert image.size == (VISION["image_size"],) * 2
        return float(np.asarray(image).mean())


def test_each_image_is_in_one_part_and_another_is_of_another(vqa, tmp_path):
    out = tmp_path / "out"
    write_parts(read_questions(vqa)[0], out)
    parts = [read(out / name) for name in ("lessons.jsonl", "questions.jsonl", f"{OWN}/test.jsonl")]
    images = [{row["images"][0] for row in part} for part in parts]
    assert sum(map(len, parts)) == 80 and len(set.union(*images)) == sum(map(len, images)) == 40
    assert read(out / ANOTHER / "test.jsonl") == parts[2]
    for name in images[2]:
        number = int(name.partition("/")[2].partition("-")[0])
        assert abs(brightness(out / OWN / name) - 5 * number) < 2
        assert abs(brightness(out / ANOTHER / name) - 5 * number) > 3
    assert sorted(brightness(out / OWN / name) for name in images[2]) == sorted(
        brightness(out / ANOTHER / name) for name in images[2]
    )
    organs = read_organs(out / OWN / "test.jsonl")
    assert organs == {
        str(out / OWN / name): ORGANS[int(name.partition("/")[2].partition("-")[0]) % 3] for name in images[2]
    }


def test_too_few_images(vqa, tmp_path):
    few = [question for question in read_questions(vqa)[0] if question.image.name == "1.jpg"]
    with pytest.raises(InputError, match="too few images to split: 1"):
        write_parts(few, tmp_path / "out")


@pytest.mark.parametrize(
    ("truth", "reference", "answer", "expected"),
    [
        ({"answer": "yes"}, "Yes", "No", ("No", "Yes", False)),
        ({"answer": "yes"}, "Yes", "Yes", ("Yes", "No", True)),
        ({}, "left lung", "right lung", ("right lung", "left lung", False)),
        ({}, "Left lung.", "left lung", None),  # right as it stands
        ({}, "left lung", " ", None),
    ],
)
def test_an_answer_and_its_edit(truth, reference, answer, expected):
    asked = QuestionRecord("a", 1, ("x.png",), "?", Truth.from_dict(truth), reference)
    (found,) = edit([(asked, answer)])
    assert (found and (found.answer, found.edited.capitalize() if truth else found.edited, found.right)) == expected


def test_the_whole_of_it(vqa, tmp_path, monkeypatch):
    """A table for either view and one of their differences; nothing is trained again."""
    for name, value in (("TEACHING", 1), ("STEPS", 1), ("prepare", lambda _: tmp_path / "demo")):
        monkeypatch.setattr(real_questions, name, value)
    for name in ("RESAMPLES", "FLIPS"):
        monkeypatch.setattr(statistics, name, 20)
    monkeypatch.setattr(curves, "plot_curves", lambda *_: None)
    monkeypatch.setattr(processes, "ProcessPoolExecutor", InThisProcess)
    words = ["Is it a chest? Which organ is it?", "user assistant", "yes no head abd"]
    write_base(tmp_path / "demo" / "model", words, "demo", 300, vision=VISION, words=True)
    decoder = write_base(tmp_path / "decoder", words * 20, "shallow", 60)
    args = argparse.Namespace(
        vqa=str(vqa), images=None, decoder=str(decoder), out=str(tmp_path / "out"), seeds=1, device="cpu", dtype="auto"
    )
    tables = compare_rows(args)
    for row in ("base", "SFT", "DPO", "RRPO", OURS, WIDER):
        assert tables.count(f"\n| {row} | ") >= 3
    assert "own images" in tables and "another images" in tables and "| own - another |" in tables
    assert "| commonest |" in (tmp_path / "out" / "probes.md").read_text()
    pairs = read(tmp_path / "out" / "pairs.jsonl")
    assert pairs and all(len(pair["corrupted_images"]) == 1 for pair in pairs)
    monkeypatch.setattr(arms, "load_train", lambda: pytest.fail("trained again"))
    monkeypatch.setattr(real_questions, "train", lambda _: pytest.fail("taught again"))
    assert compare_rows(args) == tables
    args.seeds = 0
    with pytest.raises(InputError, match="at least one seed"):
        compare_rows(args)

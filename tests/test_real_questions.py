"""The comparison on radiology questions: its parts, its edits, and the whole of it at the smallest size."""

import argparse
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import real_questions
from benchmarks.fire import ward
from benchmarks.fire.methods import OURS, WIDER
from benchmarks.real_questions import (
    ANOTHER,
    OWN,
    compare_rows,
    edit,
    next_of_organ,
    read_organs,
    reliance_table,
    write_parts,
)
from mint import processes
from mint.data.preferences import write_jsonl
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

ORGANS = ("HEAD", "CHEST")


@pytest.fixture
def vqa(tmp_path):
    """Fifty grey images, each of another brightness, with a closed and an open question about each."""
    folder, records = tmp_path / "vqa", []
    (folder / "images").mkdir(parents=True)
    for number in range(1, 51):
        name, organ = f"{number}.jpg", ORGANS[number % 2]
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


def number_of(name):
    return int(name.partition("/")[2].partition("-")[0])


def test_each_image_is_in_one_part_and_another_is_of_the_same_organ(vqa, tmp_path):
    out = tmp_path / "out"
    write_parts(read_questions(vqa)[0], out)
    parts = [read(out / name) for name in ("lessons.jsonl", "questions.jsonl", f"{OWN}/test.jsonl")]
    images = [{row["images"][0] for row in part} for part in parts]
    assert sum(map(len, parts)) == 100 and len(set.union(*images)) == sum(map(len, images)) == 50
    assert read(out / ANOTHER / "test.jsonl") == parts[2]
    assert read_organs(out / OWN / "test.jsonl") == {
        str(out / OWN / name): ORGANS[number_of(name) % 2] for name in images[2]
    }
    for name in images[2]:
        assert round(brightness(out / OWN / name) / 5) == number_of(name)
        shown = round(brightness(out / ANOTHER / name) / 5)
        assert shown != number_of(name) and shown % 2 == number_of(name) % 2


def test_the_next_image_of_an_organ():
    organs = {"c": "head", "a": "head", "b": "chest", "d": "head"}
    assert next_of_organ(organs) == {"a": "c", "c": "d", "d": "a", "b": "b"}


def test_what_answers_gain_from_their_own_image(tmp_path):
    """By hand: of four closed questions 3 and 1 are right, of the open ones 0.5 and 0.75 of the words are said."""
    found = {OWN: ([1, 1, 1, 0], [0.5, 0.5]), ANOTHER: ([1, 0, 0, 0], [0.5, 1.0])}
    for view, (closed, opened) in found.items():
        rows = [{"closed": float(one), "open": None} for one in closed] + [{"closed": None, "open": x} for x in opened]
        (tmp_path / view).mkdir()
        write_jsonl(
            tmp_path / view / "predictions.jsonl",
            [{"id": str(i), "images": [f"{i}.png"], **row} for i, row in enumerate(rows)],
        )
    table = reliance_table({"a": [tmp_path / OWN]}, {"a": [tmp_path / ANOTHER]}).splitlines()
    assert table[0] == "| own - another | closed accuracy | open recall |"
    assert table[2].startswith("| a | +50.0 (") and "| -25.0 (" in table[2]


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
        ({}, "Left lung.", "in the left lung", None),  # right as it stands
        ({}, "left lung", " ", None),
    ],
)
def test_an_answer_and_its_edit(truth, reference, answer, expected):
    asked = QuestionRecord("a", 1, ("x.png",), "?", Truth.from_dict(truth), reference)
    (found,) = edit([(asked, answer)])
    assert (found and (found.answer, found.edited, found.right)) == expected


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
    decoder, bare = write_base(tmp_path / "decoder", words * 20, "shallow", 60), tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    args = argparse.Namespace(
        vqa=str(vqa), images=None, decoder=str(decoder), out=str(tmp_path / "out"), seeds=1, device="cpu", dtype="auto"
    )
    with pytest.raises(InputError, match="has no tokenizer.json"):
        compare_rows(argparse.Namespace(**vars(args) | {"decoder": str(bare)}))
    tables = compare_rows(args)
    out = tmp_path / "out"
    for row in ("base", "SFT", "DPO", "RRPO", OURS, WIDER):
        assert tables.count(f"\n| {row} | ") >= 3
    assert "own images" in tables and "another images" in tables and "| own - another |" in tables
    assert "| commonest |" in (out / "probes.md").read_text()
    pairs = read(out / "pairs.jsonl")
    assert pairs and all(len(pair["corrupted_images"]) == 1 for pair in pairs)
    with Image.open(out / pairs[0]["corrupted_images"][0]) as image:
        assert np.asarray(image).max() == 0
    assert brightness(out / pairs[0]["images"][0]) > 0
    monkeypatch.setattr(arms, "load_train", lambda: pytest.fail("trained again"))
    monkeypatch.setattr(real_questions, "train", lambda _: pytest.fail("taught again"))
    scored = []
    again = ward.score_unseen
    monkeypatch.setattr(ward, "score_unseen", lambda name, *rest: scored.append(name) or again(name, *rest))
    assert compare_rows(args) == tables and not scored
    (out / "seed-0" / "dpo" / ANOTHER / "metrics.json").unlink()
    assert compare_rows(args) == tables and scored == ["DPO"]
    for changed, message in (({"seeds": 0}, "at least one seed"), ({"dtype": "bfloat16"}, "give another --out")):
        with pytest.raises(InputError, match=message):
            compare_rows(argparse.Namespace(**vars(args) | changed))

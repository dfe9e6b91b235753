"""The comparison on ultrasounds: the facts of their lesions, and the whole of it at the smallest size."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import real_ultrasounds
from benchmarks.fire.methods import OURS, WIDER
from benchmarks.fire.probe import commonest, probe_facts
from benchmarks.fire.tower import UNKNOWN
from benchmarks.real_ultrasounds import facts, read_facts, run
from mint.data.preferences import write_jsonl
from mint.demo import radiograph_demo
from mint.demo.tiny_model import write_base
from mint.errors import InputError
from mint.evaluation import statistics
from mint.prefs.lesion_questions import DESCRIBE, write_lesion_questions
from mint.training import curves


@pytest.fixture
def questions(tmp_path):
    """The question files of thirty pictures, two thirds with a lesion."""
    rows, rng = ["image\tmask\tlabel"], np.random.default_rng(0)
    for number in range(30):
        label = ("benign", "malignant", "normal")[number % 3]
        mask = np.zeros((40, 60), dtype=np.uint8)
        if label != "normal":
            y, x = rng.integers(0, 20), rng.integers(0, 40)
            mask[y : y + 15, x : x + 15] = 255
        Image.fromarray(mask).save(tmp_path / f"m{number}.png")
        Image.new("L", (60, 40), 90 + number).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png\tm{number}.png\t{label}")
    (tmp_path / "labels.tsv").write_text("\n".join(rows) + "\n")
    write_lesion_questions(tmp_path / "labels.tsv", tmp_path)
    return tmp_path


def truth(**found):
    known = {"terms": {"kind": "malignant"}, "kinds": {"kind": ["benign", "malignant"]}} if found["present"] else {}
    return {"findings": [{"names": ["lesion"], **found}], **known}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"present": True, "side": "right", "degree": "large", "zone": "upper"}, [1, 1, 2, 0, 1]),
        ({"present": True, "degree": "small", "zone": "lower"}, [1, UNKNOWN, 0, 1, 1]),  # near the middle line
        ({"present": False}, [0, *[UNKNOWN] * 4]),
    ],
)
def test_the_facts_of_a_lesion(found, expected):
    assert facts(truth(**found)) == expected


def test_each_described_image_has_its_facts(questions):
    """The same of lessons as of questions: one row an image, which agrees with the words of its description."""
    for name, answer in (("lessons.jsonl", "chosen"), ("test.jsonl", "answer")):
        images, labels = read_facts(questions / name)
        rows = [json.loads(line) for line in (questions / name).read_text().splitlines()]
        said = {
            str(questions / row["images"][0]): row[answer]
            for row in rows
            if DESCRIBE in (row.get("question"), row.get("prompt", [{}])[0].get("content"))
        }
        assert images == list(said) and set(said) == {str(questions / row["images"][0]) for row in rows}
        for image, (present, side, degree, zone, kind) in zip(images, labels[:, 0].tolist(), strict=True):
            words = said[image].rstrip(".").split()
            assert ("no" not in words) == bool(present)
            for names, known in (
                (("left", "right"), side),
                (("small", "moderate", "large"), degree),
                (("upper", "lower"), zone),
                (("benign", "malignant"), kind),
            ):
                assert [word for word in words if word in names] == ([] if known == UNKNOWN else [names[known]])


def test_the_commonest_class_and_a_fact_that_no_image_has():
    labels = torch.tensor([[[1, 0]], [[1, 1]], [[0, UNKNOWN]], [[1, 1]]])
    assert commonest(labels, ["present", "side"]) == {"present": 3 / 4, "side": pytest.approx(2 / 3)}
    features = torch.tensor([[1.0], [1.0], [-1.0], [1.0]])
    nowhere = torch.tensor([[[1, UNKNOWN]], [[0, UNKNOWN]]])
    found = probe_facts((features, labels), (torch.tensor([[1.0], [-1.0]]), nowhere), ["lesion"], ["present", "side"])
    assert found == {"lesion": {"present": 1.0}}


def test_the_whole_of_it(questions, monkeypatch, capsys):
    """A table of every method, the probes, and rates that keep the sentences; nothing is trained again."""
    trained = []
    for recipe in (radiograph_demo.DESCRIBING, radiograph_demo.TEACH, radiograph_demo.ALIGN):
        monkeypatch.setitem(recipe, "steps", 1)
    for name, value in (("SIGHT", 2), ("prepare", lambda _: questions / "demo")):
        monkeypatch.setattr(real_ultrasounds, name, value)
    for name in ("RESAMPLES", "FLIPS"):
        monkeypatch.setattr(statistics, name, 20)
    monkeypatch.setattr(curves, "plot_curves", lambda *_: None)
    true = lambda task, loaded, asked, **_: [question.answer for question in asked]  # noqa: E731
    monkeypatch.setattr(radiograph_demo.Vqa, "ask", true)
    words = ["There is no lesion on this image.", "user", "assistant", DESCRIBE]
    write_base(questions / "demo" / "model", words, "demo", 300, vision=radiograph_demo.VISION, words=True)
    out = questions / "out"
    table = run(questions, out, 1)
    assert all(f"| {row} | 1 |" in table for row in ("base", "SFT", "DPO", "RRPO", OURS, WIDER))
    assert "| commonest |" in (out / "probes.md").read_text() and "| lesion |" in capsys.readouterr().out
    settings = {file.parent.name: file.read_text() for file in out.glob("seed-0/*/config.toml")}
    slow = {name for name, text in settings.items() if "\nlr = 1e-05\n" in text}
    assert len(settings) == 5 and slow == {"dpo", "fire"}
    monkeypatch.setattr("benchmarks.fire.methods.train", trained.append)
    assert run(questions, out, 1) == table and not trained
    lessons = [json.loads(line) for line in (questions / "lessons.jsonl").read_text().splitlines()]
    write_jsonl(questions / "lessons.jsonl", [{k: v for k, v in one.items() if k != "truth"} for one in lessons])
    with pytest.raises(InputError, match="has no truths: write the question files again"):
        run(questions, out, 1)

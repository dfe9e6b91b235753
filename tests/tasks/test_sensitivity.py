"""Visual sensitivity: masks that move, scores by hand, the model's own numbers, and a model that has learnt to look."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import train
from mint.data.chat import load_tokenizer
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.preferences import Preference, read_preferences, write_jsonl
from mint.data.record_images import ImageSlots, encode_with_images, find_images
from mint.errors import InputError
from mint.evaluation.answers import Answers
from mint.models import load_model
from mint.tasks.base import score_answers
from mint.tasks.sensitivity import PairSensitivity, Sensitivity, contents, corrupt_both, measure, move_mask
from tests.test_train_images import arguments, setting  # noqa: F401


def test_a_moved_mask_has_the_same_shape_elsewhere():
    mask = np.zeros((30, 50), dtype=bool)
    mask[3:9, 40:48], mask[5, 42] = True, False
    moved = move_mask(mask, "x")
    assert moved.sum() == mask.sum() and not (moved & mask).any() and (moved == move_mask(mask, "x")).all()
    rows, columns = np.nonzero(moved)
    assert (moved[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == mask[3:9, 40:48]).all()
    whole = np.ones((4, 4), dtype=bool)
    assert (move_mask(whole, "x") == whole).all()  # there is no elsewhere


def test_scores_by_hand():
    """Right on the clean image; the lesion turns it, the other place does not."""
    pair = PairSensitivity("a", -1.0, -3.0, -4.0, -2.0, -1.5, -2.5)
    assert pair.scores == {
        "drop_lesion": 3.0,
        "drop_elsewhere": 0.5,
        "difference": 2.5,
        "right": 1.0,
        "flip_lesion": 1.0,
        "flip_elsewhere": 0.0,
    }
    wrong = PairSensitivity("b", -3.0, -1.0, -4.0, -2.0, -3.0, -1.0)
    assert wrong.scores["right"] == 0 and wrong.scores["flip_lesion"] is None
    examples = [Preference(name, 1, "", "", "", (f"{name}.png",)) for name in "ab"]
    means = score_answers(Sensitivity(), "x", examples, [pair, wrong]).means
    assert means["right"].value == 0.5 and means["flip_lesion"].value == 1.0 and means["drop_lesion"].value == 2.0


@pytest.fixture
def halves(setting):  # noqa: F811
    """Images with a coloured square that decides the answer, on grey."""
    (setting / "squares").mkdir()
    rows, rng = [], np.random.default_rng(0)
    for number in range(60):
        name = ("red", "green", "blue")[number % 3]
        pixels = np.full((16, 16, 3), 128, dtype=np.uint8)
        x, y = 8 * int(rng.integers(2)), 8 * int(rng.integers(2))
        pixels[y : y + 8, x : x + 8] = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}[name]
        Image.fromarray(pixels).save(setting / "squares" / f"{number}.png")
        other = ("green", "blue", "red")[number % 3]
        rows.append({"id": f"r{number}", "prompt": [{"role": "user", "content": "Which colour is it?"}]})
        rows[-1] |= {"images": [f"squares/{number}.png"], "boxes": [[x, y, x + 8, y + 8]]}
        rows[-1] |= {"chosen": f"It is <mask>{name}</mask>.", "rejected": f"It is <mask>{other}</mask>."}
    write_jsonl(setting / "pairs.jsonl", rows)
    return setting


def test_the_numbers_are_the_models(halves):
    """Against each sequence alone."""
    model, tokenizer = load_model(halves / "model"), load_tokenizer(halves / "model")
    reader = ImageReader(load_processor(halves / "model"))
    preferences = find_images(read_preferences(halves / "pairs.jsonl"), halves / "pairs.jsonl")[:3]
    records = corrupt_both(preferences, halves / "pairs.jsonl", halves / "out", "black")
    found = measure(model, tokenizer, reader, records, batch_size=2)
    slots = ImageSlots(*model.image_slots, reader.processor)
    for place, record, pair in zip(range(3), records["lesion"], found, strict=True):
        files = {"": record.images[0], "_lesion": record.corrupted_images[0]}
        files["_elsewhere"] = records["elsewhere"][place].corrupted_images[0]
        for suffix, file in files.items():
            prompt = encode_with_images(tokenizer, record.prompt, [file], slots)
            for side in ("chosen", "rejected"):
                text = getattr(record, side).text
                answer = tokenizer.encode_answer(text, chat=True)
                with torch.no_grad():
                    logps = model(torch.tensor([prompt + answer]), reader([file]))[0, len(prompt) - 1 : -1].log_softmax(
                        -1
                    )
                inside = [token for token in range(len(answer)) if _in_span(tokenizer, text, token)]
                expected = sum(logps[i, answer[i]].item() for i in inside)
                assert getattr(pair, side + suffix) == pytest.approx(expected, abs=1e-4)


def _in_span(tokenizer, text, token):
    _, offsets = tokenizer.answer_offsets(text, chat=True)
    start, stop = text.index("is ") + 3, len(text) - 1
    return token < len(offsets) and offsets[token][0] < stop and start < offsets[token][1]


def test_a_model_that_looks_is_sensitive(halves, capsys):
    """Before training the lesion matters no more than another place; afterwards it decides."""
    assert train.main(arguments(halves, "--loss", "orpo", "--full", "--steps", "80")) == 0
    command = ["sensitivity", "--data", f"{halves}/pairs.jsonl", "--mode", "surroundings", "--device", "cpu"]
    means = {}
    for name in ("model", "run/model"):
        out = halves / "out" / name.replace("/", "-")
        assert evaluate.main([*command, "--model", f"{halves}/{name}", "--out", str(out), "--name", name]) == 0
        means[name] = {key: e["value"] for key, e in json.loads((out / "metrics.json").read_text())["scores"].items()}
        assert len((out / "pairs.jsonl").read_text().splitlines()) == 60
    assert "60 pairs of 60" in capsys.readouterr().out
    before, after = means["model"], means["run/model"]
    assert after["right"] == 1.0 and abs(before["difference"]) < 0.2 and after["difference"] > 1
    assert abs(after["drop_elsewhere"]) < 0.2
    assert after["flip_lesion"] > 0.2 > after["flip_elsewhere"]


def test_what_distinguishes_records_is_plain_json(halves):
    """So the hash of interrupted measurements does not depend on how a class is printed."""
    first = contents(read_preferences(halves / "pairs.jsonl"))[0]
    assert json.loads(json.dumps(first))[1:3] == ["It is <mask>red</mask>.", "It is <mask>green</mask>."]


def test_an_interrupted_measurement_continues(halves, monkeypatch, capsys):
    """Ctrl-C after the first of four batches; both places of every pair are measured once."""
    command = ["sensitivity", "--data", f"{halves}/pairs.jsonl", "--model", f"{halves}/model", "--device", "cpu"]
    command += ["--limit", "6", "--batch-size", "3"]
    assert evaluate.main([*command, "--out", f"{halves}/whole"]) == 0
    save, batches = Answers.save, []

    def save_and_stop(self, answers):
        save(self, answers)
        batches.append(sorted(answers))
        if len(batches) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Answers, "save", save_and_stop)
    assert evaluate.main([*command, "--out", f"{halves}/stopped"]) == 130
    assert "3 of 12 finished" in capsys.readouterr().err
    assert evaluate.main([*command, "--out", f"{halves}/stopped", "--resume"]) == 0
    assert sorted(place for batch in batches for place in batch) == list(range(12))
    whole, stopped = (read_pairs(halves / name) for name in ("whole", "stopped"))
    assert [one["id"] for one in whole] == [one["id"] for one in stopped]
    for one, other in zip(whole, stopped, strict=True):
        assert one["drop_lesion"] == pytest.approx(other["drop_lesion"], abs=1e-5)
        assert one["drop_elsewhere"] == pytest.approx(other["drop_elsewhere"], abs=1e-5)


def read_pairs(folder):
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]


def test_records_that_tell_no_place(halves):
    rows = [json.loads(line) for line in (halves / "pairs.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("boxes")
    write_jsonl(halves / "pairs.jsonl", rows)
    preferences = find_images(read_preferences(halves / "pairs.jsonl"), halves / "pairs.jsonl")
    with pytest.raises(InputError, match="no record with images tells where"):
        corrupt_both(preferences, halves / "pairs.jsonl", halves / "out", "noise")

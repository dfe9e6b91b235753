"""Comparison of evaluations that are no lists: questions, reports, visual sensitivity, attention; numbers by hand."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from PIL import Image

import evaluate
from mint.data.preferences import Preference
from mint.data.questions import Question
from mint.errors import InputError
from mint.tasks import attention_on_lesion, report_generation, sensitivity, vqa
from mint.tasks.base import save_results, score_answers
from mint.tasks.compare import load_systems, paired_tests
from tests.tasks.test_compare import Page

KEEP_NOTES = True  # in the evaluations that are compared

REFERENCES = [
    "There is a small left pleural effusion and the heart is enlarged.",
    "The lungs are clear and the heart is of normal size.",
    "There is a right pneumothorax with collapse of the lung.",
    "No acute disease is seen in the chest today.",
]
WORDY = [
    REFERENCES[0],
    REFERENCES[1],
    "There is a left pneumothorax of the lung.",
    "No acute disease of the chest is seen.",
]
SHORT = ["There is a pleural effusion.", "The lungs are clear and the heart is small.", REFERENCES[2]]
SHORT += ["A normal chest is seen."]


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    return tmp_path


def save_vqa(folder, name, answers):
    questions = [
        Question("1", folder.parent / "a.png", "Is there <b>one</b>?", "yes", "closed"),
        Question("2", folder.parent / "a.png", "Where?", "left lung", "open"),
        Question("3", folder.parent / "b.png", "Is it large?", "no", "closed"),
    ]
    return save(vqa.Vqa(), folder, name, questions, answers)


def test_texts_of_cases_are_saved_on_request_only(image, monkeypatch):
    """The page of such evaluations says what is missing, and compares them all the same."""
    kept = Path(save_vqa(image / "kept", "kept", ["yes", "left lung", "no"]), "predictions.jsonl").read_text()
    monkeypatch.setattr(f"{__name__}.KEEP_NOTES", False)
    runs = save_vqa(image / "one", "one", ["yes", "a lung", "no"]), save_vqa(image / "two", "two", ["no", "x", "no"])
    saved = Path(runs[0], "predictions.jsonl").read_text()
    assert '"answer": "a lung"' in saved and '"kind": "open"' in saved
    for text in ("left lung", "<b>one</b>", '"question"', '"truth"'):
        assert text not in saved and text in kept
    *_, page = compare(image, *runs)
    assert "Not saved: question, reference. Evaluate with --keep-notes" in page and "left lung" not in page
    reports = save_reports(image / "r1", "r1", REFERENCES), save_reports(image / "r2", "r2", REFERENCES[::-1])
    assert "reference" not in json.loads(Path(reports[0], "predictions.jsonl").read_text().splitlines()[0])
    (image / "out").rename(image / "questions")
    *_, page = compare(image, *reports)
    assert "Not saved: reference." in page and "ROUGE-L" in page


def save(task, folder, name, examples, answers):
    save_results(task, folder, [score_answers(task, name, examples, answers, folder, KEEP_NOTES)], {})
    return str(folder)


def save_reports(folder, name, texts):
    questions = [
        Question(str(i), folder.parent / "a.png", "Describe.", text, "open") for i, text in enumerate(REFERENCES)
    ]
    return save(report_generation.Report(), folder, name, questions, texts)


def preference(folder, name, image):
    return Preference(name, 1, "Where?", "Here.", "There.", (str(folder.parent / image),))


def save_sensitivity(folder, name, pairs):
    return save(sensitivity.Sensitivity(), folder, name, [preference(folder, p.id, "a.png") for p in pairs], pairs)


def save_looks(folder, name, ratios):
    looks = [{"attention_ratio": ratio, "share": 0.2, "area": 0.1, "kl": 1.0, "js": 0.3} for ratio in ratios]
    examples = [preference(folder, str(i), f"{'ab'[i % 2]}.png") for i in range(len(ratios))]
    return save(attention_on_lesion.Attention(), folder, name, examples, looks)


def compare(folder, *runs):
    """(numbers of both systems, the tests, comparison.md); the page is whole and has an image for every case."""
    assert evaluate.main(["compare", *runs, "--images", str(folder), "--out", f"{folder}/out"]) == 0
    record = json.loads((folder / "out" / "comparison.json").read_text())
    text = (folder / "out" / "comparison.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.open and len(page.links) == next(iter(record["systems"].values()))["cases"]
    tests = {row["metric"]: row for row in record["paired_tests"]}
    return record["systems"], tests, (folder / "out" / "comparison.md").read_text(), text


def test_questions(image):
    """Closed questions are compared over those alone; what the evaluation saved stands in the comparison."""
    runs = (
        save_vqa(image / "one", "one", ["yes", "left lung", "no"]),
        save_vqa(image / "two", "two", ["yes", "lung", "yes"]),
    )
    systems, tests, table, page = compare(image, *runs)
    assert systems["two"]["metrics"]["closed"]["value"] == 0.5 and systems["two"]["metrics"]["open"]["value"] == 0.5
    assert systems["two"]["metrics"] == json.loads((image / "two" / "metrics.json").read_text())["scores"]
    assert (tests["closed"]["value"], tests["open"]["value"]) == (0.5, 0.5) and tests["closed"]["p"] == 1.0
    assert "clinical" not in tests and "ranks" not in systems["one"]
    assert (
        "| closed accuracy | open recall |" in table
        and "| one | two | closed accuracy | +50.0 (+0.0 to +100.0) |" in table
    )
    assert "&lt;b&gt;one&lt;/b&gt;" in page and "Place of the true" not in page and "confusions" not in page


def test_reports_that_an_earlier_version_saved(image):
    """It called the counts of words ``told`` and ``true``; the scores are the same."""
    runs = save_reports(image / "new", "new", WORDY), save_reports(image / "old", "old", WORDY)
    file = Path(runs[1]) / "predictions.jsonl"
    text = file.read_text().replace('"n_predicted"', '"told"').replace('"n_reference"', '"true"')
    assert text.count('"told"') == text.count('"true"') == len(REFERENCES)
    file.write_text(text)
    new, old = load_systems(runs)
    assert new.estimates == old.estimates and 0 < old.estimates["bleu_1"].value < 1


def test_reports_as_corpora(image):
    """BLEU of the comparison is nltk's of the corpus; its difference has the p-value of all exchanges of reports."""
    runs = save_reports(image / "one", "one", WORDY), save_reports(image / "two", "two", SHORT)
    systems, tests, table, page = compare(image, *runs)

    def bleu(texts):
        return corpus_bleu(
            [[report_generation.words(text)] for text in REFERENCES], [report_generation.words(text) for text in texts]
        )

    gap = bleu(WORDY) - bleu(SHORT)
    assert systems["one"]["metrics"]["bleu_4"]["value"] == pytest.approx(bleu(WORDY))
    assert tests["bleu_4"]["value"] == pytest.approx(gap) and tests["bleu_4"]["low"] <= gap <= tests["bleu_4"]["high"]
    exchanged = [
        [p[::k] for p, k in zip(zip(WORDY, SHORT, strict=True), ks, strict=True)] for ks in product((1, -1), repeat=4)
    ]
    gaps = [abs(bleu([p[0] for p in pairs]) - bleu([p[1] for p in pairs])) for pairs in exchanged]
    assert tests["bleu_4"]["p"] == pytest.approx(np.mean([other >= abs(gap) - 1e-9 for other in gaps]), abs=0.02)
    assert "BLEU-4" in table and "A normal chest is seen." in page and REFERENCES[0] in page


def test_visual_sensitivity(image):
    """The second pair is wrong on the clean image for one system: flips are compared on the first alone."""
    pairs = [
        [sensitivity.PairSensitivity(name, *values) for name, values in zip("ab", some, strict=True)]
        for some in (
            ((-1, -3, -4, -2, -1.5, -2.5), (-1, -2, -1, -2, -1, -2)),
            ((-1, -3, -2, -3, -1.0, -3.0), (-3, -1, -3, -1, -3, -1)),
        )
    ]
    runs = [save_sensitivity(image / name, name, some) for name, some in zip(("one", "two"), pairs, strict=True)]
    systems, tests, table, page = compare(image, *runs)
    assert systems["one"]["metrics"]["drop_lesion"]["value"] == 1.5 and tests["drop_lesion"]["value"] == 1.0
    assert systems["one"]["metrics"]["flip_lesion"]["value"] == 0.5 and tests["flip_lesion"]["value"] == 1.0
    assert "| one | 1 | 1.500 (1.500-1.500) |" in table and "+1.000" in table and "drop, lesion (nats): 3.000" in page


def test_attention(image):
    """A ratio is averaged as its logarithm: of 1 and 4 the mean is 2."""
    runs = save_looks(image / "one", "one", [1.0, 4.0, 2.0]), save_looks(image / "two", "two", [1.0, 1.0, 8.0])
    systems, tests, table, page = compare(image, *runs)
    assert [systems[name]["metrics"]["attention_ratio"]["value"] for name in ("one", "two")] == pytest.approx(
        [2.0, 2.0]
    )
    assert tests["attention_ratio"]["value"] == pytest.approx(0.0) and "| one | 1 | 2.00 (" in table
    assert "attention ratio: 4.00" in page and "geometric mean" in page


def test_a_score_that_one_system_lacks(image):
    """A judge scored the first evaluation alone: the column is there, the test is not."""
    one, two = (save_vqa(image / name, name, ["yes", "lung", "no"]) for name in ("one", "two"))
    file = Path(one) / "predictions.jsonl"
    file.write_text(file.read_text().replace('"judged": null', '"judged": 1.0'))
    systems, tests, table, _ = compare(image, one, two)
    assert systems["one"]["metrics"]["judged"]["value"] == 1.0 and "judged" not in systems["two"]["metrics"]
    assert "judged" not in tests and "| accuracy by judge |" in table


def test_seeds_of_a_corpus_score(image):
    """Two seeds: the mean of both corpora's scores, and each of them."""
    runs = save_reports(image / "one", "one", WORDY), save_reports(image / "two", "two", SHORT)
    both, single = load_systems([f"both={runs[0]},{runs[1]}", f"single={runs[0]}"])
    assert both.estimates["bleu_4"].value == pytest.approx(np.mean(both.by_seed("bleu_4")))
    assert both.by_seed("bleu_4")[0] == pytest.approx(single.estimates["bleu_4"].value)
    assert {row["metric"] for row in paired_tests([both, single])} == {"bleu_4", "rouge_l", "meteor", "f1"}


def test_different_kinds_are_not_compared(image):
    runs = save_vqa(image / "one", "one", ["yes", "lung", "no"]), save_looks(image / "two", "two", [1.0])
    with pytest.raises(InputError, match="evaluations of attention and of questions cannot be compared"):
        load_systems(runs)

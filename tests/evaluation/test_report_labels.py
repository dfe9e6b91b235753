"""Labels computed elsewhere: F1 of CheXbert's findings and of RadGraph's graphs by hand; every bad line is named."""

import json

import pytest

from mint.errors import FileProblems, InputError
from mint.evaluation.report_labels import FINDINGS, FIVE, LABEL_COLUMNS, radgraph_f1, read_labels
from mint.evaluation.scores import estimate

EMPTY = {"entities": {}}


def chexbert(**labels):
    return {name: labels.get(name.replace(" ", "_").lower()) for name in FINDINGS}


def write(path, rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def graph(*entities):
    keys = ("tokens", "label", "relations")
    return {str(n): dict(zip(keys, entity, strict=True)) for n, entity in enumerate(entities, 1)}


def test_chexbert_by_hand(tmp_path):
    """Edema: both reports right (one uncertain). Fracture: found in the first, missed in the second. Pneumonia: false.

    14 findings: 3 shared, 4 predicted, 4 in the references. F1: edema 1, fracture 2 / 3 (1 + 2 counted, 1 shared).
    Five: edema alone, 2 shared of 2 and 2; macro 1 / 5.
    """
    rows = [
        {
            "id": "a",
            "chexbert": {
                "prediction": chexbert(edema=1, fracture=1, pneumonia=1, cardiomegaly=0),
                "reference": chexbert(edema=-1, fracture=1, pneumonia=0),
            },
        },
        {
            "id": 2,
            "chexbert": {
                "prediction": [0, 0, 0, 0, 1] + [None] * 9,
                "reference": [None, 0, 0, None, 1] + [0] * 6 + [1, 0, None],
            },
        },
    ]
    assert FINDINGS[4] == "Edema" and FINDINGS[11] == "Fracture" and set(FIVE) < set(FINDINGS)
    found = read_labels(write(tmp_path / "labels.jsonl", rows), ["a", "2", "not labelled"])
    means = estimate(LABEL_COLUMNS, [[found["a"], found["2"]]])
    assert means["chexbert_micro_14"].value == pytest.approx(2 * 3 / (4 + 4))
    assert means["chexbert_macro_14"].value == pytest.approx((1 + 2 / 3) / 14)
    assert means["chexbert_micro_5"].value == pytest.approx(1.0)
    assert means["chexbert_macro_5"].value == pytest.approx(1 / 5)
    assert not any(name.startswith("radgraph") for name in means)


def test_radgraph_by_hand(tmp_path):
    """Predicted: a small effusion on the left. Reference: a large one there, and no mass.

    simple: effusion and left are shared of 3 and 4. partial: effusion has relations in both, left in neither.
    complete: of the reference (effusion located_at left), large, mass, and its left; the prediction shares the
    relation in lower case and left.
    """
    effusion, left = "OBS-DP", "ANAT-DP"
    predicted = graph(
        ("Effusion", effusion, [["located_at", "3"]]), ("small", effusion, [["modify", "1"]]), ("left", left, [])
    )
    true = graph(
        ("Effusion", effusion, [["located_at", "3"]]),
        ("large", effusion, [["modify", "1"]]),
        ("left", left, []),
        ("mass", "OBS-DA", []),
    )
    assert radgraph_f1(predicted, true) == pytest.approx({"simple": 4 / 7, "partial": 4 / 7, "complete": 4 / 7})
    lone = graph(("Effusion", effusion, []), ("left", left, [["located_at", "1"]]))
    # simple: both; partial: neither, since what has relations differs; complete: (left located_at effusion) is none
    assert radgraph_f1(lone, predicted) == pytest.approx({"simple": 2 * 2 / 5, "partial": 0.0, "complete": 0.0})
    upper = graph(("effusion", effusion, [["located_at", "2"]]), ("Left", left, []))
    # complete: the relation alone, for it is compared in lower case: 1 of 2 and 3
    assert radgraph_f1(upper, predicted) == pytest.approx({"simple": 0.0, "partial": 0.0, "complete": 2 / 5})
    rows = [
        {"id": "a", "radgraph": {"prediction": {"entities": predicted}, "reference": {"entities": true}}},
        {"id": "b", "radgraph": {"prediction": EMPTY, "reference": EMPTY}},
    ]
    found = read_labels(write(tmp_path / "labels.jsonl", rows), ["a", "b"])
    means = estimate(LABEL_COLUMNS, [list(found.values())])
    assert means["radgraph_partial"].value == pytest.approx(2 / 7) and "chexbert_micro_14" not in means


def test_every_bad_line_is_named(tmp_path):
    right = {"prediction": [0] * 14, "reference": [1] * 14}
    rows = [
        "{",
        {"chexbert": right},
        {"id": "x", "chexbert": right},
        {"id": "a"},
        {"id": "a", "chexbert": {"prediction": [0] * 14}},
        {"id": "a", "chexbert": {**right, "reference": [0] * 13}},
        {"id": "a", "chexbert": {**right, "reference": [3] + [0] * 13}},
        {"id": "a", "chexbert": {**right, "reference": {"Edema": 1}}},
        {"id": "a", "radgraph": {"prediction": EMPTY, "reference": {"entities": {"1": {"tokens": "mass"}}}}},
        {"id": "a", "radgraph": {"prediction": EMPTY, "reference": {"entities": graph(("a", "b", [["c", "9"]]))}}},
        {"id": "a", "chexbert": right},
        {"id": "a", "chexbert": right},
    ]
    with pytest.raises(FileProblems) as error:
        read_labels(write(tmp_path / "labels.jsonl", rows), ["a", "b"])
    wanted = [
        "invalid JSON",
        'needs an "id"',
        "no report has the id 'x'",
        'needs "chexbert" or "radgraph"',
        'needs "prediction" and "reference"',
        "a list of 14",
        "3 is no label: 1 positive, -1 uncertain",
        "see 'Atelectasis'",
        "radgraph: both sides need",
        "radgraph: both sides need",
        "id 'a' is also that of labels.jsonl:11",
    ]
    for part, problem in zip(wanted, error.value.problems, strict=True):
        assert part in problem
    mixed = [{"id": "a", "chexbert": right}, {"id": "b", "radgraph": {"prediction": EMPTY, "reference": EMPTY}}]
    with pytest.raises(InputError, match="give both for all, or one"):
        read_labels(write(tmp_path / "labels.jsonl", mixed), ["a", "b"])
    with pytest.raises(InputError, match="does not exist"):
        read_labels(tmp_path / "none.jsonl", ["a"])

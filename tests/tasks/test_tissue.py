"""Scores of tissue lists by hand; decoding that looks at each tile."""

from pathlib import Path

import numpy as np
import pytest

from mint.data.tiles import Tile
from mint.errors import InputError
from mint.tasks.base import score_answers
from mint.tasks.ranked import TeacherLists
from mint.tasks.tissue import Tissue
from mint.tasks.tissue_scores import TissueScore, confusion, f1_scores, score_tissues

TISSUES = ["Colon", "Head & Neck", "Liver", "Lung"]


def test_scores_by_hand():
    """Two of the teacher's three best, one of its two worst: C = 2/3, A = 1/2.

    CAR with L = 0.5 is 1.5 C A / (0.5 C + A) = 1/2 / (5/6) = 3/5, with L = 1 2 C A / (C + A) = 4/7. Of the four names
    listed half are covered: 1.5 / 4 / (3/4) = 1/2.
    """
    listed = ["head neck", "Colon", "Lung", "Spleen"]
    score = score_tissues(listed, "Colon", TISSUES, ["Colon", "Head & Neck", "x"], ["Lung", "y"])
    assert (score.top_1, score.top_5, score.known, score.listed) == (0.0, 1.0, 0.75, 4)
    assert (score.coverage, score.avoidance) == (pytest.approx(2 / 3), 0.5) and score.car == pytest.approx(3 / 5)
    assert (score.coverage_listed, score.car_listed) == (0.5, pytest.approx(0.5))
    harmonic = score_tissues(listed, "Colon", TISSUES, ["Colon", "Head & Neck", "x"], ["Lung", "y"], car_weight=1)
    assert harmonic.car == pytest.approx(4 / 7)
    assert score_tissues(["HEAD & NECK"], "Head & Neck", TISSUES, ["Liver"], ["Lung"]).top_1 == 1.0
    late = score_tissues(["a", "b", "c", "d", "e", "Colon"], "Colon", TISSUES, ["Liver"], ["Lung"])
    assert (late.top_5, late.known) == (0.0, pytest.approx(1 / 6))
    assert score_tissues([], "Colon", TISSUES, ["Liver"], ["Lung"]) == TissueScore(0, 0, 0, 0, 0, 1, 0, 0, 0)


def test_confusion_and_f1_by_hand():
    """Colon: 2 hits, 1 missed, 1 false: F1 = 4/6. Liver: 1 hit, 1 missed: F1 = 2/3. Lung: told once, never true: 0."""
    truths = ["Colon", "Colon", "Colon", "Liver", "Liver"]
    lists = [["Colon"], ["colon", "Liver"], ["Lung"], ["Liver"], ["Colon"]]
    counts = confusion(truths, lists, TISSUES)
    assert counts.tolist() == [[2, 0, 0, 1, 0], [0] * 5, [1, 0, 1, 0, 0], [0] * 5]
    np.testing.assert_allclose(f1_scores(counts), [4 / 6, np.nan, 2 / 3, 0.0])
    tiles = [Tile(str(i), Path("x.png"), truth) for i, truth in enumerate(truths)]
    task = Tissue(TISSUES)
    task.refer_to("teacher", tiles, TeacherLists([["Liver"]] * 5, [["Lung"]] * 5))
    result = score_answers(task, "x", tiles, [task.format(listed) for listed in lists])
    assert [record["top_1"] for record in result.records] == [1, 1, 0, 1, 0]
    mean, f1 = task.row(result), result.means["macro_f1"]
    assert mean["macro_f1"] == pytest.approx(2 / 3) and mean["top_1"] == pytest.approx(3 / 5)
    assert mean["tiles"] == 5 and mean["without_list"] == 0 and 0 < f1.low < 2 / 3 < f1.high < 1 + 1e-9
    assert confusion(["Liver"], [[]], TISSUES)[2, 4] == confusion(["Liver"], [["Spleen"]], TISSUES)[2, 4] == 1
    with pytest.raises(InputError, match="no tiles to score"):
        score_answers(task, "x", [], [])

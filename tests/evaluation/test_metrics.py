"""The metrics by hand and against difflib."""

from difflib import SequenceMatcher

import pytest

from mint.data.cases import Case
from mint.evaluation.metrics import (
    KnownDiseases,
    avoidance,
    car,
    coverage,
    equals,
    matches,
    normalize,
    score_list,
    similarity,
)
from mint.tasks.base import score_answers
from mint.tasks.disease import Disease
from mint.tasks.ranked import TeacherLists

NAMES = [
    "Noonan syndrome 1",
    "noonan syndrome",
    "Noonan-like syndrome",
    "Marfan syndrome",
    "Kabuki syndrome 2",
    "",
    "x",
]


def test_normalize():
    assert normalize("  Charcot-Marie-Tooth disease,  type 1A (CMT1A)") == "charcotmarietooth disease type 1a cmt1a"


@pytest.mark.parametrize("a", NAMES)
@pytest.mark.parametrize("b", NAMES)
def test_a_match_is_difflibs_ratio_of_at_least_08(a, b):
    ratio = SequenceMatcher(None, normalize(a), normalize(b)).ratio()
    assert (similarity(normalize(a), normalize(b)) >= 0.8) == (ratio >= 0.8)
    if ratio >= 0.8:
        assert similarity(normalize(a), normalize(b)) == ratio


def test_aliases():
    assert matches("Noonan syndrom", "Turner phenotype; Noonan syndrome") and not matches("Noonan", "Marfan syndrome;;")
    assert not matches("---", "Noonan syndrome; -") and "---" not in KnownDiseases(["Noonan syndrome; -"])
    assert equals("noonan  syndrome!", "A; Noonan syndrome") and not equals("noonan syndrom", "Noonan syndrome")


def test_coverage_avoidance_and_car_by_hand():
    top, bottom = ["Alpha disease", "Beta disorder"], ["Gamma illness", "Delta malady", "Epsilon state", "Zeta fever"]
    assert coverage(["Beta disorder", "Omega thing"], top) == 0.5
    assert coverage(["Omega thing", "Other thing", "Beta disorder"], top) == 0  # only the listed top-k count
    assert coverage(["Beta disorder", "beta disorder"], top) == 0.5  # a repetition counts once
    assert avoidance(["Gamma illness", "Beta disorder"], bottom) == 0.75
    assert car(0.5, 0.75) == pytest.approx(2 * 0.375 / 1.25)
    assert (coverage([], top), avoidance([], bottom), car(0.0, 1.0), car(0.0, 0.0)) == (0, 1, 0, 0)


def test_one_list_by_hand():
    known = KnownDiseases(["Alpha disease", "Beta disorder; Beta alias", "Gamma illness"])
    listed = ["Beta disorder", "Invented plague", "Alpha diseases"]
    score = score_list(listed, "Alpha disease", known, ["Alpha disease", "Beta disorder"], ["Gamma illness"])
    assert (score.top_1, score.top_10, score.top_1_exact, score.top_10_exact) == (0, 1, 0, 0)
    assert score.hallucination_free == pytest.approx(2 / 3) and score.listed == 3
    assert (score.coverage, score.avoidance) == (0.5, 1)


def test_an_empty_list_scores_nothing_but_avoidance():
    score = score_list([], "A", KnownDiseases(["A"]), ["A"], ["B"])
    assert (score.top_1, score.top_10, score.hallucination_free, score.coverage, score.car) == (0, 0, 0, 0, 0)
    assert score.avoidance == 1


def test_only_the_first_ten_names_count_for_top_10():
    listed = [f"Thing {c * 8}" for c in "abcdefghij"] + ["Truth"]
    assert score_list(listed, "Truth", KnownDiseases(["Truth"]), ["Truth"], ["X"]).top_10 == 0


def test_averages_and_table():
    cases = [Case("1", "Alpha disease"), Case("2", "Beta disorder")]
    task = Disease(["Alpha disease"])
    task.refer_to("teacher", cases, TeacherLists([["Alpha disease"]] * 2, [["Gamma illness"]] * 2))
    result = score_answers(task, "model", cases, [task.format(["Alpha disease"]), "no list"])
    mean = task.row(result)
    assert (mean["top_1"], mean["cases"], mean["without_list"], mean["listed"]) == (0.5, 2, 1, 0.5)
    assert task.text([result]).splitlines()[2].startswith("| model | 50.0 | 50.0 | 50.0 |")

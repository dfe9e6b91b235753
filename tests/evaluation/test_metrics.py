"""The metrics by hand and against difflib."""

import random
from difflib import SequenceMatcher

import pytest

from mint.data.cases import Case
from mint.evaluation.metrics import (
    KnownDiseases,
    avoidance,
    car,
    contains,
    coverage,
    coverage_listed,
    equals,
    matches,
    normalize,
    score_list,
    similarity,
    worst_ranks,
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


def plain_match(a, b):
    """The rule without its pre-filter."""
    return SequenceMatcher(None, normalize(a), normalize(b)).ratio() >= 0.8


def test_the_pre_filter_changes_no_match():
    """Names with letters changed, some of them near 0.8 or at it, against difflib alone."""
    rng = random.Random(0)
    words = "syndrome disease type spastic paraplegia autosomal recessive 1 4 14 deficiency Noonan immuno-".split()
    names = [" ".join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(40)]
    listed = []
    for name in rng.choices(names, k=150):
        letters = list(name)
        for place in rng.choices(range(len(letters)), k=round(rng.uniform(0, 0.3) * len(letters))):
            letters[place] = rng.choice("abcdest 1")
        listed.append("".join(letters))
    near = [(a, b) for a in listed for b in names if 0.77 <= SequenceMatcher(None, a, b).ratio() <= 0.83]
    assert len(near) > 20  # the test covers the threshold
    known = KnownDiseases(names)
    for name in listed:
        wanted = [plain_match(name, other) for other in names]
        assert [similarity(normalize(name), normalize(other)) >= 0.8 for other in names] == wanted, name
        assert (name in known) == contains(names, name) == any(wanted), name
    at = "immunhdenicjench 119", "immunodeficiency 119"  # exactly 0.8
    assert SequenceMatcher(None, *at).ratio() == 0.8 and contains(at[1:], at[0]) and at[0] in KnownDiseases(at[1:])


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


def test_coverage_over_the_names_listed_and_the_weight_of_car_by_hand():
    """The teacher's ten; one name of it, listed alone: 1 / 10 over k, 1 / 1 over the names listed."""
    words = "Alpha Beta Gamma Delta Epsilon Zeta Eta Theta Iota Kappa".split()
    top = [f"{word * 2} disease" for word in words]
    assert (coverage(top[3:4], top), coverage_listed(top[3:4], top)) == (0.1, 1)
    assert coverage_listed([top[0], "Measles", "Mumps", top[1]], top) == 0.5
    assert coverage_listed([top[0], top[0]], top) == 0.5 and coverage_listed([], top) == 0
    assert coverage_listed(["Measles"] * 10 + top[:2], top) == pytest.approx(2 / 12)  # beyond the first k too
    # 1.5 * 0.5 * 0.75 / (0.5 * 0.5 + 0.75) = 0.5625 / 1;   3 * 0.5 * 0.75 / (2 * 0.5 + 0.75) = 1.125 / 1.75
    assert car(0.5, 0.75, 0.5) == pytest.approx(0.5625) and car(0.5, 0.75, 2) == pytest.approx(9 / 14)
    assert car(0.0, 0.0, 0.5) == 0
    score = score_list(top[3:4], top[3], KnownDiseases(top), top, ["Measles"], car_weight=0.5)
    assert score.car == pytest.approx(1.5 * 0.1 / (0.05 + 1)) and score.car_listed == pytest.approx(1)


def test_equal_scores_share_the_worst_rank():
    assert worst_ranks([0.9, 0.5, 0.5, 0.1]) == [1, 3, 3, 4] and worst_ranks([2, 2]) == [2, 2] and worst_ranks([]) == []


@pytest.mark.parametrize("rank, wanted", [(0, (0, 0, 0, 0, 0)), (1, (1, 1, 1, 1, 1)), (3, (0, 1, 1, 1 / 3, 1))])
@pytest.mark.parametrize("listed", [["Any", "names"], ["Truth"]])
def test_scores_by_the_rank_of_the_id(rank, wanted, listed):
    """They follow from the rank that is given, whatever the names are."""
    score = score_list(listed, "Truth", KnownDiseases(["Truth"]), ["Truth"], ["X"], rank)
    assert (score.top_1_id, score.top_3_id, score.top_10_id, score.mrr, score.found) == pytest.approx(wanted)


def test_beyond_ten_names_only_found_and_mrr_count():
    listed = [f"Thing {c * 8}" for c in "abcdefghij"] + ["Truth"]
    score = score_list(listed, "Truth", KnownDiseases(["Truth"]), ["Truth"], ["X"])  # no id: the exact name
    assert (score.top_10_id, score.found, score.mrr) == (0, 1, pytest.approx(1 / 11))


def test_one_list_by_hand():
    known = KnownDiseases(["Alpha disease", "Beta disorder; Beta alias", "Gamma illness"])
    listed = ["Beta disorder", "Invented plague", "Alpha diseases"]
    score = score_list(listed, "Alpha disease", known, ["Alpha disease", "Beta disorder"], ["Gamma illness"])
    assert (score.top_1, score.top_10, score.top_1_exact, score.top_10_exact) == (0, 1, 0, 0)
    assert score.hallucination_free == pytest.approx(2 / 3) and score.listed == 3
    assert score.hallucination_free_case == 1  # any name is real
    assert (score.top_1_id, score.found) == (0, 0)  # "Alpha diseases" is similar, not exact
    assert (score.coverage, score.avoidance) == (0.5, 1)


def test_an_empty_list_scores_nothing_but_avoidance():
    score = score_list([], "A", KnownDiseases(["A"]), ["A"], ["B"])
    assert (score.top_1, score.top_10, score.hallucination_free, score.coverage, score.car) == (0, 0, 0, 0, 0)
    assert score.avoidance == 1
    assert (score.top_1_id, score.mrr, score.found, score.hallucination_free_case, score.car_listed) == (0, 0, 0, 0, 0)


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
    public = {"top_1", "top_10", "top_1_exact", "top_10_exact", "hallucination_free", "coverage", "avoidance", "car"}
    assert public < set(mean) and {"top_1_id", "top_3_id", "top_10_id", "mrr", "found"} < set(mean)
    head = task.text([result]).splitlines()[0].split(" | ")
    assert head[1:8] == ["top-1", "top-3", "top-10", "MRR", "top-1 (0.8)", "top-10 (0.8)", "hallucination-free"]
    assert len(head) <= 13
    assert task.text([result]).splitlines()[2].startswith("| model | 50.0 | 50.0 | 50.0 |")

"""The bootstrap against the normal approximation and its exact cases; the permutation test against full enumeration."""

from itertools import product

import numpy as np
import pytest

from mint.evaluation.scores import estimate, mean_score
from mint.evaluation.statistics import bootstrap, paired_p, wilson


def test_the_interval_of_a_share_is_that_of_the_binomial():
    scores = np.array([[1.0] * 300 + [0.0] * 100])
    e = bootstrap(scores)
    deviation = np.sqrt(0.75 * 0.25 / 400)
    assert e.value == 0.75
    assert e.low == pytest.approx(0.75 - 1.96 * deviation, abs=0.005)
    assert e.high == pytest.approx(0.75 + 1.96 * deviation, abs=0.005)
    assert bootstrap(scores) == e  # by seed


def test_wilson_by_published_values():
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)):
        e = wilson(successes, trials)
        assert (e.value, e.low, e.high) == pytest.approx((successes / trials, low, high), abs=5e-5)
    none, all_of_them = wilson(0, 20), wilson(20, 20)
    assert (none.low, none.high) == pytest.approx((0, 0.1611), abs=5e-5)
    assert (all_of_them.low, all_of_them.high) == pytest.approx((1 - none.high, 1))


def test_which_scores_have_wilsons_interval():
    """Ungrouped cases of one run that are 0 or 1, over those that have the score; all else is drawn."""
    columns = {"hit": mean_score("hit", "hit"), "part": mean_score("part", "part")}
    records = [{"hit": float(i < 6), "part": i / 8} for i in range(8)] + [{"hit": None, "part": 1.0}]
    found = estimate(columns, [records])
    assert found["hit"] == wilson(6, 8) and found["part"].method == "bootstrap"
    assert estimate(columns, [records], list("abcdefghh"))["hit"] == wilson(6, 8)  # the second h has no score
    assert estimate(columns, [records], list("aacdefghi"))["hit"].method == "bootstrap"
    assert estimate(columns, [records, records])["hit"].method == "bootstrap"


def test_what_does_not_vary_has_no_interval():
    e = bootstrap(np.ones((3, 5)))
    assert (e.value, e.low, e.high) == pytest.approx((1, 1, 1))


def test_runs_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    base = rng.random((1, 400))
    same, apart = np.repeat(base, 5, 0), base + np.linspace(-0.3, 0.3, 5)[:, None]
    narrow, wide = bootstrap(same), bootstrap(apart)
    assert narrow.value == pytest.approx(wide.value)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    # the spread of a mean of five runs drawn from five
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * np.linspace(-0.3, 0.3, 5).std() / np.sqrt(5), rel=0.15)


def test_the_permutation_test_by_enumeration():
    a, b = np.array([0.9, 0.4, 0.8, 0.7, 1.0, 0.2, 0.6, 0.5]), np.array([0.5, 0.5, 0.3, 0.1, 0.7, 0.2, 0.1, 0.3])
    gap = a - b
    sums = [abs(np.dot(signs, gap)) for signs in product((-1, 1), repeat=8)]
    exact = np.mean([s >= abs(gap.sum()) - 1e-9 for s in sums])
    assert paired_p(a, b) == pytest.approx(exact, abs=0.01)
    assert paired_p(b, a) == pytest.approx(exact, abs=0.01)


def test_the_permutation_test_at_its_ends():
    assert paired_p(np.ones(9), np.ones(9)) == 1.0
    assert paired_p(np.ones(200), np.zeros(200)) == pytest.approx(1 / 10_001)
    # of binary scores it is McNemar's exact test: 9 against 1 discordant cases, 2 * (1 + 10) / 2^10
    a, b = np.array([1.0] * 9 + [0.0] + [1.0] * 30), np.array([0.0] * 9 + [1.0] + [1.0] * 30)
    assert paired_p(a, b) == pytest.approx(22 / 1024, abs=0.005)


def test_cases_of_a_group_are_drawn_together():
    """100 tiles of 20 slides that agree within a slide tell as much as 20 tiles; groups of one change nothing."""
    rng = np.random.default_rng(1)
    slides = rng.integers(0, 2, (1, 20)).astype(float)
    tiles, groups = slides.repeat(5, 1), np.repeat(np.arange(20), 5).astype(str)
    alone, together, apart = bootstrap(slides), bootstrap(tiles, groups=groups), bootstrap(tiles)
    assert together.high - together.low == pytest.approx(alone.high - alone.low, abs=0.051)  # a step of the mean
    assert apart.high - apart.low < 0.6 * (together.high - together.low)
    assert bootstrap(slides, groups=[f"{i:02}" for i in range(20)]) == alone
    # of two slides of 1 and 3 tiles, three draws give means of 0, 1/4 (each once) and 1
    few = bootstrap(np.array([[1.0, 0.0, 0.0, 0.0]]), groups=["a", "b", "b", "b"])
    assert (few.value, few.low, few.high) == (0.25, 0.0, 1.0)


def test_groups_change_signs_together():
    a, b = np.array([1.0] * 12 + [0.0] * 2), np.zeros(14)
    groups = ["a"] * 4 + ["b"] * 4 + ["c"] * 4 + ["d"] * 2
    assert paired_p(a, b, groups=groups) == pytest.approx(2 / 8, abs=0.02)  # three differences of one sign
    assert paired_p(a, b, groups=list("abcdefghijklmn")) == paired_p(a, b)

"""Scores of tissue lists: places, agreement with the teacher, the confusion matrix, F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mint.data.tiles import LISTED
from mint.evaluation.metrics import avoidance, car, coverage, coverage_listed, normalize

CAR_WEIGHT = 0.5  # L of CAR in the authors' scripts for tissues

SCORES = {  # score -> heading, meaning
    "top_1": ("top-1", "The true tissue is listed first."),
    "top_5": ("top-5", "The true tissue is among the first five names."),
    "macro_f1": ("macro F1", "The mean over the true tissues of F1, from the name listed first."),
    "known": ("known names", "The share of listed names that are tissues of the data set."),
    "coverage": ("coverage C", "C: the share of the teacher's best names that the list holds."),
    "avoidance": ("avoidance A", "A: the share of the teacher's worst names that the list leaves out."),
    "car": ("CAR", "(1 + L) C A / (L C + A), with L = 0.5 as in the authors' scripts, or --car-weight."),
    "coverage_listed": ("C / listed", "The share of listed names that are among the teacher's best."),
    "car_listed": ("CAR / listed", "CAR with C / listed in place of C."),
}
COLUMNS = {name: heading for name, (heading, _) in SCORES.items()}
MEANINGS = {name: meaning for name, (_, meaning) in SCORES.items()}


@dataclass(frozen=True)
class TissueScore:
    """The scores of one answer. known: the share of listed names that are among the tissues (0 for an empty list)."""

    top_1: float
    top_5: float
    known: float
    listed: int
    coverage: float
    avoidance: float
    car: float
    coverage_listed: float
    car_listed: float


def score_tissues(
    listed: Sequence[str],
    truth: str,
    tissues: Sequence[str],
    best: Sequence[str],
    worst: Sequence[str],
    car_weight: float = CAR_WEIGHT,
) -> TissueScore:
    """All scores of one list; the first five names count. best, worst: the teacher's lists. car_weight: L of CAR.

    Names count as equal if they are the same in lower case without punctuation.
    """
    names = [normalize(name) for name in listed]
    real = {normalize(tissue) for tissue in tissues}
    c, c_listed, a = coverage(listed, best), coverage_listed(listed, best), avoidance(listed, worst)
    return TissueScore(
        top_1=float(names[:1] == [normalize(truth)]),
        top_5=float(normalize(truth) in names[:LISTED]),
        known=sum(name in real for name in names) / len(names) if names else 0.0,
        listed=len(names),
        coverage=c,
        avoidance=a,
        car=car(c, a, car_weight),
        coverage_listed=c_listed,
        car_listed=car(c_listed, a, car_weight),
    )


def confusion(truths: Sequence[str], lists: Sequence[Sequence[str]], tissues: Sequence[str]) -> np.ndarray:
    """[tissues, tissues + 1] counts: the true tissue by the one listed first; the last column: none of them."""
    place = {normalize(tissue): i for i, tissue in enumerate(tissues)}
    counts = np.zeros((len(tissues), len(tissues) + 1), dtype=int)
    for truth, listed in zip(truths, lists, strict=True):
        first = place.get(normalize(listed[0]), len(tissues)) if listed else len(tissues)
        counts[place[normalize(truth)], first] += 1
    return counts


def f1_scores(counts: np.ndarray) -> np.ndarray:
    """[..., tissues] F1 = 2 TP / (2 TP + FP + FN) from confusion matrices; nan for a tissue that never occurs."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(float)
    total = counts.sum(-1) + counts[..., :-1].sum(-2)
    with np.errstate(invalid="ignore"):
        return 2 * hits / total

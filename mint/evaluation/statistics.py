"""How sure a mean is, and a difference of two: the bootstrap, and a paired permutation test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
FLIPS = 10_000
CHUNK = 500  # resamples in memory at a time


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(scores: np.ndarray, seed: int = 0, groups: Sequence[str] | None = None) -> Estimate:
    """The mean of scores [runs, cases] and the percentile bootstrap's 95 % interval.

    Cases are drawn with replacement, and so are runs (training seeds) where there are several: the interval covers both.
    groups: for each case, what it belongs to; cases of one group (tiles of a slide) are drawn together.
    """
    runs, cases = scores.shape
    member = np.arange(cases) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, RESAMPLES, CHUNK):
        size = min(CHUNK, RESAMPLES - start)
        case_weights = rng.multinomial(count, np.full(count, 1 / count), size)[:, member].astype(float)
        case_weights /= case_weights.sum(1, keepdims=True)
        run_weights = rng.multinomial(runs, np.full(runs, 1 / runs), size) / runs
        means.append(((run_weights @ scores) * case_weights).sum(1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return Estimate(float(scores.mean()), float(low), float(high))


def paired_p(a: np.ndarray, b: np.ndarray, seed: int = 0, groups: Sequence[str] | None = None) -> float:
    """The two-sided p-value of the sign-flip permutation test that two sets of scores [cases] have the same mean.

    Under the null hypothesis each case's difference (with ``groups``, each group's) is as likely to have either sign. The
    observed sign pattern counts as one of the permutations, so p is at least 1 / (FLIPS + 1).
    """
    difference = a - b
    if groups is not None:
        difference = np.bincount(np.unique(groups, return_inverse=True)[1], difference)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    rng = np.random.default_rng(seed)
    observed, beyond = abs(difference.sum()), 0
    for start in range(0, FLIPS, CHUNK):
        signs = rng.integers(0, 2, (min(CHUNK, FLIPS - start), len(difference))) * 2 - 1
        beyond += int((np.abs(signs @ difference) >= observed - 1e-9).sum())
    return (beyond + 1) / (FLIPS + 1)

"""How certain a score is, and a difference of two: Wilson's interval, the bootstrap, a paired permutation test.

A score of a set of cases is a function of sums over the cases: a mean of (sum, count), BLEU of n-gram counts. Arrays of
such summands are [runs, cases, S]; runs are training seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
FLIPS = 10_000
CHUNK = 500  # resamples in memory at a time
Z = 1.959964  # 97.5 % quantile of the normal distribution

Value = Callable[[np.ndarray], np.ndarray]  # sums [..., S] -> scores [...]


@dataclass(frozen=True)
class Estimate:
    """A score and its 95 % interval. method: ``bootstrap`` or ``wilson``."""

    value: float
    low: float
    high: float
    method: str = "bootstrap"


def mean(sums: np.ndarray) -> np.ndarray:
    """Sum / count of [..., 2]; nan where the count is 0."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] != 0)


def wilson(successes: float, trials: int) -> Estimate:
    """A share of independent trials with Wilson's score interval (E. B. Wilson 1927), which lies in [0, 1].

    trials >= 1; 0 <= successes <= trials.
    """
    share, z2 = successes / trials, Z * Z / trials
    middle = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials))
    return Estimate(share, float(max(0.0, middle - half)), float(min(1.0, middle + half)), "wilson")


def bootstrap(scores: np.ndarray, seed: int = 0, groups: Sequence[str] | None = None) -> Estimate:
    """The mean of scores [runs, cases] with its interval; see :func:`bootstrap_sums`."""
    return bootstrap_sums(_with_counts(scores), mean, seed, groups)


def bootstrap_sums(summands: np.ndarray, value: Value, seed: int = 0, groups: Sequence[str] | None = None) -> Estimate:
    """The score of summands [runs, cases, S], mean over the runs, and the percentile bootstrap's 95 % interval.

    Cases are drawn with replacement, and so are runs where there are several: the interval covers both. groups: for
    each case, what it belongs to; cases of one group (tiles of a slide) are drawn together.
    """
    runs, cases, width = summands.shape
    member = np.arange(cases) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, RESAMPLES, CHUNK):
        size = min(CHUNK, RESAMPLES - start)
        case_weights = rng.multinomial(count, np.full(count, 1 / count), size)[:, member].astype(float)
        run_weights = rng.multinomial(runs, np.full(runs, 1 / runs), size) / runs
        by_run = np.stack([value(case_weights @ run) for run in summands], 1)  # [size, runs]
        drawn = run_weights > 0
        found.append(np.where(drawn, run_weights * by_run, 0.0).sum(1))
    low, high = np.nanpercentile(np.concatenate(found), (2.5, 97.5))
    return Estimate(float(value(summands.sum(1)).mean()), float(low), float(high))


def paired_p(a: np.ndarray, b: np.ndarray, seed: int = 0, groups: Sequence[str] | None = None) -> float:
    """The two-sided p-value that two sets of scores [cases] have the same mean; see :func:`paired_p_sums`."""
    return paired_p_sums(_with_counts(a), _with_counts(b), mean, seed, groups)


def paired_p_sums(
    a: np.ndarray, b: np.ndarray, value: Value, seed: int = 0, groups: Sequence[str] | None = None
) -> float:
    """The two-sided p-value of the permutation test that two sets of summands [cases, S] have the same score.

    Under the null hypothesis the two systems can be exchanged on each case (with ``groups``, each group). For means
    this is the sign-flip test. The observed assignment counts as a permutation, so p is at least 1 / (FLIPS + 1).
    """
    total, gap = (a + b).sum(0), a - b
    if groups is not None:
        member = np.unique(groups, return_inverse=True)[1]
        gap = np.stack([np.bincount(member, column) for column in gap.T], 1)
    gap = gap[(gap != 0).any(1)]
    if not len(gap):
        return 1.0
    rng = np.random.default_rng(seed)
    observed, beyond = _distance(total, gap.sum(0), value), 0
    for start in range(0, FLIPS, CHUNK):
        signs = rng.integers(0, 2, (min(CHUNK, FLIPS - start), len(gap))) * 2 - 1
        beyond += int((_distance(total, signs @ gap, value) >= observed - 1e-12).sum())
    return (beyond + 1) / (FLIPS + 1)


def _distance(total: np.ndarray, gap: np.ndarray, value: Value) -> np.ndarray:
    """|score of one system - score of the other| from the sum and the difference of their sums."""
    return np.abs(value((total + gap) / 2) - value((total - gap) / 2))


def _with_counts(scores: np.ndarray) -> np.ndarray:
    return np.stack((scores, np.ones_like(scores, dtype=float)), -1)

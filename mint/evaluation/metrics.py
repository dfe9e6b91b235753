"""Metrics of disease lists, as defined for MINT (arXiv 2505.05736) by its paper and scripts.

Names are compared in lower case without punctuation; the similarity is difflib's ``SequenceMatcher.ratio()``, and
0.8 or more is a match. Aliases of a disease are separated by ";". Names that differ by a number alone ("... type 4",
"... type 14") match under this rule, so exact scores are the headline; see ``mint.evaluation.disease_ids``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from rapidfuzz import process
from rapidfuzz.distance import Indel, LCSseq

MATCH = 0.8  # similarity from which two names count as the same


@functools.lru_cache(maxsize=1 << 18)
def normalize(name: str) -> str:
    """Lower case, punctuation out, single spaces."""
    return " ".join(re.sub(r"[^\w\s]", "", name.lower()).replace("_", " ").split())


@functools.lru_cache(maxsize=1 << 20)
def similarity(a: str, b: str) -> float:
    """difflib's ratio of two normalised names, in [0, 1]; 0 where an upper bound already rules a match out.

    difflib's matching blocks are a common subsequence: the ratio is at most 2 LCS / (len(a) + len(b)).
    """
    if a == b:
        return 1.0
    if 2.0 * LCSseq.similarity(a, b) / (len(a) + len(b)) < MATCH:
        return 0.0
    return SequenceMatcher(None, a, b).ratio()


def matches(name: str, truth: str) -> bool:
    """Whether ``name`` is the disease ``truth``, or one of its aliases."""
    listed = normalize(name)
    return any(similarity(listed, alias) >= MATCH for alias in aliases(truth))


def equals(name: str, truth: str) -> bool:
    """Whether ``name`` is ``truth`` or one of its aliases to the letter, after normalisation."""
    return normalize(name) in aliases(truth)


def aliases(truth: str) -> list[str]:
    """The normalised names of a disease, and all of them in one as a cohort writes them; punctuation alone is none."""
    return list(dict.fromkeys(alias for part in (*truth.split(";"), truth) if (alias := normalize(part))))


def contains(names: Sequence[str], name: str) -> bool:
    """Whether any of ``names`` matches ``name``; exact matches are found without comparing."""
    wanted = normalize(name)
    others = [normalize(other) for other in names]
    return wanted in others or _resembles(wanted, others)


def _resembles(wanted: str, names: Sequence[str]) -> bool:
    """Whether any of the normalised ``names`` matches; only those that a bound does not rule out are compared."""
    bound = MATCH - 0.01  # of 2 LCS / (len(a) + len(b)), see ``similarity``; lower, as rapidfuzz rounds it
    close = process.extract_iter(wanted, names, scorer=Indel.normalized_similarity, processor=None, score_cutoff=bound)
    return any(similarity(wanted, name) >= MATCH for name, _, _ in close)


class KnownDiseases:
    """The reference list of disease names that a listed name must match to count as real."""

    def __init__(self, names: Collection[str]):
        self.names = tuple(dict.fromkeys(alias for name in names for alias in aliases(name)))
        self._exact = set(self.names)
        self._seen: dict[str, bool] = {}

    def __contains__(self, name: str) -> bool:
        wanted = normalize(name)
        if wanted in self._exact:
            return True
        if wanted not in self._seen:
            self._seen[wanted] = _resembles(wanted, self.names)
        return self._seen[wanted]


def coverage(listed: Sequence[str], teacher_top: Sequence[str]) -> float:
    """C = |listed top-k that the teacher's top-k holds| / k, with k = len(teacher_top). 0 for an empty list."""
    if not teacher_top:
        return 0.0
    return sum(contains(teacher_top, name) for name in _distinct(listed)[: len(teacher_top)]) / len(teacher_top)


def coverage_listed(listed: Sequence[str], teacher_top: Sequence[str]) -> float:
    """|listed names that the teacher's top-k holds| / |listed names|, as in the authors' scripts. 0 for an empty list.

    A repeated name is covered once. A list of one name that the teacher's list holds has 1, whatever k is.
    """
    return sum(contains(teacher_top, name) for name in _distinct(listed)) / len(listed) if listed else 0.0


def avoidance(listed: Sequence[str], teacher_bottom: Sequence[str]) -> float:
    """A = 1 - |listed names that the teacher's bottom-q holds| / q. 1 for an empty list, which lists nothing bad."""
    if not teacher_bottom:
        return 1.0
    bad = sum(contains(teacher_bottom, name) for name in _distinct(listed))
    return max(0.0, 1 - bad / len(teacher_bottom))


def car(c: float, a: float, weight: float = 1.0) -> float:
    """Coverage-avoidance ratio (1 + L) C A / (L C + A); 0 where both are 0.

    weight: L > 0. L = 1 gives the harmonic mean; the smaller L is, the nearer CAR is to C.
    """
    return 0.0 if c + a == 0 else (1 + weight) * c * a / (weight * c + a)


def _distinct(names: Sequence[str]) -> list[str]:
    """A name repeated in a list counts once."""
    return list({normalize(name): name for name in reversed(names)}.values())[::-1]


def worst_ranks(scores: Sequence[float]) -> list[int]:
    """The rank of each score, 1 for the highest; equal scores share the worst of their ranks: 1, 3, 3."""
    return [sum(other >= score for other in scores) for score in scores]


@dataclass(frozen=True)
class ListScore:
    """The scores of one answer; the averages over a cohort carry the same names.

    ``*_id``, mrr and found count exact matches by disease id, top_1 and top_10 names that are similar.
    """

    top_1_id: float
    top_3_id: float
    top_10_id: float
    mrr: float
    found: float
    top_1: float
    top_10: float
    top_1_exact: float
    top_10_exact: float
    hallucination_free: float
    hallucination_free_case: float
    listed: int
    coverage: float
    coverage_listed: float
    avoidance: float
    car: float
    car_listed: float


def score_list(
    listed: Sequence[str],
    truth: str,
    known: KnownDiseases,
    teacher_top: Sequence[str],
    teacher_bottom: Sequence[str],
    rank: int | None = None,
    car_weight: float = 1.0,
) -> ListScore:
    """All scores of one list of diseases; an empty list scores 0 but for avoidance.

    rank: of the true disease by its id, from 1, and 0 if it is not listed; None: of its exact name.
    mrr: 1 / rank. found: whether it is listed, at any rank. hallucination_free: the share of listed names that are
    real; hallucination_free_case: whether any is, which is how the authors' script counts.
    """
    ten = list(listed[:10])
    if rank is None:
        rank = next((i for i, name in enumerate(listed, 1) if equals(name, truth)), 0)
    c, c_listed = coverage(listed, teacher_top), coverage_listed(listed, teacher_top)
    a = avoidance(listed, teacher_bottom)
    real = sum(name in known for name in listed)
    return ListScore(
        top_1_id=float(rank == 1),
        top_3_id=float(1 <= rank <= 3),
        top_10_id=float(1 <= rank <= 10),
        mrr=1 / rank if rank else 0.0,
        found=float(rank > 0),
        top_1=float(bool(ten) and matches(ten[0], truth)),
        top_10=float(any(matches(name, truth) for name in ten)),
        top_1_exact=float(bool(ten) and equals(ten[0], truth)),
        top_10_exact=float(any(equals(name, truth) for name in ten)),
        hallucination_free=real / len(listed) if listed else 0.0,
        hallucination_free_case=float(real > 0),
        listed=len(listed),
        coverage=c,
        coverage_listed=c_listed,
        avoidance=a,
        car=car(c, a, car_weight),
        car_listed=car(c_listed, a, car_weight),
    )

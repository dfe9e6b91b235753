"""Metrics of disease lists, as defined for MINT (arXiv 2505.05736) by its paper and scripts.

Names are compared in lower case without punctuation; the similarity is difflib's ``SequenceMatcher.ratio()``, and
0.8 or more is a match. Aliases of a disease are separated by ";". Names that differ by a number alone ("... type 4",
"... type 14") match under this rule, so exact scores stand beside the fuzzy ones.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

MATCH = 0.8  # similarity from which two names count as the same


def normalize(name: str) -> str:
    """Lower case, punctuation out, single spaces."""
    return " ".join(re.sub(r"[^\w\s]", "", name.lower()).replace("_", " ").split())


@functools.lru_cache(maxsize=1 << 20)
def similarity(a: str, b: str) -> float:
    """difflib's ratio of two normalised names, in [0, 1]; 0 where its upper bounds already rule a match out."""
    if a == b:
        return 1.0
    if 2 * min(len(a), len(b)) < MATCH * (len(a) + len(b)):
        return 0.0
    matcher = SequenceMatcher(None, a, b)
    return matcher.ratio() if matcher.quick_ratio() >= MATCH else 0.0


def matches(name: str, truth: str) -> bool:
    """Whether ``name`` is the disease ``truth``, or one of its aliases."""
    listed = normalize(name)
    return any(similarity(listed, alias) >= MATCH for alias in _aliases(truth))


def equals(name: str, truth: str) -> bool:
    """Whether ``name`` is ``truth`` or one of its aliases to the letter, after normalisation."""
    return normalize(name) in _aliases(truth)


def _aliases(truth: str) -> list[str]:
    """The normalised names of a disease, and all of them in one as a cohort writes them; punctuation alone is none."""
    return list(dict.fromkeys(alias for part in (*truth.split(";"), truth) if (alias := normalize(part))))


def contains(names: Sequence[str], name: str) -> bool:
    """Whether any of ``names`` matches ``name``; exact matches are found without comparing."""
    wanted = normalize(name)
    others = [normalize(other) for other in names]
    return wanted in others or any(similarity(wanted, other) >= MATCH for other in others)


class KnownDiseases:
    """The reference list of disease names that a listed name must match to count as real."""

    def __init__(self, names: Collection[str]):
        self.names = tuple(dict.fromkeys(alias for name in names for alias in _aliases(name)))
        self._exact = set(self.names)
        self._seen: dict[str, bool] = {}

    def __contains__(self, name: str) -> bool:
        wanted = normalize(name)
        if wanted in self._exact:
            return True
        if wanted not in self._seen:
            self._seen[wanted] = any(similarity(wanted, known) >= MATCH for known in self.names)
        return self._seen[wanted]


def coverage(listed: Sequence[str], teacher_top: Sequence[str]) -> float:
    """C = |listed top-k that the teacher's top-k holds| / k, with k = len(teacher_top). 0 for an empty list."""
    if not teacher_top:
        return 0.0
    return sum(contains(teacher_top, name) for name in _distinct(listed)[: len(teacher_top)]) / len(teacher_top)


def avoidance(listed: Sequence[str], teacher_bottom: Sequence[str]) -> float:
    """A = 1 - |listed names that the teacher's bottom-q holds| / q. 1 for an empty list, which lists nothing bad."""
    if not teacher_bottom:
        return 1.0
    bad = sum(contains(teacher_bottom, name) for name in _distinct(listed))
    return max(0.0, 1 - bad / len(teacher_bottom))


def car(c: float, a: float) -> float:
    """Coverage-avoidance ratio (1 + L) C A / (L C + A) for L = 1: the harmonic mean. 0 where both are 0."""
    return 0.0 if c + a == 0 else 2 * c * a / (c + a)


def _distinct(names: Sequence[str]) -> list[str]:
    """A name repeated in a list counts once."""
    return list({normalize(name): name for name in reversed(names)}.values())[::-1]


@dataclass(frozen=True)
class ListScore:
    """The scores of one answer; the averages over a cohort carry the same names."""

    top_1: float
    top_10: float
    top_1_exact: float
    top_10_exact: float
    hallucination_free: float
    listed: int
    coverage: float
    avoidance: float
    car: float


def score_list(
    listed: Sequence[str], truth: str, known: KnownDiseases, teacher_top: Sequence[str], teacher_bottom: Sequence[str]
) -> ListScore:
    """All scores of one list of diseases; an empty list scores 0 but for avoidance.

    hallucination_free: the share of listed names that are real (0 for an empty list).
    """
    ten = list(listed[:10])
    c, a = coverage(listed, teacher_top), avoidance(listed, teacher_bottom)
    return ListScore(
        top_1=float(bool(ten) and matches(ten[0], truth)),
        top_10=float(any(matches(name, truth) for name in ten)),
        top_1_exact=float(bool(ten) and equals(ten[0], truth)),
        top_10_exact=float(any(equals(name, truth) for name in ten)),
        hallucination_free=sum(name in known for name in listed) / len(listed) if listed else 0.0,
        listed=len(listed),
        coverage=c,
        avoidance=a,
        car=car(c, a),
    )

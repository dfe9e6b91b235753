"""Scores of disease lists: exact matches by disease id first, the paper's similarity of names beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mint.data.cases import Case
from mint.evaluation.disease_ids import DiseaseIds
from mint.evaluation.metrics import KnownDiseases, equals, score_list, worst_ranks
from mint.evaluation.pheval import RankedCase, Row
from mint.evaluation.scores import Score, mean_score

SIMILAR = "by the paper's rule: a name counts from a similarity of 0.8, also that of another disease"
SCORES = {  # score -> heading, meaning, whether it is printed
    "top_1_id": ("top-1", "The true disease is listed first, by its id.", True),
    "top_3_id": ("top-3", "The true disease is among the first three, by its id.", True),
    "top_10_id": ("top-10", "The true disease is among the first ten, by its id.", True),
    "mrr": ("MRR", "Mean reciprocal rank: the mean of 1 / rank of the true disease by its id, 0 if not listed.", True),
    "found": ("found", "The true disease is listed at any rank, by its id.", False),
    "top_1": ("top-1 (0.8)", f"The true disease is listed first, {SIMILAR}.", True),
    "top_10": ("top-10 (0.8)", f"The true disease is among the first ten names, {SIMILAR}.", True),
    "top_1_exact": ("top-1 by name", "The true disease is listed first, with every letter right.", False),
    "top_10_exact": ("top-10 by name", "The true disease is among the first ten, with every letter right.", False),
    "hallucination_free": ("hallucination-free", "The share of listed names that are known diseases.", True),
    "hallucination_free_case": ("hallucination-free cases", "A case counts if any listed name is known.", False),
    "coverage": ("coverage C", "C: the share of the teacher's best names that the list holds.", True),
    "avoidance": ("avoidance A", "A: the share of the teacher's worst names that the list leaves out.", True),
    "car": ("CAR", "(1 + L) C A / (L C + A); for L = 1 the harmonic mean of C and A.", True),
    "coverage_listed": ("C / listed", "The share of listed names that are among the teacher's best.", True),
    "car_listed": ("CAR / listed", "CAR with C / listed in place of C.", True),
}
COLUMNS: dict[str, Score] = {
    name: mean_score(name, heading, meaning=meaning, printed=printed)
    for name, (heading, meaning, printed) in SCORES.items()
}


def score_diseases(
    listed: Sequence[str],
    case: Case,
    ids: DiseaseIds,
    known: KnownDiseases,
    teacher: tuple[Sequence[str], Sequence[str]],
    given: Sequence[float] | None = None,
    car_weight: float = 1.0,
) -> dict:
    """The scores of a list of names or ids; ``listed``: the names, and ids that the cohort has no name for.

    teacher: its best and worst names. given: a score for every entry, the highest first; equal ones share the worst of
    their ranks. ``matched``: those listed, or among the teacher's best, that are the true disease by its id.
    """
    names, truth = [ids.name(entry) for entry in listed], ids.truth(case)
    ranks = worst_ranks(given) if given else range(1, len(names) + 1)
    hits = [bool(ids.keys(entry) & truth) for entry in listed]
    rank = next((rank for rank, hit in zip(ranks, hits, strict=True) if hit), 0)
    scores = dataclasses.asdict(score_list(names, case.disease, known, *teacher, rank, car_weight))
    matched = [name for name, hit in zip(names, hits, strict=True) if hit]
    matched += [name for name in teacher[0] if ids.keys(name) & truth]
    return (
        scores | {"listed": names, "matched": list(dict.fromkeys(matched))} | ({"scores": list(given)} if given else {})
    )


def is_true(name: str, record: Mapping) -> bool:
    """Whether a listed name is the record's true disease; by its name where the record was saved without ids."""
    return name in record["matched"] if "matched" in record else equals(name, record["disease"])


def pheval_case(record: Mapping, ids: DiseaseIds) -> RankedCase:
    """A record as PhEval's result. The scores are those given with the list, else 1 / rank.

    A hit has the id of the record's disease, by which PhEval knows it: its name may have several.
    """
    names, matched = record["listed"], record["matched"]
    scores = record.get("scores") or [1 / rank for rank in range(1, len(names) + 1)]
    truth = record.get("disease_id") or record["disease"]
    entries = [truth if name in matched else name for name in names]
    rows = [
        Row(name, ids.identity(entry), ids.mondo(entry), score, name in matched)
        for name, entry, score in zip(names, entries, scores, strict=True)
    ]
    return RankedCase(record["id"], rows, Row(record["disease"], ids.identity(truth), ids.mondo(truth), 0.0, True))

"""Scores of tissue lists (MINT's second task): places, agreement with the upstream, F1, confusion matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from mint.data.cases import parse_list
from mint.data.image_features import ImageReader
from mint.data.record_images import ImageSlots, encode_with_images
from mint.data.tiles import HEADER, LISTED, Tile, list_lengths, tissue_messages
from mint.errors import InputError
from mint.evaluation.metrics import avoidance, car, coverage, normalize
from mint.models.generate import generate
from mint.tasks.disease import Upstream
from mint.teachers.clip_teacher import ZeroShotRanker

COLUMNS = {  # score -> heading of the printed table
    "top_1": "top-1",
    "top_5": "top-5",
    "macro_f1": "macro F1",
    "known": "known names",
    "coverage": "coverage C",
    "avoidance": "avoidance A",
    "car": "CAR",
}
MEANINGS = {
    "top_1": "The true tissue is listed first.",
    "top_5": "The true tissue is among the first five names.",
    "macro_f1": "The mean over the true tissues of F1, from the name listed first.",
    "known": "The share of listed names that are tissues of the data set.",
    "coverage": "C: the share of the teacher's best names that the list holds.",
    "avoidance": "A: the share of the teacher's worst names that the list leaves out.",
    "car": "CAR: the harmonic mean of coverage C and avoidance A.",
}
CASE_COLUMNS = {
    name: heading for name, heading in COLUMNS.items() if name != "macro_f1"
}  # scores that a single tile has


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


def score_tissues(
    listed: Sequence[str],
    truth: str,
    tissues: Sequence[str],
    upstream_top: Sequence[str],
    upstream_bottom: Sequence[str],
) -> TissueScore:
    """All scores of one list. Names count when they are the same in lower case without punctuation; the first five count."""
    names = [normalize(name) for name in listed]
    real = {normalize(tissue) for tissue in tissues}
    c, a = coverage(listed, upstream_top), avoidance(listed, upstream_bottom)
    return TissueScore(
        top_1=float(names[:1] == [normalize(truth)]),
        top_5=float(normalize(truth) in names[:LISTED]),
        known=sum(name in real for name in names) / len(names) if names else 0.0,
        listed=len(names),
        coverage=c,
        avoidance=a,
        car=car(c, a),
    )


def rank_tissues(
    tiles: Sequence[Tile], ranker: ZeroShotRanker, top_k: int | None = None, bottom_q: int | None = None
) -> Upstream:
    """For every tile, the upstream's ``top_k`` best and ``bottom_q`` worst tissues (default: as many as an answer names).

    Raises InputError for lists that would overlap, or hold none.
    """
    tissues = ranker.tissues
    top_k, bottom_q = list_lengths(tissues, top_k, bottom_q)
    ranked = [[tissues[i] for i in row.argsort(kind="stable")] for row in -ranker.scores(tiles)]
    return Upstream([row[:top_k] for row in ranked], [row[-bottom_q:] for row in ranked])


def score_lists(
    tiles: Sequence[Tile], lists: Sequence[Sequence[str]], tissues: Sequence[str], upstream: Upstream
) -> tuple[list[TissueScore], dict[str, float]]:
    """(one score per tile, their means).

    With the means come the mean F1 over the tissues that are true of a tile, and how many answers held no list. Raises
    InputError for no tiles.
    """
    if not tiles:
        raise InputError("there are no tiles to score")
    scores = [
        score_tissues(listed, tile.tissue, tissues, top, bottom)
        for tile, listed, top, bottom in zip(tiles, lists, upstream.top, upstream.bottom, strict=True)
    ]
    names = [field.name for field in dataclasses.fields(TissueScore)]
    mean = {name: sum(getattr(score, name) for score in scores) / len(scores) for name in names}
    counts = confusion([tile.tissue for tile in tiles], lists, tissues)
    mean["macro_f1"] = float(f1_scores(counts)[counts.sum(1) > 0].mean())
    return scores, {**mean, "tiles": len(scores), "without_list": sum(score.listed == 0 for score in scores)}


def confusion(truths: Sequence[str], lists: Sequence[Sequence[str]], tissues: Sequence[str]) -> np.ndarray:
    """[tissues, tissues + 1] counts: the true tissue by the one listed first; the last column: none of them."""
    place = {normalize(tissue): i for i, tissue in enumerate(tissues)}
    counts = np.zeros((len(tissues), len(tissues) + 1), dtype=int)
    for truth, listed in zip(truths, lists, strict=True):
        first = place.get(normalize(listed[0]), len(tissues)) if listed else len(tissues)
        counts[place[normalize(truth)], first] += 1
    return counts


def f1_scores(counts: np.ndarray) -> np.ndarray:
    """[tissues] F1 = 2 TP / (2 TP + FP + FN) from :func:`confusion`; nan for a tissue that is neither true nor told."""
    hits = counts.diagonal().astype(float)
    total = counts.sum(1) + counts[:, :-1].sum(0)
    with np.errstate(invalid="ignore"):
        return 2 * hits / total


def list_tissues(
    model: nn.Module,
    tokenizer,
    reader: ImageReader,
    tiles: Sequence[Tile],
    tissues: Sequence[str],
    top_k: int,
    **decoding,
) -> tuple[list[str], list[list[str]]]:
    """(answers, lists) of a vision-language model for every tile, asked for ``top_k``; ``decoding`` as for ``generate``."""
    slots, messages = ImageSlots(*model.image_slots, reader.processor), tissue_messages(tissues, top_k)
    answers = generate(
        model,
        tokenizer,
        [encode_with_images(tokenizer, messages, [str(tile.image)], slots) for tile in tiles],
        images=lambda places: reader([str(tiles[i].image) for i in places]),
        progress=True,
        **decoding,
    )
    return answers, [parse_list(answer, HEADER) for answer in answers]

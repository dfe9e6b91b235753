"""From ranked tiles to preference records with images: the top of the ranking is chosen, its bottom rejected."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mint.data.cases import format_list
from mint.data.tiles import HEADER, Tile, list_lengths, tissue_messages
from mint.prefs.pairs import PairReport
from mint.teachers.clip_teacher import BATCH, ZeroShotRanker


def make_tissue_pairs(
    tiles: Sequence[Tile],
    ranker: ZeroShotRanker,
    folder: str | Path,
    report: PairReport,
    top_k: int | None = None,
    bottom_q: int | None = None,
    label_first: bool = False,
    answer: str = "ranking",
) -> Iterator[dict]:
    """Preference records of all tiles, as ``mint.data.preferences`` reads them, with the ranking's own numbers.

    folder: the preference file's; images inside it are named relative to it. top_k, bottom_q: tissues of the chosen and the
    rejected answer (default: ``list_lengths``). label_first: the true tissue is moved to the front of the chosen list, and
    never in the rejected one. answer: ``disease`` names the true tissue alone, ``ranking`` the list. ``report`` is filled
    on the way.
    Raises InputError for lists that are empty or overlap.
    """
    top_k, bottom_q = list_lengths(ranker.tissues, top_k, bottom_q)
    root, messages = Path(folder).resolve(), tissue_messages(ranker.tissues, top_k)
    for start in range(0, len(tiles), BATCH):
        some = tiles[start : start + BATCH]
        for tile, scores in zip(some, ranker.scores(some), strict=True):
            order = np.argsort(-scores, kind="stable")
            names = [ranker.tissues[i] for i in order]
            ranked = dict(zip(names, scores[order].tolist(), strict=True))
            report.notes += 1
            report.pairs += 1
            report.known += tile.tissue in ranked
            report.first += names[0] == tile.tissue
            report.top += tile.tissue in names[:top_k]
            report.bottom += tile.tissue in names[-bottom_q:]
            if label_first or answer == "disease":
                names = [tile.tissue, *(name for name in names if name != tile.tissue)]
            chosen, rejected = names[: 1 if answer == "disease" else top_k], names[-bottom_q:]
            yield {
                "id": tile.id,
                "prompt": messages,
                "images": [_name(tile.image, root)],
                "chosen": format_list(chosen, HEADER),
                "rejected": format_list(rejected, HEADER),
                "tissue": tile.tissue,
                "teacher": {
                    "ranker": ranker.name,
                    "chosen_scores": [round(ranked[name], 4) if name in ranked else None for name in chosen],
                    "rejected_scores": [round(ranked[name], 4) for name in rejected],
                },
            }


def _name(image: Path, root: Path) -> str:
    image = image.resolve()
    return os.path.relpath(image, root) if image.is_relative_to(root) else str(image)

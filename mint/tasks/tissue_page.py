"""The page of a tissue evaluation, with the confusion matrix and tiles; the table of tissues."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np

from mint.data.tiles import Tile
from mint.evaluation.charts import heat, heat_scale
from mint.evaluation.html import Html, details, embed_picture, filter_box, html_page, html_table, join, name_list, tag
from mint.files import file_aside
from mint.tasks.ranked import TeacherLists
from mint.tasks.tissue_scores import COLUMNS, MEANINGS, TissueScore, f1_scores

SHOWN = 120  # tiles on the page, errors first
LEGEND = (
    "✓ and a solid border: the true tissue is listed first; ✗ and a dashed border: an error. "
    "In a list, ✓: the truth, (T): listed by the teacher too."
)
PER_TISSUE = ("tiles", "recall", "precision", "F1", "top-5")


def tissues_table(
    counts: np.ndarray, scores: Sequence[TissueScore], tiles: Sequence[Tile], tissues: Sequence[str]
) -> str:
    """CSV of :func:`by_tissue`; empty cells for a division by zero."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("tissue", *(name.lower().replace("-", "_") for name in PER_TISSUE)))
    for tissue, own, *shares in by_tissue(counts, scores, tiles, tissues):
        writer.writerow((tissue, own, *("" if share is None else f"{share:.4f}" for share in shares)))
    return table.getvalue()


def by_tissue(
    counts: np.ndarray, scores: Sequence[TissueScore], tiles: Sequence[Tile], tissues: Sequence[str]
) -> list[list]:
    """Of every tissue its name and the numbers of ``PER_TISSUE``, shares in 0 to 1; None for a division by zero."""
    rows, f1 = [], f1_scores(counts)
    for i, tissue in enumerate(tissues):
        own, named = int(counts[i].sum()), int(counts[:, i].sum())
        top = [score.top_5 for tile, score in zip(tiles, scores, strict=True) if tile.tissue == tissue]
        shares = (counts[i, i], own), (counts[i, i], named), (f1[i], own + named and 1), (sum(top), len(top))
        rows.append([tissue, own, *(part / whole if whole else None for part, whole in shares)])
    return rows


def plot_confusion(counts: np.ndarray, tissues: Sequence[str], path: Path) -> None:
    """A picture of the shares of each true tissue's tiles by what was listed first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.0, 0.36 * len(tissues) + 2)
    figure, axis = pyplot.subplots(figsize=(side + 0.5, side), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(tissues) + 1), [*tissues, "other"], rotation=90, fontsize=8)
    axis.set_yticks(range(len(tissues)), tissues, fontsize=8)
    axis.set_xlabel("listed first")
    axis.set_ylabel("true tissue")
    for row, column in zip(*np.nonzero(counts), strict=True):
        dark = shares[row, column] > 0.6
        axis.text(
            column, row, counts[row, column], ha="center", va="center", fontsize=7, color="white" if dark else "black"
        )
    with file_aside(path) as aside:
        figure.savefig(aside, dpi=130, format="png")
    pyplot.close(figure)


def html(
    name: str,
    rows: dict[str, dict[str, float]],
    tiles: Sequence[Tile],
    lists: Sequence[Sequence[str]],
    scores: Sequence[TissueScore],
    tissues: Sequence[str],
    teacher: TeacherLists,
    counts: np.ndarray,
    settings: dict,
) -> str:
    """The page: the scores of all rows, the confusion matrix, the tissues, and a grid of tiles, errors first."""
    scored = [[row, *(f"{100 * values[column]:.1f}" for column in COLUMNS)] for row, values in rows.items()]
    each = [
        [tissue, str(own), *("–" if share is None else f"{100 * share:.1f}" for share in shares)]
        for tissue, own, *shares in by_tissue(counts, scores, tiles, tissues)
    ]
    order = sorted(range(len(tiles)), key=lambda i: (scores[i].top_1, scores[i].top_5))[:SHOWN]
    wrong = sum(not score.top_1 for score in scores)
    cohort = next((f" of {settings[key]}" for key in ("cohort", "cases") if key in settings), "")
    meanings = [(heading, MEANINGS[column]) for column, heading in COLUMNS.items()]
    return html_page(
        f"Tissues: {name}",
        tag("h1", f"Tissues: {name}"),
        tag("p", f"{len(tiles)} tiles{cohort} of {len(tissues)} tissues, evaluated {date.today()}.", class_="lead"),
        tag("h2", "Scores"),
        html_table(["system", *COLUMNS.values()], scored),
        tag("p", "Per cent. The row of this page is the last; intervals and tests: evaluate.py compare."),
        details("What the columns mean", html_table(["column", "meaning"], meanings, texts=2)),
        tag("h2", "Confusion matrix"),
        tag("p", "Rows: the true tissue. Columns: the one listed first. Tiles, and below their per cent of the row."),
        _matrix(counts, tissues),
        heat_scale("Share of the row", "0 %", "100 %", "", "blue"),
        tag("h2", "By tissue"),
        html_table(["tissue", *PER_TISSUE], each),
        tag("h2", "Tiles"),
        tag("p", f"{len(order)} of {len(tiles)} tiles, errors first; {wrong} errors in all. {LEGEND}"),
        filter_box("errors only"),
        tag("div", *(_tile(tiles[i], lists[i], teacher.top[i], scores[i]) for i in order), class_="tiles"),
    )


def _matrix(counts: np.ndarray, tissues: Sequence[str]) -> Html:
    """The confusion matrix as a table; cells are shaded by their share of the row."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def cell(row: int, column: int) -> Html:
        count, share = counts[row, column], shares[row, column]
        own = "own" if row == column else None
        if not count:
            return tag("td", class_=own)
        return tag("td", count, tag("br"), tag("small", f"{100 * share:.0f}"), class_=own, style=heat(share))

    rows = [[tissue, *(cell(i, j) for j in range(len(tissues) + 1))] for i, tissue in enumerate(tissues)]
    return html_table(["", *tissues, "other"], rows, class_="matrix")


def _tile(tile: Tile, listed: Sequence[str], top: Sequence[str], score: TissueScore) -> Html:
    """A tile with the true tissue and the one listed first; the lists on a click."""
    said = "✓" if score.top_1 else f"✗ {listed[0] if listed else 'no list'}"
    model = name_list("Listed", listed, [name == tile.tissue for name in listed], [name in top for name in listed])
    teacher = name_list("Teacher", top, [name == tile.tissue for name in top], [False] * len(top))
    picture = embed_picture(tile.image, f"tile {tile.id}, {tile.tissue}")
    words = details(join([tag("b", tile.tissue), said], " "), tag("small", tile.id), model, teacher)
    return tag("div", tag("figure", picture), words, class_="tile plain" if score.top_1 else "tile wrong")

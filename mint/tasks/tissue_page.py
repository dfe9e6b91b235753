"""What an evaluation of tissues leaves behind: numbers, the table of tissues, the confusion matrix, a page with tiles."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from mint.data.preferences import write_jsonl
from mint.data.tiles import Tile
from mint.evaluation.html import embed_picture, html_page, html_table, number_cell, text_cell
from mint.files import file_aside, make_folder, write_aside
from mint.tasks.disease import Upstream
from mint.tasks.tissue import COLUMNS, TissueScore, confusion, f1_scores

SHOWN = 120  # tiles on the page: those told wrong first


def save_tissues(
    folder: Path,
    rows: dict[str, dict[str, float]],
    tiles: Sequence[Tile],
    answers: Sequence[str],
    lists: Sequence[Sequence[str]],
    scores: Sequence[TissueScore],
    tissues: Sequence[str],
    upstream: Upstream,
    settings: dict,
) -> None:
    """Writes predictions.jsonl, tissues.csv, confusion.png, report.html, and metrics.json last.

    The last of ``rows`` is the one that ``answers``, ``lists`` and ``scores`` belong to. Raises InputError if the
    folder cannot be written.
    """
    make_folder(folder)
    counts = confusion([tile.tissue for tile in tiles], lists, tissues)
    write_jsonl(
        folder / "predictions.jsonl",
        (
            {"id": tile.id, "tissue": tile.tissue, "images": [os.path.relpath(tile.image, folder)], "answer": answer}
            | ({"subject": tile.subject} if tile.subject else {})
            | {**dataclasses.asdict(score), "listed": listed, "teacher": top}
            for tile, answer, listed, top, score in zip(tiles, answers, lists, upstream.top, scores, strict=True)
        ),
    )
    plot_confusion(counts, tissues, folder / "confusion.png")
    name = list(rows)[-1]
    page = html(name, rows, tiles, lists, scores, tissues, upstream, counts, folder / "confusion.png")
    metrics = {"settings": settings, "rows": rows, "tissues": list(tissues), "confusion": counts.tolist()}
    for file, content in (
        ("tissues.csv", per_tissue(counts, scores, tiles, tissues)),
        ("report.html", page),
        ("metrics.json", json.dumps(metrics, indent=2) + "\n"),
    ):
        write_aside(folder / file, content)


def per_tissue(counts: np.ndarray, scores: Sequence[TissueScore], tiles: Sequence[Tile], tissues: Sequence[str]) -> str:
    """CSV: tiles, recall, precision, F1 and top-5 of every tissue; empty where nothing is to be divided."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("tissue", "tiles", "recall", "precision", "f1", "top_5"))
    f1 = f1_scores(counts)
    for i, tissue in enumerate(tissues):
        own, told = counts[i].sum(), counts[:, i].sum()
        top = [score.top_5 for tile, score in zip(tiles, scores, strict=True) if tile.tissue == tissue]
        values = (
            counts[i, i] / own if own else None,
            counts[i, i] / told if told else None,
            f1[i] if own + told else None,
        )
        values += (sum(top) / len(top) if top else None,)
        writer.writerow((tissue, own, *("" if value is None else f"{value:.4f}" for value in values)))
    return text.getvalue()


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
    upstream: Upstream,
    counts: np.ndarray,
    picture: Path,
) -> str:
    """A page that needs no network: the table, the confusion matrix, the tissues, and tiles with their lists."""
    scored = [
        [text_cell(row), *(number_cell(f"{100 * values[name]:.1f}") for name in COLUMNS)]
        for row, values in rows.items()
    ]
    f1 = ["" if np.isnan(value) else f"{100 * value:.1f}" for value in f1_scores(counts)]
    each = [
        [text_cell(tissue), number_cell(str(counts[i].sum())), number_cell(str(counts[i, i])), number_cell(f1[i])]
        for i, tissue in enumerate(tissues)
    ]
    order = sorted(range(len(tiles)), key=lambda i: (scores[i].top_1, scores[i].top_5))[:SHOWN]
    parts = [
        f"<h1>{escape(name)}: {len(tiles)} tiles of {len(tissues)} tissues</h1>",
        "<h2>Scores</h2>",
        "<p>Per cent. C, A and CAR: agreement with the upstream's best and worst tissues.</p>",
        html_table(["", *COLUMNS.values()], scored),
        "<h2>True tissue by the one listed first</h2>",
        f'<div class="figure">{embed_picture(picture, "confusion matrix", 1400)}</div>',
        "<h2>By tissue</h2>",
        html_table(["tissue", "tiles", "right", "F1"], each),
        "<h2>Tiles</h2>",
        f"<p>{len(order)} of {len(tiles)}, those told wrong first. Green: the truth; blue: listed by the upstream.</p>",
        *(_tile(tiles[i], lists[i], upstream.top[i]) for i in order),
    ]
    return html_page(name, "\n".join(parts))


def _tile(tile: Tile, listed: Sequence[str], top: Sequence[str]) -> str:
    title = f"<b>{escape(tile.tissue)}</b> <small>{escape(tile.id)}</small>"
    lists = _list(title, listed, tile.tissue, top) + _list("<b>Upstream</b>", top, tile.tissue, ())
    return f'<div class="case"><div>{embed_picture(tile.image, tile.id)}</div>{lists}</div>'


def _list(title: str, names: Sequence[str], truth: str, shared: Sequence[str]) -> str:
    kinds = ["hit" if name == truth else "shared" if name in shared else "" for name in names]
    items = "".join(f'<li class="{kind}">{escape(name)}</li>' for name, kind in zip(names, kinds, strict=True))
    return f'<div class="list">{title}<ol>{items or "<small>no list</small>"}</ol></div>'

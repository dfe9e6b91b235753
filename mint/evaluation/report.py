"""The comparison as one HTML page that needs no network: tables, charts, and pages of single cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from mint.evaluation.compare import OTHER_UPSTREAM, System, Task, knows_commonness, same_upstream
from mint.evaluation.page import embed_picture, html_page, html_table, number_cell, text_cell

COLOURS = ("#2f6db3", "#d9822b", "#3a9a5f", "#b5433f", "#7a5ab0", "#8a6a4f", "#c05a9a", "#5a7f8a", "#9a9a2f", "#444444")
MARKS = "● the truth first, ◐ in the list, ○ not listed, a mark a system; green: the truth; blue: listed by the upstream."
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2)  # between the lines of a chart


def write_html(systems: Sequence[System], tests: Sequence[dict], folders: Sequence[Path], cases: int) -> str:
    """The page. folders: where each system's first run lies, for the portraits; cases: how many have a page of their own."""
    task = systems[0].task
    notes = ["A name counts from a similarity of 0.8; <i>exact</i> wants every letter."] * ("top_1_exact" in task.columns)
    notes += ["Cases of one patient or slide are drawn together."] * (systems[0].groups is not None)
    parts = [
        f"<h1>{len(systems[0].cases)} cases, {len(systems)} systems</h1>",
        "<h2>Scores</h2>",
        "<p>Per cent, with 95 % intervals from a bootstrap over the cases, and over the training seeds where there are "
        f"several. The best of a column is bold. {' '.join(notes)}</p>",
        _scores(systems),
        *([] if same_upstream(systems) else [f"<p><b>{OTHER_UPSTREAM}</b></p>"]),
        f"<h2>Place of the true {task.truth}</h2>",
        _legend(systems),
        _ranks(systems),
    ]
    if all(map(knows_commonness, systems)):
        parts += [f"<h2>By how common the {task.truth} is</h2>", _commonness(systems)]
    if tests:
        parts += [
            "<h2>Differences</h2>",
            "<p>Paired by case; p from a sign-flip permutation test, not corrected for the number of tests.</p>",
            _tests(tests, task),
        ]
    parts += ["<h2>Most frequent confusions</h2>", _confusions(systems), "<h2>Cases</h2>", _cases(systems, folders, cases)]
    body = "\n".join(parts)
    return html_page("Comparison", body)


def _scores(systems: Sequence[System]) -> str:
    best = {metric: max(round(system.estimates[metric].value, 6) for system in systems) for metric in systems[0].task.columns}
    rows = []
    for system in systems:
        row = [text_cell(system.name), number_cell(str(len(system.runs)))]
        for metric, e in system.estimates.items():
            value = f"{100 * e.value:.1f}"
            value = f'<span class="best">{value}</span>' if round(e.value, 6) == best[metric] else value
            row.append(number_cell(f"{value}<br><small>{100 * e.low:.1f}–{100 * e.high:.1f}</small>"))
        rows.append(row)
    return html_table(["", "runs", *systems[0].task.columns.values()], rows)


def _legend(systems: Sequence[System]) -> str:
    marks = [
        f'<span class="mark" style="background:{COLOURS[i % len(COLOURS)]}"></span>{escape(system.name)}'
        for i, system in enumerate(systems)
    ]
    return "<p>" + " &nbsp; ".join(marks) + "</p>"


def _ranks(systems: Sequence[System]) -> str:
    """Grouped bars: share of the lists that hold the truth in each place."""
    places = [*range(1, systems[0].task.places + 1), 0]
    shares = []
    for system in systems:
        counts = system.ranks()
        shares.append([counts[place] / counts.total() for place in places])
    width, height, left = 1040, 220, 40
    largest = max(max(row) for row in shares)
    tick = next(size for size in TICKS if 5 * size >= largest)
    step, tallest = (width - left) / len(places), tick * max(1, math.ceil(largest / tick - 1e-9))
    bar = min(22.0, 0.8 * step / len(systems))
    shapes = []
    for k in range(round(tallest / tick) + 1):
        y = height - k * tick / tallest * (height - 14)
        shapes.append(f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e8ec"/>')
        shapes.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * k * tick:.0f}</text>')
    for k, place in enumerate(places):
        x = left + k * step + (step - bar * len(systems)) / 2
        for i, row in enumerate(shares):
            h = row[k] / tallest * (height - 14)
            title = f"{escape(systems[i].name)}: {100 * row[k]:.1f} %"
            shapes.append(
                f'<rect x="{x + i * bar:.1f}" y="{height - h:.1f}" width="{bar * 0.9:.1f}" height="{h:.1f}" '
                f'fill="{COLOURS[i % len(COLOURS)]}"><title>{title}</title></rect>'
            )
        label = str(place) if place else "none"
        shapes.append(f'<text x="{left + (k + 0.5) * step:.1f}" y="{height + 16}" text-anchor="middle">{label}</text>')
    return f'<svg viewBox="0 0 {width} {height + 24}" width="100%" font-size="12" fill="#445">{"".join(shapes)}</svg>'


def _commonness(systems: Sequence[System]) -> str:
    tables = [system.by_commonness() for system in systems]
    rows = []
    for k, (words, count, _, _) in enumerate(tables[0]):
        cells = [number_cell(f"{100 * rows_of[k][2]:.1f} / {100 * rows_of[k][3]:.1f}") for rows_of in tables]
        rows.append([text_cell(words), number_cell(str(count)), *cells])
    task = systems[0].task
    head = [
        f"training cases of the {task.truth}",
        "cases",
        *(f"{escape(system.name)}<br><small>top-1 / {task.columns[task.listed]}</small>" for system in systems),
    ]
    return html_table(head, rows)


def _tests(tests: Sequence[dict], task: Task) -> str:
    rows = []
    for row in tests:
        gap = f"{100 * row['value']:+.1f} <small>({100 * row['low']:+.1f} to {100 * row['high']:+.1f})</small>"
        names = [text_cell(row["first"]), text_cell(row["second"]), text_cell(task.columns[row["metric"]])]
        rows.append([*names, number_cell(gap), number_cell(f"{row['p']:.4f}")])
    return html_table(["first", "second", "metric", "difference", "p"], rows)


def _confusions(systems: Sequence[System]) -> str:
    parts = []
    for system in systems:
        rows = [[text_cell(truth), text_cell(other), number_cell(str(count))] for truth, other, count in system.confusions()]
        body = html_table([f"true {system.task.truth}", "listed first", "times"], rows) if rows else "<p>none</p>"
        parts.append(f"<details><summary>{escape(system.name)}</summary>{body}</details>")
    return "".join(parts)


def _cases(systems: Sequence[System], folders: Sequence[Path], count: int) -> str:
    """Those on which the systems differ most, first; of the others some of each kind."""
    ranks = np.array([(system.scores("top_1") + system.scores(system.task.listed)).mean(0) for system in systems])
    order = np.argsort(-(ranks.max(0) - ranks.min(0)), kind="stable")[:count]
    shown = "".join(_case(systems, folders, int(place)) for place in order)
    return f"<p>{len(order)} of {len(systems[0].cases)}, those on which the systems differ most first. {MARKS}</p>{shown}"


def _case(systems: Sequence[System], folders: Sequence[Path], place: int) -> str:
    record = next((system.cases[place] for system in systems if "note" in system.cases[place]), systems[0].cases[place])
    task = systems[0].task
    truth = record[task.truth]
    teacher = next((system.cases[place]["teacher"] for system in systems if "teacher" in system.cases[place]), [])
    parts = []
    for system, folder in zip(systems, folders, strict=True):
        if picture := _picture(system.cases[place].get(task.picture), folder):
            parts.append(f"<div>{picture}</div>")
            break
    if "note" in record or task.picture not in record:
        parts.append(f'<div class="note"><b>Note</b><br>{escape(record.get("note", "not saved"))}</div>')
    if teacher:
        parts.append(_list("Upstream", teacher, truth, (), task))
    parts += [_list(system.name, system.cases[place]["listed"], truth, teacher, task) for system in systems]
    own = [system.cases[place] for system in systems]
    marks = "".join("●" if found["top_1"] else "◐" if found[task.listed] else "○" for found in own)
    title = f"<b>{escape(str(record['id']))}</b>: {escape(truth)} <small>{marks}</small>"
    return f'<details><summary>{title}</summary><div class="case">{"".join(parts)}</div></details>'


def _list(title: str, names: Sequence[str], truth: str, teacher: Sequence[str], task: Task) -> str:
    items = []
    for name in names[: task.places]:
        kind = "hit" if task.same(name, truth) else "shared" if any(task.same(name, other) for other in teacher) else ""
        items.append(f'<li class="{kind}">{escape(name)}</li>' if kind else f"<li>{escape(name)}</li>")
    return f'<div class="list"><b>{escape(title)}</b><ol>{"".join(items) or "<small>no list</small>"}</ol></div>'


def _picture(name: str | None, folder: Path) -> str:
    path = folder / str(name)
    return embed_picture(path, "image of the case") if name and path.is_file() else ""

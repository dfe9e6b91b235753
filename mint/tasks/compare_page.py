"""The comparison as one HTML page that needs no network: tables, charts, and pages of single cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from mint.evaluation.html import embed_picture, html_page, html_table, number_cell, text_cell
from mint.evaluation.scores import summands
from mint.evaluation.statistics import Estimate
from mint.tasks.base import Lists, Task, first_image
from mint.tasks.compare import OTHER_UPSTREAM, System, columns_of, knows_commonness, same_upstream

COLOURS = ("#2f6db3", "#d9822b", "#3a9a5f", "#b5433f", "#7a5ab0", "#8a6a4f", "#c05a9a", "#5a7f8a", "#9a9a2f", "#444444")
MARKS = (
    "● the truth first, ◐ in the list, ○ not listed, a mark a system; green: the truth; blue: listed by the upstream."
)
UNITS = {"%": "per cent", "nats": "nats", "ratio": "ratios (their geometric mean)"}
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2)  # between the lines of a chart


def write_html(systems: Sequence[System], tests: Sequence[dict], folders: Sequence[Path], cases: int) -> str:
    """The page. folders: where each system's first run lies, for the images; cases: how many are shown one by one."""
    task = systems[0].task
    parts = [
        f"<h1>{len(systems[0].cases)} cases, {len(systems)} systems</h1>",
        "<h2>Scores</h2>",
        f"<p>{_notes(systems)}</p>",
        _scores(systems),
        *([] if same_upstream(systems) else [f"<p><b>{OTHER_UPSTREAM}</b></p>"]),
    ]
    if task.lists:
        parts += [f"<h2>Place of the true {task.lists.truth}</h2>", _legend(systems), _ranks(systems)]
        if all(map(knows_commonness, systems)):
            parts += [f"<h2>By how common the {task.lists.truth} is</h2>", _commonness(systems)]
    if tests:
        parts += [
            "<h2>Differences</h2>",
            "<p>Paired by case; p from a permutation test, not corrected for the number of tests.</p>",
            _tests(tests, task),
        ]
    if task.lists:
        parts += ["<h2>Most frequent confusions</h2>", _confusions(systems)]
    parts += ["<h2>Cases</h2>", _cases(systems, folders, cases)]
    return html_page("Comparison", "\n".join(parts))


def _notes(systems: Sequence[System]) -> str:
    scores = systems[0].task.columns
    units = list(dict.fromkeys(UNITS[scores[name].unit] for name in columns_of(systems)))
    notes = [
        f"In {' and '.join(units)}, with 95 % intervals from a bootstrap over the cases, and over the training seeds "
        "where there are several."
    ]
    notes += ["The best of a column is bold."] * any(scores[name].marked for name in columns_of(systems))
    notes += ["A name counts from a similarity of 0.8; <i>exact</i> wants every letter."] * ("top_1_exact" in scores)
    notes += ["Cases of one patient, slide or image are drawn together."] * (systems[0].groups is not None)
    return " ".join(notes)


def _scores(systems: Sequence[System]) -> str:
    scores, columns = systems[0].task.columns, columns_of(systems)
    found = {name: [system.estimates[name].value for system in systems if name in system.estimates] for name in columns}
    best = {name: round(max(values), 6) for name, values in found.items() if scores[name].marked}
    rows = []
    for system in systems:
        row = [text_cell(system.name), number_cell(str(len(system.runs)))]
        for name in columns:
            if name not in system.estimates:
                row.append(number_cell(""))
                continue
            e, score = system.estimates[name], scores[name]
            interval = score.interval(e).replace("-", "–") if e.low >= 0 else score.interval(e)
            value = score.number(e.value)
            value = f'<span class="best">{value}</span>' if round(e.value, 6) == best.get(name) else value
            row.append(number_cell(f"{value}<br><small>{interval}</small>"))
        rows.append(row)
    return html_table(["", "runs", *(scores[name].heading for name in columns)], rows)


def _legend(systems: Sequence[System]) -> str:
    marks = [
        f'<span class="mark" style="background:{COLOURS[i % len(COLOURS)]}"></span>{escape(system.name)}'
        for i, system in enumerate(systems)
    ]
    return "<p>" + " &nbsp; ".join(marks) + "</p>"


def _ranks(systems: Sequence[System]) -> str:
    """Grouped bars: share of the lists that hold the truth in each place."""
    places = [*range(1, systems[0].task.lists.length + 1), 0]
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
        f"training cases of the {task.lists.truth}",
        "cases",
        *(
            f"{escape(system.name)}<br><small>top-1 / {task.columns[task.lists.listed].heading}</small>"
            for system in systems
        ),
    ]
    return html_table(head, rows)


def _tests(tests: Sequence[dict], task: Task) -> str:
    rows = []
    for row in tests:
        score, e = task.columns[row["metric"]], Estimate(row["value"], row["low"], row["high"])
        gap = f"{score.number(e.value, '+')} <small>({score.interval(e, '+')})</small>"
        names = [text_cell(row["first"]), text_cell(row["second"]), text_cell(score.heading)]
        rows.append([*names, number_cell(gap), number_cell(f"{row['p']:.4f}")])
    return html_table(["first", "second", "metric", "difference", "p"], rows)


def _confusions(systems: Sequence[System]) -> str:
    parts = []
    for system in systems:
        rows = [
            [text_cell(truth), text_cell(other), number_cell(str(count))] for truth, other, count in system.confusions()
        ]
        body = html_table([f"true {system.task.lists.truth}", "listed first", "times"], rows) if rows else "<p>none</p>"
        parts.append(f"<details><summary>{escape(system.name)}</summary>{body}</details>")
    return "".join(parts)


def _cases(systems: Sequence[System], folders: Sequence[Path], count: int) -> str:
    """Those on which the systems differ most, first; of the others some of each kind."""
    order = np.argsort(-_spread(systems), kind="stable")[:count]
    shown = "".join(_case(systems, folders, int(place)) for place in order)
    marks = MARKS if systems[0].task.lists else ""
    return (
        f"<p>{len(order)} of {len(systems[0].cases)}, those on which the systems differ most first. {marks}</p>{shown}"
    )


def _spread(systems: Sequence[System]) -> np.ndarray:
    """[cases]: how far the systems differ: of lists in the place of the truth, else in the tested scores."""
    task = systems[0].task
    if task.lists:
        ranks = np.array([(system.scores("top_1") + system.scores(task.lists.listed)).mean(0) for system in systems])
        return np.ptp(ranks, axis=0)
    total = np.zeros(len(systems[0].cases))
    shared = [name for name in task.tested if all(name in system.estimates for system in systems)]
    for score in (task.columns[name] for name in shared):
        found = [summands(score, system.runs) for system in systems]
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.array([np.where(had, score.value(rows.sum(0)), np.nan) for rows, had in found], dtype=float)
        spread = np.nan_to_num(np.ptp(values, axis=0), posinf=0.0)
        total += spread / (spread.max() or 1.0)
    return total


def _case(systems: Sequence[System], folders: Sequence[Path], place: int) -> str:
    task, record = systems[0].task, systems[0].cases[place]
    own = [system.cases[place] for system in systems]
    parts = []
    for found, folder in zip(own, folders, strict=True):
        if picture := _picture(first_image(found), folder):
            parts.append(f"<div>{picture}</div>")
            break
    for field, title in task.texts.items():
        if text := next((found[field] for found in own if field in found), None):
            parts.append(f'<div class="note"><b>{title}</b><br>{escape(str(text))}</div>')
    if not task.lists:
        parts += [_answer(system, place) for system in systems]
        title = f"<b>{escape(str(record['id']))}</b>"
        return f'<details><summary>{title}</summary><div class="case">{"".join(parts)}</div></details>'
    truth = record[task.lists.truth]
    teacher = next((found["teacher"] for found in own if "teacher" in found), [])
    if teacher:
        parts.append(_list("Upstream", teacher, truth, (), task.lists))
    named = zip(systems, own, strict=True)
    parts += [_list(system.name, found["listed"], truth, teacher, task.lists) for system, found in named]
    marks = "".join("●" if found["top_1"] else "◐" if found[task.lists.listed] else "○" for found in own)
    title = f"<b>{escape(str(record['id']))}</b>: {escape(truth)} <small>{marks}</small>"
    return f'<details><summary>{title}</summary><div class="case">{"".join(parts)}</div></details>'


def _answer(system: System, place: int) -> str:
    """The system's answer, if there is one, and the scores that the case has of its own."""
    task, record = system.task, system.cases[place]
    text = f"<p>{escape(str(record[task.answer]))}</p>" if task.answer else ""
    scores = [
        f"<li>{escape(score.heading)}: {score.number(float(score.value(np.array(parts, dtype=float))))}</li>"
        for score in task.columns.values()
        if (parts := score.summands(record)) is not None
    ]
    return f'<div class="list"><b>{escape(system.name)}</b>{text}<ul>{"".join(scores)}</ul></div>'


def _list(title: str, names: Sequence[str], truth: str, teacher: Sequence[str], lists: Lists) -> str:
    items = []
    for name in names[: lists.length]:
        kind = (
            "hit" if lists.same(name, truth) else "shared" if any(lists.same(name, other) for other in teacher) else ""
        )
        items.append(f'<li class="{kind}">{escape(name)}</li>' if kind else f"<li>{escape(name)}</li>")
    return f'<div class="list"><b>{escape(title)}</b><ol>{"".join(items) or "<small>no list</small>"}</ol></div>'


def _picture(name: str | None, folder: Path) -> str:
    path = folder / str(name)
    return embed_picture(path, "image of the case") if name and path.is_file() else ""

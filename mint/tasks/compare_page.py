"""The comparison as files: tables, numbers, and one HTML page with charts and single cases."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path

import numpy as np

from mint.data.image_files import find_image
from mint.errors import InputError
from mint.evaluation.charts import forest_axis, forest_cell, line_chart, nice_ticks
from mint.evaluation.html import (
    Html,
    chip,
    details,
    embed_picture,
    filter_box,
    html_page,
    html_table,
    join,
    name_list,
    system_name,
    tag,
)
from mint.evaluation.scores import Score, summands
from mint.evaluation.statistics import Estimate
from mint.files import check_paths, make_folder, write_aside
from mint.tasks import compare
from mint.tasks.base import first_image
from mint.tasks.compare import System

FEW = 30  # cases, below which a note warns
COHORTS = ("cohort", "cases", "questions", "reports", "data")  # settings that name what was evaluated on
UNIMPORTANT = {"out", "resume", "name"}  # settings that the page leaves out
UNITS = {"%": "per cent", "nats": "nats", "ratio": "ratios (their geometric mean)"}
TITLE = 90  # characters of a case's text in its heading


def add_compare(parser: argparse.ArgumentParser) -> None:
    """The flags of ``evaluate.py compare``."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders of evaluate.py; NAME=RUN,RUN for seeds of one system")
    add("--task", metavar="FILE.py:CLASS", help="the task of the evaluations, if it is one of your own")
    add("--baseline", metavar="NAME", help="system that differences refer to (default: the first)")
    add("--images", metavar="DIR", help="show cases' images that lie in DIR (default: the runs' own)")
    add("--case-pages", type=int, default=60, help="cases shown one by one (default 60)")
    add("--out", default="runs/comparison", metavar="DIR", help="default runs/comparison")
    parser.set_defaults(run=run_compare)


def run_compare(args: argparse.Namespace) -> None:
    """Writes comparison.md, .csv, .json and .html, and prints the first.

    Raises InputError if the folder holds a comparison of other evaluations, and as ``save_comparison`` does.
    """
    check_paths(args)
    known = Path(args.out) / "comparison.json"
    if known.exists() and _compared(known) != list(map(str, args.runs)):
        raise InputError(f"{args.out} holds a comparison of other evaluations already: give another --out")
    print(
        save_comparison(
            args.runs, Path(args.out), args.baseline, args.case_pages, args.task, [args.images] if args.images else ()
        )
    )
    print(f"saved in {args.out}: comparison.md, .csv, .json and .html")


def save_comparison(
    runs: Sequence[str | Path],
    out: Path,
    baseline: str | None = None,
    case_pages: int = 60,
    task: str | None = None,
    images: Sequence[str | Path] = (),
) -> str:
    """Compares the runs and writes comparison.md, .csv, .json and .html; returns the first.

    runs, task: see ``load_systems``. baseline: the system that the page shows differences to (default: the first).
    case_pages: cases shown one by one. images: folders whose images the page may hold, beside those of the runs: what a
    record names elsewhere is not read, since evaluations are files that others may have written.
    Raises InputError as ``load_systems`` does.
    """
    given = list(map(str, runs))
    systems = compare.load_systems(given, task)
    base, tests = compare.find_baseline(systems, baseline), compare.paired_tests(systems)
    files = {
        "md": compare.markdown(systems, tests),
        "csv": compare.table(systems),
        "json": json.dumps({"runs": given, "baseline": base.name, **compare.as_json(systems, tests)}, indent=2) + "\n",
        "html": write_html(systems, tests, base, max(0, case_pages), [Path(folder) for folder in images]),
    }
    make_folder(out)
    for suffix, content in files.items():
        write_aside(out / f"comparison.{suffix}", content)
    return files["md"]


def _compared(file: Path) -> list[str] | None:
    """The evaluations that a saved comparison is of, None if the file does not tell."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_html(
    systems: Sequence[System], tests: Sequence[dict], baseline: System, cases: int, images: Sequence[Path] = ()
) -> str:
    """The page. cases: how many are shown one by one. images: as in :func:`save_comparison`."""
    task = systems[0].task
    parts = [*_lead(systems), tag("h2", "Scores"), *_scores(systems, baseline)]
    if task.lists:
        parts += [tag("h2", f"Place of the true {task.lists.truth}"), *_top_k(systems)]
        if all(map(compare.knows_commonness, systems)):
            parts += [tag("h2", f"By how common the {task.lists.truth} is"), _commonness(systems)]
    if tests:
        parts += [tag("h2", f"Differences to {baseline.name}"), *_differences(systems, tests, baseline)]
    if task.lists:
        parts += [tag("h2", "Most frequent confusions"), *_confusions(systems)]
    parts += [tag("h2", "Cases"), *_cases(systems, cases, images)]
    return html_page(f"Comparison: {task.name}", *parts)


def _lead(systems: Sequence[System]) -> list[Html]:
    """Title with task, cohort and date; the settings."""
    first, settings = systems[0], [system.metrics.get("settings") or {} for system in systems]
    names = [name for name in dict.fromkeys(key for some in settings for key in some) if name not in UNIMPORTANT]
    values = {name: [_setting(some.get(name)) for some in settings] for name in names}
    shared = {name: found[0] for name, found in values.items() if len(set(found)) == 1 and found[0]}
    other = {name: found for name, found in values.items() if len(set(found)) > 1}
    cohort = next((settings[0][key] for key in COHORTS if isinstance(settings[0].get(key), str)), None)
    what = f"{len(first.cases)} cases" + f" of {cohort}" * bool(cohort)
    what += f", split {settings[0]['split']}" if settings[0].get("split") else ""
    what += f", in {len(set(first.groups))} groups" if first.groups else ""
    dates = {datetime.fromtimestamp((s.folder / "metrics.json").stat().st_mtime).date() for s in systems}
    when = f"Evaluated {' to '.join(str(day) for day in sorted({min(dates), max(dates)}))}"
    parts = [tag("h1", f"Comparison of {len(systems)} systems: {first.task.name}")]
    parts.append(tag("p", f"{what}. {when}, compared {datetime.now().date()}.", class_="lead"))
    parts.append(tag("p", *(system_name(i, system.name) for i, system in enumerate(systems))))
    if len(first.cases) < FEW:
        note = f"Fewer than {FEW} cases: the intervals are wide, and few differences can be told from chance."
        parts.append(tag("p", note, class_="warn"))
    if other:
        head = ["setting", *(system_name(i, s.name) for i, s in enumerate(systems))]
        rows = [[name, *found] for name, found in other.items()]
        parts.append(details("Settings that differ", html_table(head, rows, texts=len(head))))
    if shared:
        parts.append(details("Settings in common", html_table(["setting", "value"], shared.items(), texts=2)))
    return parts


def _setting(value: object) -> str:
    return "" if value in (None, False, []) else str(value)


def _scores(systems: Sequence[System], baseline: System) -> list[Html]:
    """The table of the printed scores; all scores, and what they mean, on a click."""
    scores, columns = systems[0].task.columns, compare.columns_of(systems, printed=False)
    kinds = {n: {s.estimates[n].method for s in systems if n in s.estimates} for n in columns}
    meanings = [
        [scores[n].heading, scores[n].meaning, " or ".join(sorted(kinds[n])).replace("w", "W")] for n in columns
    ]
    lists = html_table(["column", "meaning", "interval"], meanings, texts=3)
    printed = compare.columns_of(systems)
    parts = [_score_table(systems, baseline, printed)]
    parts += [] if compare.same_teacher(systems) else [tag("p", compare.OTHER_TEACHER, class_="warn")]
    parts += [tag("p", _notes(systems))]
    parts += [details("All scores", _score_table(systems, baseline, columns))] * (columns != printed)
    return [*parts, details("What the columns mean", lists)]


def _score_table(systems: Sequence[System], baseline: System, columns: Sequence[str]) -> Html:
    scores = systems[0].task.columns
    found = {name: [system.estimates[name].value for system in systems if name in system.estimates] for name in columns}
    best = {name: round(max(values), 6) for name, values in found.items() if scores[name].marked}
    rows = [
        [name, "", *(_score(scores[n], values.get(n), None) for n in columns)]
        for name, values in compare.reference_rows(systems).items()
    ]
    for i, system in enumerate(systems):
        name = system_name(i, system.name + " (baseline)" * (system is baseline and len(systems) > 1))
        cells = [_score(scores[n], system.estimates.get(n), best.get(n)) for n in columns]
        rows.append([name, str(len(system.runs)), *cells])
    return html_table(["system", "runs", *(scores[name].heading for name in columns)], rows)


def _score(score: Score, e: Estimate | None, best: float | None) -> Html:
    """The value with its interval below it."""
    if e is None:
        return Html()
    interval = "" if math.isnan(e.low) else score.interval(e) if e.low < 0 else score.interval(e).replace("-", "–")
    mark = "best" if round(e.value, 6) == best else None
    return join([tag("span", score.number(e.value), class_=mark), tag("br"), tag("small", interval)])


def _notes(systems: Sequence[System]) -> str:
    scores, grouped = systems[0].task.columns, systems[0].groups is not None
    units = list(dict.fromkeys(UNITS[scores[name].unit] for name in compare.columns_of(systems)))
    notes = [f"In {' and '.join(units)}, with 95 % intervals: Wilson's for shares of ungrouped cases of one run, else"]
    notes += ["a bootstrap over the cases, and over the training seeds where there are several."]
    notes += ["Cases of one patient, slide or image are drawn together."] * grouped
    notes += ["The best system of a column is bold."] * any(scores[name].marked for name in compare.columns_of(systems))
    notes += ["Rows without a marker are references of which the evaluation saved the means."] * bool(
        compare.reference_rows(systems)
    )
    return " ".join(notes)


def _top_k(systems: Sequence[System]) -> list[Html]:
    """The cumulative curve: share of the lists that hold the truth among the first k places."""
    lists = systems[0].lists
    ranks: dict[int | None, Counter] = {i: system.ranks() for i, system in enumerate(systems)}
    teacher = systems[0].teacher_ranks() if compare.same_teacher(systems) else None
    if teacher is not None and teacher not in ranks.values():
        ranks[None] = teacher
    places = range(1, lists.length + 1)
    names = {None: "teacher"} | dict(enumerate(system.name for system in systems))
    curves = {i: list(accumulate(found[k] / found.total() for k in places)) for i, found in ranks.items()}
    title = f"k: share of cases whose true {lists.truth} is among the first k names"
    chart = line_chart([(i, names[i], curve) for i, curve in curves.items()], places, title)
    rows = [
        ["T teacher" if i is None else system_name(i, names[i]), *(f"{100 * value:.1f}" for value in curve)]
        for i, curve in curves.items()
    ]
    note = ["Per cent, over all runs of a system."] + ["T, dashed: the teacher's own lists."] * (None in curves)
    return [chart, details("The numbers", html_table(["k", *places], rows)), tag("p", " ".join(note), class_="lead")]


def _commonness(systems: Sequence[System]) -> Html:
    tables, lists = [system.by_commonness() for system in systems], systems[0].lists
    shown = f"top-1 / top-{lists.length}"
    head = [f"training cases of the {lists.truth}", "cases"]
    head += [join([system_name(i, system.name), tag("br"), tag("small", shown)]) for i, system in enumerate(systems)]
    rows = [
        [words, str(count), *(f"{100 * found[k][2]:.1f} / {100 * found[k][3]:.1f}" for found in tables)]
        for k, (words, count, _, _) in enumerate(tables[0])
    ]
    return html_table(head, rows)


def _differences(systems: Sequence[System], tests: Sequence[dict], baseline: System) -> list[Html]:
    """A forest plot for each unit of the scores, and the table of all pairs."""
    scores, number = systems[0].task.columns, {system.name: i for i, system in enumerate(systems)}
    note = "Each system minus the baseline, paired by case, with 95 % bootstrap intervals; right of the line the "
    note += "system scores higher. p: two-sided permutation test, not corrected for the number of tests."
    parts = [tag("p", note)]
    columns = ["score", "system", "difference to the baseline", "value (interval)", "p"]
    rows = sorted(compare.gaps_to(baseline, tests), key=lambda row: list(UNITS).index(scores[row[0]].unit))
    for _, group in groupby(rows, key=lambda row: scores[row[0]].unit):
        some = list(group)
        limit = nice_ticks(max(0.01, *(abs(end) for _, _, e, _ in some for end in (e.low, e.high))), 4)[-1]
        lines = []
        for metric, other, e, p in some:
            text = _gap(scores[metric], e)
            plot = forest_cell(e, limit, number[other], f"{scores[metric].heading}, {other}: {text}")
            lines.append([scores[metric].heading, system_name(number[other], other), plot, text, f"{p:.4f}"])
        axis = forest_axis(limit, partial(_signed, scores[some[0][0]]))
        lines.append(["", "", axis, "", ""])
        parts.append(html_table(columns, lines, texts=3))
    pairs = [
        [row["first"], row["second"], scores[row["metric"]].heading]
        + [_gap(scores[row["metric"]], Estimate(row["value"], row["low"], row["high"])), f"{row['p']:.4f}"]
        for row in tests
    ]
    head = ["first", "second", "score", "first minus second", "p"]
    return [*parts, details("All pairs", html_table(head, pairs, texts=3))]


def _signed(score: Score, value: float) -> str:
    return score.number(value, "+" * (value != 0))


def _gap(score: Score, e: Estimate) -> str:
    return f"{score.number(e.value, '+')} ({score.interval(e, '+')})"


def _confusions(systems: Sequence[System]) -> list[Html]:
    head = [f"true {systems[0].lists.truth}", "listed first", "times"]
    return [
        details(system_name(i, system.name), html_table(head, rows, texts=2) if rows else tag("p", "none"))
        for i, system in enumerate(systems)
        if (rows := [(truth, other, str(count)) for truth, other, count in system.confusions()]) is not None
    ]


def _cases(systems: Sequence[System], count: int, images: Sequence[Path]) -> list[Html]:
    """Those on which the systems differ most, first; a quarter is kept for those on which they agree."""
    task, spread = systems[0].task, _spread(systems)
    order = np.argsort(-spread, kind="stable")
    differ = int((spread > 0).sum())
    split = min(differ, max(count - count // 4, count - (len(order) - differ)))
    order = np.concatenate((order[:split], order[differ : differ + count - split]))
    note = f"{len(order)} of {len(spread)}, those on which the systems differ most first; they differ on {differ}."
    if task.lists:
        note += f" Beside a system's letter: the place of the true {task.lists.truth}, – if it is not listed."
        note += " ✓: the truth. (T): listed by the teacher too."
    else:
        names = ", ".join(task.columns[name].heading for name in task.tested)
        note += f" Beside a system's letter: the first score that the case has of {names}."
    if hidden := [title for name, title in task.texts.items() if not any(name in s.cases[0] for s in systems)]:
        note += f" Not saved: {', '.join(hidden).lower()}. Evaluate with --keep-notes, or again with --resume too."
    shown = [_case(systems, int(place), None if spread[place] > 0 else "plain", images) for place in order]
    if any(first_image(system.cases[0]) for system in systems) and not any("<img" in str(case) for case in shown):
        note += " The images lie elsewhere: --images names their folder."
    return [tag("p", note), filter_box("only cases on which the systems differ"), tag("div", *shown)]


def _spread(systems: Sequence[System]) -> np.ndarray:
    """[cases]: how far the systems differ: of lists in the place of the truth, else in the tested scores."""
    task = systems[0].task
    if task.lists:
        ranks = np.array([((s.places == 1) + (s.places > 0).astype(int)).mean(0) for s in systems])
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


def _case(systems: Sequence[System], place: int, class_: str | None, images: Sequence[Path]) -> Html:
    task, own = systems[0].task, [system.cases[place] for system in systems]
    named = list(zip(systems, own, strict=True))
    parts = [picture for s, found in named if (picture := _picture(first_image(found), s.folder, images))][:1]
    texts = {title: next((r[field] for r in own if field in r), None) for field, title in task.texts.items()}
    parts += [tag("div", tag("b", title), tag("br"), text, class_="note") for title, text in texts.items() if text]
    if task.lists:
        heading = own[0][task.lists.truth]
        taught = next((found for found in own if found.get("teacher")), own[0])
        teacher: list[str] = taught.get("teacher", [])
        entries = [("Teacher", teacher, taught)] * bool(teacher)
        entries += [(system_name(i, s.name), found["listed"], found) for i, (s, found) in enumerate(named)]
        for title, names, record in entries:
            names = names[: task.lists.length]
            hits = [task.lists.is_true(name, record) for name in names]
            both = [title != "Teacher" and any(task.lists.same(name, t) for t in teacher) for name in names]
            parts.append(name_list(title, names, hits, both))
        marks = [str(system.places[0, place] or "–") for system in systems]
    else:
        heading = str(next(filter(None, texts.values()), ""))
        heading = heading if len(heading) <= TITLE else f"{heading[:TITLE]}..."
        lines = [_case_scores(system, found) for system, found in named]
        for i, (system, found) in enumerate(named):
            answer = tag("p", str(found[task.answer])) if task.answer else ""
            items = tag("ul", *(tag("li", f"{score.heading}: {text}") for score, text in lines[i].items()))
            parts.append(tag("div", tag("b", system_name(i, system.name)), answer, items, class_="list"))
        tested = [[task.columns[name] for name in task.tested if task.columns[name] in line] for line in lines]
        marks = [line[some[0]] if some else "" for line, some in zip(lines, tested, strict=True)]
    chips = tag("span", *(chip(i, mark) for i, mark in enumerate(marks)))
    title = join([chips, " ", tag("b", own[0]["id"]), f": {heading}" if heading else ""])
    return details(title, tag("div", *parts, class_="row case"), class_=class_)


def _case_scores(system: System, record: dict) -> dict[Score, str]:
    """The scores that a single case has, as text."""
    found = {score: score.summands(record) for score in system.task.columns.values()}
    return {
        score: score.number(float(score.value(np.array(parts, dtype=float))))
        for score, parts in found.items()
        if parts is not None
    }


def _picture(name: str | None, folder: Path, images: Sequence[Path]) -> Html:
    """The image that a record names relative to its ``folder``; nothing where it lies in none of the folders."""
    for root in (folder, *images) if name else ():
        with suppress(InputError):
            return embed_picture(find_image(root, os.path.abspath(folder / str(name))), "image of the case")
    return Html()

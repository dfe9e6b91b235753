"""Few diagnosed patients: the experiment of :mod:`mint.demo.scarce` over seeds and numbers of diagnosed patients.

    python -m benchmarks.scarce_diagnoses --out DIR [--diagnosed 50 100 200 400 1200] [--seeds 5]

A command that was stopped goes on with the arms that are not finished. ``diagnosed-T/comparison.*`` compare the arms at
each T, ``curve.png`` and ``curve.csv`` show them over T.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.command import make_parser, run
from mint.demo.arms import arm_jobs, load_train, side_by_side
from mint.demo.scarce import BOTH, LENGTHS, ROWS, Study, find_reader, teach_reading
from mint.errors import InputError
from mint.evaluation.scores import means_table
from mint.evaluation.statistics import Estimate
from mint.files import file_aside, write_aside
from mint.tasks.base import save_results, score_answers
from mint.tasks.compare import System, load_systems
from mint.tasks.compare_page import save_comparison
from mint.tasks.disease import Disease
from mint.tasks.ranked import rank_lists

FACES, UNSEEN = 12_000, 600  # faces to learn from; patients to score on
BASELINE = "SFT on the T diagnoses"
SHOWN = {  # panels of the curve
    "top_1_id": "true disease first, per cent",
    "top_10_id": "true disease among ten, per cent",
}


def run_studies(args: argparse.Namespace) -> str:
    """Draws, trains and asks what is missing; writes the tables and the curve, and returns the tables.

    Raises InputError for numbers out of range, or a folder that cannot be written.
    """
    if args.seeds < 1 or min(args.diagnosed) < 50:
        raise InputError("--seeds must be at least 1, and --diagnosed at least 50")
    root = Path(args.out)
    find_reader(root, FACES)
    if not (root / "model").is_dir():
        teach_reading(root, load_train())
    seeds = range(args.seeds)
    studies = {count: [Study(root, count, seed, UNSEEN) for seed in seeds] for count in args.diagnosed}
    by_seed = [[group[seed] for group in studies.values()] for seed in seeds]
    by_seed[0][0].draw()  # the unseen patients among them
    side_by_side([(f"pairs of seed {seed}", write_pairs, (group,)) for seed, group in enumerate(by_seed)])
    arms = {arm.folder: arm for group in by_seed for study in group for arm in study.arms()}
    side_by_side(arm_jobs(list(arms.values()), by_seed[0][0].exam))
    found = {count: compare_rows(root / f"diagnosed-{count}", group) for count, group in studies.items()}
    rows = {count: {system.name: system.estimates for system in systems} for count, systems in found.items()}
    write_curve(root, rows)
    return "\n\n".join(f"{count} diagnosed patients\n\n{means_table(rows[count], Disease.columns)}" for count in rows)


def write_pairs(studies: Sequence[Study]) -> None:
    """A job: draws the patients of ``studies``, and writes the pairs of all arms."""
    for study in studies:
        study.draw()
        study.arms()


def compare_rows(folder: Path, studies: Sequence[Study]) -> list[System]:
    """Writes the comparison of all rows over the seeds to ``folder``; returns the rows."""
    rows: dict[str, list[Path]] = {}
    for study in studies:
        for name, place in score_study(study).items():
            rows.setdefault(name, []).append(place)
    runs = [f"{name}={','.join(map(str, places))}" for name, places in rows.items()]
    save_comparison(runs, folder, baseline=BASELINE)
    return load_systems(runs)


def score_study(study: Study) -> dict[str, Path]:
    """Saves the scores of every row, teachers first; returns row -> folder."""
    task, cases = Disease(study.exam.names, training=study.others), study.exam.cases
    lists = {name: rank_lists(cases, teacher, *LENGTHS) for name, teacher in study.teachers().items()}
    task.refer_to(BOTH, cases, lists[BOTH])
    answers = {name: list(map(task.format, lists[name].top)) for name in lists}
    answers |= {arm.name: arm.answers(study.exam) for arm in study.arms()}
    places = {name: study.folder / "scores" / re.sub(r"\W+", "-", name) for name in answers}
    for name, place in places.items():
        result = score_answers(task, name, cases, answers[name], place)
        save_results(task, place, [result], {"diagnosed": study.diagnosed})
    return places


def write_curve(folder: Path, found: Mapping[int, Mapping[str, Mapping[str, Estimate]]]) -> None:
    """``curve.csv`` and ``curve.png``: every row over the number of diagnosed patients. found: T -> row -> scores."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("row", "diagnosed", "score", "value", "low", "high"))
    for count, rows in found.items():
        for name, scores in rows.items():
            for score, e in scores.items():
                writer.writerow((name, count, score, e.value, e.low, e.high))
    write_aside(folder / "curve.csv", text.getvalue())
    with file_aside(folder / "curve.png") as aside:
        _draw(found).savefig(aside, dpi=150, bbox_inches="tight")


def _draw(found: Mapping[int, Mapping[str, Mapping[str, Estimate]]]) -> Figure:
    """A panel for each of ``SHOWN``; bars are 95 % intervals."""
    figure = Figure(figsize=(6 * len(SHOWN), 5))
    counts, names = sorted(found), list(found[min(found)])
    for panel, (score, title) in enumerate(SHOWN.items(), 1):
        axes = figure.add_subplot(1, len(SHOWN), panel)
        for place, name in enumerate(names):
            there = [count for count in counts if name in found[count]]
            values = [found[count][name][score] for count in there]
            middle = [100 * e.value for e in values]
            reach = [[100 * (e.value - e.low) for e in values], [100 * (e.high - e.value) for e in values]]
            style = "-" if name in ROWS else "--"
            shifted = [count * 1.015 ** (place - len(names) / 2) for count in there]
            axes.errorbar(shifted, middle, reach, marker="o", markersize=4, capsize=2, linestyle=style, label=name)
        axes.set(xscale="log", xlabel="patients with a diagnosis", title=title, ylim=(0, 100))
        axes.set_xticks(counts, list(map(str, counts)))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def main() -> int:
    parser = make_parser(__doc__, seeds=5)
    parser.add_argument("--diagnosed", type=int, nargs="+", default=[200], metavar="T", help="default 200")
    return run(parser, run_studies)


if __name__ == "__main__":
    sys.exit(main())

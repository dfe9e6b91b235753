"""Whether pairs of the ward teach its habits: some of the rows, trained on pairs of balanced patients.

Everything else is as in ``grounding``: policy, number of patients asked about, learning rates, steps, unseen patients.
``habits.md`` has a table for each population, ``habits.png`` the clinical accuracy with either pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.fire.grounding import ROWS, read_rates
from benchmarks.fire.methods import OURS, WIDER, compare
from benchmarks.fire.ward import BASE, Ward, jobs, slug, write_pairs
from mint.demo.arms import Arm, side_by_side
from mint.files import file_aside, read_json, write_aside
from mint.synthetic.populations import BALANCED

TRAINED = ("SFT", "DPO", "RRPO", "RRPO, KL on spans", "FiRe, no image term", OURS, WIDER)
PAIRS = "balanced"  # folder of a place's pairs, and of the tables
ASKED = 310  # seed of the balanced patients that the policy is asked about; one more for each place


def find_habits(ward: Ward, rows: Sequence[str]) -> str:
    """Trains and scores what is missing; writes the tables and the figure, and returns the tables.

    rows: those that ``grounding`` ran.
    """
    asked = [
        (f"balanced pairs of {place}", write_pairs, (folder, ward.policy, ASKED + i, ward.hardware, BALANCED))
        for i, place in enumerate(ward.places)
        if not ((folder := ward.root / place / PAIRS) / "presence.jsonl").is_file()
    ]
    side_by_side(asked)
    rates = read_rates(ward.root)
    arms = {row: [arm_of(ward, row, place, rates[row]) for place in ward.places] for row in TRAINED if row in rows}
    side_by_side(jobs([arm for some in zip(*arms.values(), strict=True) for arm in some], ward.unseen))
    every = {BASE: [ward.base("unseen")], **arms}
    tables = []
    for test in ward.unseen:
        folders = {row: [arm.folder / test.name for arm in some] for row, some in every.items()}
        table = compare(folders, ward.root / PAIRS / test.name)
        tables.append(f"{test.name}, with pairs of balanced patients\n\n{table}")
    with file_aside(ward.root / "habits.png") as aside:
        draw(ward, list(arms)).savefig(aside, dpi=150, bbox_inches="tight")
    text = "\n".join(tables)
    write_aside(ward.root / "habits.md", text)
    return text


def arm_of(ward: Ward, row: str, place: str, rate: float) -> Arm:
    """A row trained on the balanced patients' pairs of the folder ``place``."""
    return ward.arm(row, place, {**ROWS[row], "lr": rate}, f"{PAIRS}/presence", f"{slug(row)}/{PAIRS}-{rate:g}")


def draw(ward: Ward, rows: Sequence[str]) -> Figure:
    """A panel for each population: clinical accuracy of the rows with the ward's pairs and with balanced ones."""
    figure = Figure(figsize=(5 * len(ward.unseen), 0.4 * len(rows) + 1.5), layout="constrained")
    panels = figure.subplots(1, len(ward.unseen), sharey=True)
    for axes, test in zip(panels, ward.unseen, strict=True):
        for shift, (kind, folder) in zip((0.12, -0.12), (("ward", "."), ("balanced", PAIRS)), strict=True):
            table = read_json(ward.root / folder / test.name / "table.json")["rows"]
            found = [table[row]["clinical"] for row in rows]
            middle = [100 * e["value"] for e in found]
            reach = [[100 * abs(e["value"] - e[end]) for e in found] for end in ("low", "high")]
            places = np.arange(len(rows))[::-1] + shift
            axes.errorbar(middle, places, xerr=reach, fmt="o", markersize=4, capsize=2, label=f"pairs: {kind}")
        axes.axvline(100 * table[BASE]["clinical"]["value"], color="grey", linestyle="--", linewidth=1, label="before")
        axes.set(title=test.name, xlabel="clinical accuracy (%)", yticks=range(len(rows)), yticklabels=rows[::-1])
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    return figure

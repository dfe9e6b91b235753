"""Comparison of saved evaluations of one set of cases: metrics with intervals, paired tests, where each model fails."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mint.errors import InputError
from mint.evaluation.disease import COLUMNS
from mint.evaluation.metrics import matches
from mint.evaluation.statistics import Estimate, bootstrap, paired_p

TESTED = ("top_1", "top_10", "car")  # metrics of the paired tests
COMMON = ((0, "none"), (1, "1"), (2, "2-4"), (5, "5-9"), (10, "10-29"), (30, "30 or more"))  # training cases of a disease
CONFUSIONS = 12
OTHER_UPSTREAM = "C, A and CAR cannot be compared here: not all systems were scored against the same upstream lists."
PLACES = 10


@dataclass(frozen=True)
class System:
    """One or more runs (training seeds) of one system. runs: for each, its records in the order of the cases."""

    name: str
    runs: tuple[tuple[dict, ...], ...]

    @property
    def cases(self) -> tuple[dict, ...]:
        """The records of the first run."""
        return self.runs[0]

    def scores(self, metric: str) -> np.ndarray:
        """[runs, cases]"""
        return np.array([[record[metric] for record in run] for run in self.runs], dtype=float)

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        return {metric: bootstrap(self.scores(metric)) for metric in COLUMNS}

    def ranks(self) -> Counter:
        """The place of the true disease in the lists (0: not among the first ten), counted over cases and runs."""
        found = Counter()
        for record in (record for run in self.runs for record in run):
            hits = (i for i, name in enumerate(record["listed"][:PLACES], 1) if matches(name, record["disease"]))
            found[next(hits, 0)] += 1
        return found

    def by_commonness(self) -> list[tuple[str, int, float, float]]:
        """(training cases of the disease, cases, top-1, top-10) of every bin that holds a case."""
        counts = np.array([record["disease_count"] for record in self.cases])
        top_1, top_10 = self.scores("top_1").mean(0), self.scores("top_10").mean(0)
        edges = [least for least, _ in COMMON] + [np.inf]
        rows = []
        for (least, words), above in zip(COMMON, edges[1:], strict=True):
            members = (counts >= least) & (counts < above)
            if members.any():
                rows.append((words, int(members.sum()), float(top_1[members].mean()), float(top_10[members].mean())))
        return rows

    def confusions(self) -> list[tuple[str, str, int]]:
        """(true disease, what was listed first instead, how often), the most frequent first."""
        pairs = Counter(
            (record["disease"], record["listed"][0])
            for run in self.runs
            for record in run
            if record["listed"] and not record["top_1"]
        )
        return [(truth, other, count) for (truth, other), count in pairs.most_common(CONFUSIONS)]


def load_systems(arguments: Sequence[str]) -> tuple[list[System], list[Path]]:
    """(systems, the folder of each one's first run) from ``RUN`` or ``NAME=RUN,RUN,...``: folders of ``evaluate.py``.

    Raises InputError if a folder holds no evaluation, a name comes twice, or runs are of different cases.
    """
    systems, places = [], []
    for argument in arguments:
        name, _, listed = argument.rpartition("=")
        folders = [Path(folder) for folder in listed.split(",") if folder]
        if not folders:
            raise InputError(f"{argument!r} names no run: expected RUN or NAME=RUN,RUN")
        runs = [_read_run(folder) for folder in folders]
        places.append(folders[0])
        systems.append(System(name or runs[0][0], tuple(records for _, records in runs)))
    if repeated := [name for name, count in Counter(system.name for system in systems).items() if count > 1]:
        raise InputError(f"two systems are called {repeated[0]!r}: name them with NAME=RUN")
    first = [record["id"] for record in systems[0].cases]
    for system in systems:
        for run in system.runs:
            if [record["id"] for record in run] != first:
                raise InputError(f"{system.name} was evaluated on other cases than {systems[0].name}, or in another order")
    return systems, places


def _read_run(folder: Path) -> tuple[str, tuple[dict, ...]]:
    """(the name of the evaluated system, its records)."""
    try:
        rows = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["rows"]
        lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        records = tuple(json.loads(line) for line in lines)
        name = list(rows)[-1]
        for record in records:
            if not isinstance(record["listed"], list):
                raise ValueError("listed is no list")
            _ = [float(record[metric]) for metric in COLUMNS], record["id"], str(record["disease"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{folder} holds no evaluation that can be read ({error})") from None
    if not records:
        raise InputError(f"{folder} holds an evaluation of no cases")
    return name, records


def paired_tests(systems: Sequence[System]) -> list[dict]:
    """For every pair of systems and metric of ``TESTED``: difference of the means, its interval, and p."""
    rows = []
    for i, first in enumerate(systems):
        for second in systems[i + 1 :]:
            for metric in TESTED:
                a, b = first.scores(metric), second.scores(metric)
                same = len(a) == len(b)  # seeds are paired too, where there are as many
                gap = bootstrap(a - b) if same else bootstrap(a.mean(0, keepdims=True) - b.mean(0, keepdims=True))
                p = paired_p(a.mean(0), b.mean(0))
                rows.append({"first": first.name, "second": second.name, "metric": metric, **asdict(gap), "p": p})
    return rows


def same_upstream(systems: Sequence[System]) -> bool:
    """Whether coverage, avoidance and CAR of all systems refer to the same upstream lists."""
    return len({json.dumps([record.get("teacher") for record in run]) for system in systems for run in system.runs}) == 1


def markdown(systems: Sequence[System], tests: Sequence[dict]) -> str:
    """The tables as text."""
    lines = ["| | runs | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for system in systems:
        cells = [f"{100 * e.value:.1f} ({100 * e.low:.1f}-{100 * e.high:.1f})" for e in system.estimates.values()]
        lines.append(f"| {system.name} | {len(system.runs)} | " + " | ".join(cells) + " |")
    if not same_upstream(systems):
        lines += ["", OTHER_UPSTREAM]
    lines += ["", "| first | second | metric | difference | p |", "|---|---|---|---|---|"]
    for row in tests:
        gap = f"{100 * row['value']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        lines.append(f"| {row['first']} | {row['second']} | {COLUMNS[row['metric']]} | {gap} | {row['p']:.4f} |")
    return "\n".join(lines) + "\n"


def table(systems: Sequence[System]) -> str:
    """The metrics as CSV, a row per system and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("system", "runs", "cases", "metric", "value", "low", "high"))
    for system in systems:
        for metric, e in system.estimates.items():
            writer.writerow((system.name, len(system.runs), len(system.cases), metric, e.value, e.low, e.high))
    return text.getvalue()


def as_json(systems: Sequence[System], tests: Sequence[dict]) -> dict:
    """All numbers of the comparison."""
    return {
        "systems": {
            system.name: {
                "runs": len(system.runs),
                "cases": len(system.cases),
                "metrics": {metric: asdict(estimate) for metric, estimate in system.estimates.items()},
                "by_seed": {metric: system.scores(metric).mean(1).tolist() for metric in COLUMNS},
                "ranks": {str(place): count for place, count in sorted(system.ranks().items())},
                "by_training_cases": system.by_commonness() if knows_commonness(system) else None,
                "confusions": system.confusions(),
            }
            for system in systems
        },
        "paired_tests": list(tests),
    }


def knows_commonness(system: System) -> bool:
    """Whether the evaluation was told the training cases, and so how common each disease is."""
    return all("disease_count" in record for record in system.cases)

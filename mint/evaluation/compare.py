"""Comparison of saved evaluations of one set of cases: metrics with intervals, paired tests, where each model fails."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mint.errors import InputError
from mint.evaluation import disease, tissue
from mint.evaluation.metrics import matches, normalize
from mint.evaluation.statistics import Estimate, bootstrap, paired_p

COMMON = ((0, "none"), (1, "1"), (2, "2-4"), (5, "5-9"), (10, "10-29"), (30, "30 or more"))  # training cases of a disease
CONFUSIONS = 12
OTHER_UPSTREAM = "C, A and CAR cannot be compared here: not all systems were scored against the same upstream lists."


@dataclass(frozen=True)
class Task:
    """What was evaluated. truth: the key of the true name; picture: of the case's image; places: a list's length.

    columns: scores of a case and their headings; listed: the one that says whether the truth is in the list.
    """

    truth: str
    picture: str
    places: int
    columns: dict[str, str]
    listed: str
    same: Callable[[str, str], bool]  # whether a listed name is another one

    @property
    def tested(self) -> tuple[str, str, str]:
        """Metrics of the paired tests."""
        return "top_1", self.listed, "car"


TASKS = (
    Task("disease", "portrait", 10, disease.COLUMNS, "top_10", matches),
    Task("tissue", "image", tissue.LISTED, tissue.CASE_COLUMNS, "top_5", lambda a, b: normalize(a) == normalize(b)),
)


@dataclass(frozen=True)
class System:
    """One or more runs (training seeds) of one system. runs: for each, its records in the order of the cases."""

    name: str
    runs: tuple[tuple[dict, ...], ...]
    task: Task

    @property
    def cases(self) -> tuple[dict, ...]:
        """The records of the first run."""
        return self.runs[0]

    def scores(self, metric: str) -> np.ndarray:
        """[runs, cases]"""
        return np.array([[record[metric] for record in run] for run in self.runs], dtype=float)

    @cached_property
    def groups(self) -> list[str] | None:
        """The patient or slide of each case, where the records name them; cases without one stand alone."""
        if not any(record.get("subject") for record in self.cases):
            return None
        return [f"subject {record['subject']}" if record.get("subject") else f"case {record['id']}" for record in self.cases]

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        return {metric: bootstrap(self.scores(metric), groups=self.groups) for metric in self.task.columns}

    def ranks(self) -> Counter:
        """The place of the truth in the lists (0: not among the task's places), counted over cases and runs."""
        found = Counter()
        for record in (record for run in self.runs for record in run):
            listed = enumerate(record["listed"][: self.task.places], 1)
            hits = (i for i, name in listed if self.task.same(name, record[self.task.truth]))
            found[next(hits, 0)] += 1
        return found

    def by_commonness(self) -> list[tuple[str, int, float, float]]:
        """(training cases of the truth, cases, share first, share listed) of every bin that holds a case."""
        counts = np.array([record["disease_count"] for record in self.cases])
        first, listed = self.scores("top_1").mean(0), self.scores(self.task.listed).mean(0)
        edges = [least for least, _ in COMMON] + [np.inf]
        rows = []
        for (least, words), above in zip(COMMON, edges[1:], strict=True):
            members = (counts >= least) & (counts < above)
            if members.any():
                rows.append((words, int(members.sum()), float(first[members].mean()), float(listed[members].mean())))
        return rows

    def confusions(self) -> list[tuple[str, str, int]]:
        """(the truth, what was listed first instead, how often), the most frequent first."""
        pairs = Counter(
            (record[self.task.truth], record["listed"][0])
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
        tasks = {task.truth: task for _, _, task in runs}
        if len(tasks) > 1:
            raise InputError(f"{argument!r} joins evaluations of diseases and of tissues")
        systems.append(System(name or runs[0][0], tuple(records for _, records, _ in runs), runs[0][2]))
    if repeated := [name for name, count in Counter(system.name for system in systems).items() if count > 1]:
        raise InputError(f"two systems are called {repeated[0]!r}: name them with NAME=RUN")
    first = [record["id"] for record in systems[0].cases]
    for system in systems:
        for run in system.runs:
            if [record["id"] for record in run] != first:
                raise InputError(f"{system.name} was evaluated on other cases than {systems[0].name}, or in another order")
    return systems, places


def _read_run(folder: Path) -> tuple[str, tuple[dict, ...], Task]:
    """(the name of the evaluated system, its records, what they are about)."""
    try:
        rows = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["rows"]
        lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        records = tuple(json.loads(line) for line in lines)
        name = list(rows)[-1]
        task = next((task for task in TASKS if records and task.truth in records[0]), TASKS[0])
        for record in records:
            if not isinstance(record["listed"], list):
                raise ValueError("listed is no list")
            _ = [float(record[metric]) for metric in task.columns], record["id"], str(record[task.truth])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{folder} holds no evaluation that can be read ({error})") from None
    if not records:
        raise InputError(f"{folder} holds an evaluation of no cases")
    return name, records, task


def paired_tests(systems: Sequence[System]) -> list[dict]:
    """For every pair of systems and tested metric of the task: difference of the means, its interval, and p."""
    rows = []
    for i, first in enumerate(systems):
        for second in systems[i + 1 :]:
            for metric in first.task.tested:
                a, b = first.scores(metric), second.scores(metric)
                same = len(a) == len(b)  # seeds are paired too, where there are as many
                gap = bootstrap(a - b if same else (a.mean(0) - b.mean(0))[None], groups=first.groups)
                p = paired_p(a.mean(0), b.mean(0), groups=first.groups)
                rows.append({"first": first.name, "second": second.name, "metric": metric, **asdict(gap), "p": p})
    return rows


def same_upstream(systems: Sequence[System]) -> bool:
    """Whether coverage, avoidance and CAR of all systems refer to the same upstream lists."""
    return len({json.dumps([record.get("teacher") for record in run]) for system in systems for run in system.runs}) == 1


def markdown(systems: Sequence[System], tests: Sequence[dict]) -> str:
    """The tables as text."""
    columns = systems[0].task.columns
    lines = ["| | runs | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 2) + "|"]
    for system in systems:
        cells = [f"{100 * e.value:.1f} ({100 * e.low:.1f}-{100 * e.high:.1f})" for e in system.estimates.values()]
        lines.append(f"| {system.name} | {len(system.runs)} | " + " | ".join(cells) + " |")
    if not same_upstream(systems):
        lines += ["", OTHER_UPSTREAM]
    lines += ["", "| first | second | metric | difference | p |", "|---|---|---|---|---|"]
    for row in tests:
        gap = f"{100 * row['value']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        lines.append(f"| {row['first']} | {row['second']} | {columns[row['metric']]} | {gap} | {row['p']:.4f} |")
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
                "by_seed": {metric: system.scores(metric).mean(1).tolist() for metric in system.estimates},
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

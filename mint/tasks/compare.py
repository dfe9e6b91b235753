"""Comparison of saved evaluations of one set of cases: scores with intervals, paired tests, where each system fails."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np

from mint.data.records import json_lines, read_bytes
from mint.errors import InputError, describe_error
from mint.evaluation.scores import estimate, summands
from mint.evaluation.statistics import Estimate, bootstrap_sums, paired_p_sums, wilson
from mint.files import parse_json
from mint.ranges import Range, check_number
from mint.tasks import TASKS, load_task
from mint.tasks.base import Lists, Task, first_image, groups_of

COMMON = ((0, "none"), (1, "1"), (2, "2-4"), (5, "5-9"), (10, "10-29"), (30, "30 or more"))  # training cases
CONFUSIONS = 12
FINITE = Range(-1e300, 1e300, whole=False)
OTHER_TEACHER = "C, A and CAR cannot be compared here: not all systems were scored against the same teacher lists."


@dataclass(frozen=True)
class System:
    """One or more runs (training seeds) of one system.

    runs: for each, its records in the order of the cases. folder, metrics: the first run's, with its metrics.json.
    """

    name: str
    runs: tuple[tuple[dict, ...], ...]
    task: Task
    folder: Path
    metrics: dict

    @property
    def cases(self) -> tuple[dict, ...]:
        """The records of the first run."""
        return self.runs[0]

    @property
    def lists(self) -> Lists:
        """How answers are listed; only for tasks whose answers are lists."""
        return cast(Lists, self.task.lists)

    def scores(self, metric: str) -> np.ndarray:
        """[runs, cases] of a field of the records."""
        return np.array([[record[metric] for record in run] for run in self.runs], dtype=float)

    @cached_property
    def groups(self) -> list[str] | None:
        """What each case belongs to (a patient, a slide, an image), where the records tell; other cases stand alone."""
        return groups_of(self.task, self.cases)

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """The scores that the records have."""
        return estimate(self.task.columns, self.runs, self.groups)

    def by_seed(self, metric: str) -> list[float]:
        """The score of each run."""
        score = self.task.columns[metric]
        rows, had = summands(score, self.runs)
        return score.value(rows[:, had].sum(1)).tolist()

    @cached_property
    def places(self) -> np.ndarray:
        """[runs, cases] int: the place of the truth in the lists, 0 if it is not among the places shown."""
        place = self.lists.place
        return np.array([[place(found["listed"], found, found.get("scores")) for found in run] for run in self.runs])

    def ranks(self) -> Counter:
        """The places of the truth, counted over cases and runs."""
        return Counter(self.places.flatten().tolist())

    def teacher_ranks(self) -> Counter | None:
        """The same for the teacher's lists, None where the records have none."""
        if not all(record.get("teacher") for record in self.cases):
            return None
        return Counter(self.lists.place(record["teacher"], record) for record in self.cases)

    def by_commonness(self) -> list[tuple[str, int, float, float]]:
        """(training cases of the truth, cases, share first, share listed) of every bin that holds a case."""
        counts = np.array([record["disease_count"] for record in self.cases])
        first, listed = (self.places == 1).mean(0), (self.places > 0).mean(0)
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
            (record[self.lists.truth], record["listed"][0])
            for run in self.runs
            for record in run
            if record["listed"] and not self.lists.is_true(record["listed"][0], record)
        )
        return [(truth, other, count) for (truth, other), count in pairs.most_common(CONFUSIONS)]


def load_systems(arguments: Sequence[str], task: str | None = None) -> list[System]:
    """The systems of ``RUN`` or ``NAME=RUN,RUN,...``: folders that ``evaluate.py`` wrote.

    A system is called NAME, else by the name it was evaluated under; of those with the same name, each by its folder.
    task: FILE.py:CLASS, for evaluations of a task outside the package.
    Raises InputError if a folder holds no evaluation, a NAME or folder comes twice, or runs are of different cases.
    """
    systems, given = [], []
    tasks = [load_task(name) for name in [*([task] if task else []), *TASKS]]
    for argument in arguments:
        name, _, listed = argument.rpartition("=")
        name, folders = ("", [argument]) if Path(argument).is_dir() else (name, listed.split(","))
        runs = [_read_run(Path(folder), tasks) for folder in folders if folder]
        if not runs:
            raise InputError(f"{argument!r} names no run: expected RUN or NAME=RUN,RUN")
        if len(kinds := sorted({run.task.name for run in runs})) > 1:
            raise InputError(f"{argument!r} joins evaluations of {' and of '.join(kinds)}")
        given.append(bool(name))
        systems.append(replace(runs[0], name=name or runs[0].name, runs=tuple(run.cases for run in runs)))
    if len(kinds := sorted({system.task.name for system in systems})) > 1:
        raise InputError(f"evaluations of {' and of '.join(kinds)} cannot be compared with each other")
    names = _distinct([system.name for system in systems], given, [system.folder for system in systems])
    systems = [replace(system, name=name) for name, system in zip(names, systems, strict=True)]
    first = [record["id"] for record in systems[0].cases]
    for system in systems:
        if any([record["id"] for record in run] != first for run in system.runs):
            raise InputError(f"{system.name} was evaluated on other cases than {systems[0].name}, or in another order")
    return systems


def find_baseline(systems: Sequence[System], name: str | None) -> System:
    """The system of this name, by default the first. Raises InputError if there is none."""
    found = next((system for system in systems if name in (None, system.name)), None)
    if found is None:
        raise InputError(f"--baseline {name} is none of the systems: {', '.join(s.name for s in systems)}")
    return found


def _distinct(names: Sequence[str], given: Sequence[bool], places: Sequence[Path]) -> list[str]:
    """The names, with folders in place of those that come twice: the folder's own name, or else the whole path."""
    names = list(names)
    for spell in (lambda place: place.name, str):
        count = Counter(names)
        names = [
            spell(place) if count[name] > 1 and not own else name
            for name, own, place in zip(names, given, places, strict=True)
        ]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"two systems are called {repeated[0]!r}: give different folders, or name them with NAME=RUN")
    return names


def _read_run(folder: Path, tasks: Sequence[Task]) -> System:
    """The evaluation in a folder as a system of one run."""
    try:
        metrics = parse_json(read_bytes(folder / "metrics.json"))
        file = next((folder / task.file for task in tasks if (folder / task.file).is_file()), folder / tasks[0].file)
        records = tuple(parse_json(line) for _, line in json_lines(file))
        name = metrics["name"] if "name" in metrics else list(metrics["rows"])[-1]
        _check_metrics(metrics, name)
        if not records:
            raise InputError("it holds no cases")
        task = next((task for task in tasks if task.field in records[0]), None)
        if task is None:
            raise InputError(f"{file.name} is of no known task; name yours with --task FILE.py:CLASS")
        for record in records:
            _check_record(record, task)
        for score in task.columns.values():
            if len({len(parts) for record in records if (parts := score.summands(record)) is not None}) > 1:
                raise InputError(f"{score.heading} is of another form in some records")
    except (InputError, OSError, KeyError) as error:  # a file, a field
        raise InputError(f"{folder} holds no evaluation that can be read ({error})") from None
    except (ValueError, TypeError, IndexError, AttributeError, ArithmeticError) as error:  # a value, maybe a text
        raise InputError(f"{folder} holds no evaluation that can be read ({describe_error(error)})") from None
    return System(name, (records,), task, folder, metrics)


def _check_metrics(metrics: dict, name: object) -> None:
    """Raises InputError unless metrics.json has the form in which evaluations save it."""
    rows = metrics.get("rows", {})
    if not isinstance(name, str) or not isinstance(metrics.get("settings"), dict | None):
        raise InputError("metrics.json: name must be a text, and settings an object")
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise InputError("metrics.json: rows must be an object of objects")
    for row in rows.values():
        for metric, value in row.items():
            check_number(f"metrics.json: {metric}", value, FINITE)


def _check_record(record: dict, task: Task) -> None:
    """Raises one of Python's errors unless a record has what comparisons and their page read."""
    if not isinstance(record["id"], str | int) or isinstance(record["id"], bool):
        raise InputError("an id must be a text or a whole number")
    _ = record[task.field], first_image(record)
    if not isinstance(record.get("subject"), str | None) or not isinstance(record.get("portrait"), str | None):
        raise InputError("subject and portrait must be texts")
    for metric in task.columns:
        if isinstance(record.get(metric), str | dict):
            raise InputError(f"{metric} must be a number")
        if isinstance(record.get(metric), int | float):
            check_number(metric, float(record[metric]), FINITE)
    for metric, score in task.columns.items():
        if (parts := score.summands(record)) is not None:
            for part in np.asarray(parts, dtype=float):
                check_number(metric, float(part), FINITE)
    if task.answer and not task.lists:
        _ = record[task.answer]
    if task.lists:
        truth, scores = record[task.lists.truth], record.get("scores")
        for names in (record["listed"], [] if record.get("teacher") is None else record["teacher"]):
            if not isinstance(names, list) or not all(isinstance(name, str) for name in [truth, *names]):
                raise InputError("listed and teacher must be lists of names, and the truth a name")
            _ = [task.lists.is_true(name, record) for name in names]
        if scores is not None:
            for score in scores:
                check_number("a score", score, FINITE)
            if len(scores) != len(record["listed"]):
                raise InputError("scores must be as many as names are listed")
        if "disease_count" in record:
            check_number("disease_count", record["disease_count"], FINITE)


def paired_tests(systems: Sequence[System]) -> list[dict]:
    """For every pair of systems and tested score that both have: the difference, its interval, and p.

    Over the cases on which both systems have the score.
    """
    rows = []
    for i, first in enumerate(systems):
        for second in systems[i + 1 :]:
            rows += [
                {"first": first.name, "second": second.name, "metric": metric, **test}
                for metric in first.task.tested
                if metric in first.estimates
                and metric in second.estimates
                and (test := _paired_test(first, second, metric))
            ]
    return rows


def _paired_test(first: System, second: System, metric: str) -> dict | None:
    """None if the two have no case in common."""
    score = first.task.columns[metric]
    (a, had_a), (b, had_b) = (summands(score, system.runs) for system in (first, second))
    both = had_a & had_b
    if not both.any():
        return None
    a, b = a[:, both], b[:, both]
    groups = None if first.groups is None else [group for group, had in zip(first.groups, both, strict=True) if had]
    mean_a, mean_b = a.mean(0), b.mean(0)
    if len(a) != len(b):  # seeds are paired too, where there are as many
        a, b = mean_a[None], mean_b[None]
    width = a.shape[-1]
    gap = bootstrap_sums(
        np.concatenate((a, b), -1),
        lambda sums: score.value(sums[..., :width]) - score.value(sums[..., width:]),
        groups=groups,
    )
    return {**asdict(gap), "p": paired_p_sums(mean_a, mean_b, score.value, groups=groups)}


def same_teacher(systems: Sequence[System]) -> bool:
    """Whether coverage, avoidance and CAR of all systems refer to the same teacher lists."""
    return (
        len({json.dumps([record.get("teacher") for record in run]) for system in systems for run in system.runs}) == 1
    )


def reference_rows(systems: Sequence[System]) -> dict[str, dict[str, Estimate]]:
    """Scores of which the evaluations saved means alone, as the teacher's; those named as ``systems`` are left out.

    A share of cases that are 0 or 1 has Wilson's interval, other means have none (nan).
    """
    found = {}
    for system in systems:
        for name, means in list(system.metrics.get("rows", {}).items())[:-1]:
            if name not in {other.name for other in systems}:
                found[name] = {
                    metric: wilson(means[metric] * len(system.cases), len(system.cases))
                    if e.method == "wilson"
                    else Estimate(means[metric], math.nan, math.nan)
                    for metric, e in system.estimates.items()
                    if metric in means
                }
    return found


def gaps_to(baseline: System, tests: Sequence[dict]) -> list[tuple[str, str, Estimate, float]]:
    """(score, other system, its score minus the baseline's, p) of the tests that have the baseline."""
    found = []
    for row in tests:
        first, e = row["first"] == baseline.name, (row["value"], row["low"], row["high"])
        if first or row["second"] == baseline.name:
            gap = Estimate(0.0 - e[0], 0.0 - e[2], 0.0 - e[1]) if first else Estimate(*e)
            found.append((row["metric"], row["second" if first else "first"], gap, row["p"]))
    return sorted(found, key=lambda row: baseline.task.tested.index(row[0]))


def columns_of(systems: Sequence[System], printed: bool = True) -> list[str]:
    """The scores that any of the systems has. printed: without those that tables leave out."""
    found = [name for name in systems[0].task.columns if any(name in system.estimates for system in systems)]
    return [name for name in found if systems[0].task.columns[name].printed or not printed]


def markdown(systems: Sequence[System], tests: Sequence[dict]) -> str:
    """The tables as text."""
    scores, columns = systems[0].task.columns, columns_of(systems)
    lines = [
        "| | runs | " + " | ".join(scores[name].heading for name in columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for system in systems:
        found = system.estimates
        cells = [
            f"{scores[n].number(found[n].value)} ({scores[n].interval(found[n])})" if n in found else ""
            for n in columns
        ]
        lines.append(f"| {system.name} | {len(system.runs)} | " + " | ".join(cells) + " |")
    if not same_teacher(systems):
        lines += ["", OTHER_TEACHER]
    lines += ["", "| first | second | metric | difference | p |", "|---|---|---|---|---|"]
    for row in tests:
        score, gap = scores[row["metric"]], Estimate(row["value"], row["low"], row["high"])
        cells = [
            row["first"],
            row["second"],
            score.heading,
            f"{score.number(gap.value, '+')} ({score.interval(gap, '+')})",
        ]
        lines.append("| " + " | ".join([*cells, f"{row['p']:.4f}"]) + " |")
    return "\n".join(lines) + "\n"


def table(systems: Sequence[System]) -> str:
    """The scores as CSV, a row per system and score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("system", "runs", "cases", "metric", "value", "low", "high"))
    for system in systems:
        for metric, e in system.estimates.items():
            writer.writerow((system.name, len(system.runs), len(system.cases), metric, e.value, e.low, e.high))
    return text.getvalue()


def as_json(systems: Sequence[System], tests: Sequence[dict]) -> dict:
    """All numbers of the comparison."""
    record = {}
    for system in systems:
        record[system.name] = {
            "runs": len(system.runs),
            "cases": len(system.cases),
            "metrics": {metric: asdict(e) for metric, e in system.estimates.items()},
            "by_seed": {metric: system.by_seed(metric) for metric in system.estimates},
        }
        if system.task.lists:
            record[system.name] |= {
                "ranks": {str(place): count for place, count in sorted(system.ranks().items())},
                "by_training_cases": system.by_commonness() if knows_commonness(system) else None,
                "confusions": system.confusions(),
            }
    return {"systems": record, "paired_tests": list(tests)}


def knows_commonness(system: System) -> bool:
    """Whether the records tell the number of training cases, and so how common each disease is."""
    return all("disease_count" in record for record in system.cases)

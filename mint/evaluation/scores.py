"""Scores of an evaluation: how each follows from the records of its cases, its heading and unit; the printed table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mint.data.preferences import write_jsonl
from mint.evaluation.statistics import Estimate, Value, bootstrap_sums, mean, wilson
from mint.files import make_folder, write_aside

PRECISION, RECALL, F1 = range(3)
FORMATS = {"%": (100, ".1f"), "nats": (1, ".3f"), "ratio": (1, ".2f")}  # unit -> (factor, format of a number)


@dataclass(frozen=True)
class Score:
    """summands: record of a case -> what is summed over the cases, None for a case without this score.

    value: from the sums to the score. unit: "%" (a share, stored in 0 to 1), "nats" or "ratio". marked: whether the
    highest is marked as the best. meaning: what the score is, in a sentence for the page. printed: it is in the tables
    that are read; the others are saved, and under "All scores" of a page.
    """

    heading: str
    summands: Callable[[Mapping], Sequence[float] | np.ndarray | None]
    value: Value = mean
    unit: str = "%"
    marked: bool = True
    meaning: str = ""
    printed: bool = True

    def number(self, value: float, sign: str = "") -> str:
        """A value in the score's unit; sign: "+" writes the sign of positive numbers too."""
        factor, form = FORMATS[self.unit]
        return f"{factor * value:{sign}{form}}"

    def interval(self, e: Estimate, sign: str = "") -> str:
        """The 95 % interval in the score's unit."""
        between = " to " if sign or e.low < 0 else "-"
        return f"{self.number(e.low, sign)}{between}{self.number(e.high, sign)}"


def mean_score(
    field: str, heading: str, unit: str = "%", marked: bool = True, meaning: str = "", printed: bool = True
) -> Score:
    """The mean of a field over the records in which it is not None."""
    return Score(heading, partial(_with_count, field), mean, unit, marked, meaning, printed)


def geometric_mean_score(field: str, heading: str, meaning: str = "") -> Score:
    """The geometric mean of a field of positive ratios."""
    return Score(heading, partial(_logarithm, field), _exp_mean, "ratio", marked=False, meaning=meaning)


def _with_count(field: str, record: Mapping) -> tuple[float, float] | None:
    return None if record.get(field) is None else (float(record[field]), 1.0)


def _logarithm(field: str, record: Mapping) -> tuple[float, float]:
    return float(np.log(record[field])), 1.0


def _exp_mean(sums: np.ndarray) -> np.ndarray:
    return np.exp(mean(sums))


def agreement(sums: np.ndarray) -> np.ndarray:
    """[..., 3]: precision, recall and F1 of what is found. sums: [..., 3]: shared, predicted, in the reference."""
    shared, predicted, reference = np.moveaxis(sums, -1, 0)
    precision, recall = shared / np.maximum(predicted, 1), shared / np.maximum(reference, 1)
    return np.stack((precision, recall, 2 * shared / np.maximum(predicted + reference, 1)), -1)


def summands(score: Score, runs: Sequence[Sequence[Mapping]]) -> tuple[np.ndarray, np.ndarray]:
    """([runs, cases, S] with zeros where a record has no such score, [cases] whether any run has it)."""
    found = [[score.summands(record) for record in run] for run in runs]
    width = next((len(part) for run in found for part in run if part is not None), 1)
    rows = np.array([[(0.0,) * width if part is None else part for part in run] for run in found], dtype=float)
    return rows, np.array([any(run[i] is not None for run in found) for i in range(len(found[0]))])


def estimate(
    columns: Mapping[str, Score], runs: Sequence[Sequence[Mapping]], groups: Sequence[str] | None = None
) -> dict[str, Estimate]:
    """Every score that any of the records has, with its interval, over the cases that have it.

    runs: for each training seed the records of its cases, in one order. groups: see ``bootstrap_sums``. A share of one
    run's cases that are 0 or 1 and not grouped has Wilson's interval, all else the bootstrap's.
    """
    found = {}
    for name, score in columns.items():
        rows, had = summands(score, runs)
        if had.any():
            some = None if groups is None else [group for group, there in zip(groups, had, strict=True) if there]
            grouped = some is not None and len(set(some)) < len(some)
            if score.value is mean and len(runs) == 1 and not grouped and np.isin(rows, (0, 1)).all():
                found[name] = wilson(*rows[0].sum(0))
            else:
                found[name] = bootstrap_sums(rows[:, had], score.value, groups=some)
    return found


def means_table(
    rows: Mapping[str, Mapping[str, Estimate]], columns: Mapping[str, Score], intervals: bool = True
) -> str:
    """A Markdown table: the printed scores that any of the systems has, with or without their intervals."""
    shown = [name for name in columns if columns[name].printed and any(name in means for means in rows.values())]
    lines = ["| | " + " | ".join(columns[name].heading for name in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for system, means in rows.items():
        cells = []
        for name in shown:
            score, e = columns[name], means.get(name)
            interval = f" ({score.interval(e)})" if e and intervals else ""
            cells.append(f"{score.number(e.value)}{interval}" if e else "")
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(means: Mapping[str, Estimate], columns: Mapping[str, Score]) -> str:
    """The printed scores in one line, without their intervals."""
    shown = [(columns[name], columns[name].number(e.value)) for name, e in means.items() if columns[name].printed]
    return ", ".join(f"{score.heading} {number}{' %' * (score.unit == '%')}" for score, number in shown)


def save_scores(
    folder: Path, file: str, records: Iterable[dict], name: str, means: Mapping[str, Estimate], settings: dict, **more
) -> None:
    """Writes the records of the cases to ``file``, and metrics.json last. more: further entries of metrics.json.

    Raises InputError if the folder cannot be written.
    """
    make_folder(folder)
    write_jsonl(folder / file, records)
    scores = {column: asdict(e) for column, e in means.items()}
    record = {"settings": settings, "name": name, "scores": scores, **more}
    write_aside(folder / "metrics.json", json.dumps(record, indent=2) + "\n")

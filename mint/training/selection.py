"""Which checkpoint is the result of a run, and when a run stops early.

Both follow from the rows of ``metrics.jsonl`` alone, so a resumed run decides as an uninterrupted one does. The
evaluation before the first step does not count: its model is not trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mint.errors import InputError


def best_step(rows: Sequence[Mapping], metric: str) -> int | None:
    """The step of the best finite value of ``metric``, the earliest of equal ones; None if there is no value.

    Lower is better for losses and divergences, higher for every other metric.
    """
    sign = 1 if metric.endswith("loss") or metric.startswith("eval/kl/") else -1
    found = [(sign * row[metric], row["step"]) for row in rows if row["step"] > 0 and row.get(metric) is not None]
    return min(found)[1] if found else None


def is_out_of_patience(rows: Sequence[Mapping], metric: str | None, patience: int | None) -> bool:
    """Whether the last ``patience`` evaluations brought no better value of ``metric``; never if either is None."""
    best = best_step(rows, metric) if metric and patience else None
    return best is not None and sum(row["step"] > best and "eval/loss" in row for row in rows) >= patience


def check_metric(row: Mapping, metric: str | None) -> None:
    """Raises InputError if ``metric`` is none of the metrics of an evaluation."""
    if metric is not None and metric not in row:
        known = ", ".join(name for name in row if name.startswith("eval/"))
        raise InputError(f"--best {metric} is no metric of this run's evaluations, which have: {known}")

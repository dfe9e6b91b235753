"""Metrics as means and as lines of text: of a step, of an evaluation, of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

ACCURACY = "rewards/accuracies"
SHOWN = (("loss", "loss", 1), (ACCURACY, "preference accuracy", 100), ("rewards/margins", "margin", 1))


def describe_step(metrics: Mapping, tokens_per_second: float) -> dict[str, str]:
    """What the progress bar shows of a step."""
    margin = metrics.get("rewards/margins")
    shown = {"loss": f"{metrics['loss']:.4f}", "tok/s": f"{tokens_per_second:,.0f}"}
    return shown if margin is None else {**shown, "margin": f"{margin:.3f}"}


def describe_failure(metrics: Mapping, ids: Sequence[str]) -> str:
    """What was not finite in a step. ids: of its pairs."""
    what = "gradient" if math.isfinite(metrics["loss"]) else "loss"
    return f"non-finite {what} (loss {metrics['loss']}, gradient norm {metrics['grad_norm']}) on {ids}"


def describe_evaluation(row: Mapping) -> str:
    """An evaluation as a line, such as "step 20: eval loss 1.232, preference accuracy 87 %, margin 0.52".

    row: ``step`` and the metrics that start with ``eval/``.
    """
    parts = [f"{label} {_show(row[f'eval/{name}'], scale)}" for name, label, scale in SHOWN if f"eval/{name}" in row]
    return f"step {row['step']}: eval {', '.join(parts)}"


def summarize(rows: Sequence[Mapping]) -> str:
    """What changed over a run, such as "eval loss 1.963 -> 1.131, preference accuracy 41 % -> 97 %".

    rows: of ``metrics.jsonl``. Compares the first with the last evaluation; without evaluations, the means over the
    first and the last tenth of the training steps. Empty if there are neither.
    """
    evaluations = [row for row in rows if row.get("eval/loss") is not None]
    if evaluations:
        return "eval " + _compare(evaluations[:1], evaluations[-1:], "eval/")
    steps = [row for row in rows if row.get("loss") is not None]
    if not steps:
        return ""
    tenth = -(-len(steps) // 10)
    over = f" (means of the first and last {tenth} of {len(steps)} steps)" if tenth > 1 else ""
    return "training " + _compare(steps[:tenth], steps[-tenth:], "") + over


def _compare(first: Sequence[Mapping], last: Sequence[Mapping], prefix: str) -> str:
    parts = []
    for name, label, scale in SHOWN[:2]:
        means = [_mean([row.get(prefix + name) for row in rows]) for rows in (first, last)]
        shown = [_show(mean, scale) for mean in means if mean is not None]
        if len(shown) == len(means):
            parts.append(f"{label} {' -> '.join(shown if first != last else shown[:1])}")
    return ", ".join(parts)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _show(value: float, scale: int) -> str:
    return f"{100 * value:.0f} %" if scale == 100 else f"{value:.4g}"

"""Training curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mint.files import file_aside

PANELS = (  # title, unit, metrics
    ("loss", "", ("loss", "eval/loss")),
    ("negative log-likelihood", "nats per token", ("nll_loss", "eval/nll_loss")),
    ("reward margin", "", ("rewards/margins", "eval/rewards/margins")),
    ("reward accuracy", "share of pairs", ("rewards/accuracies", "eval/rewards/accuracies")),
    ("log-probability of an answer", "nats", ("logps/chosen", "logps/rejected")),
    ("learning rate", "", ("lr",)),
    ("gradient norm, before clipping", "", ("grad_norm",)),
)
NOISY = 20  # points from which a smoothed line is drawn over the raw one
WINDOW = 0.05  # of the smoothing, on either side, as a share of the points
EXACT = ("lr",)  # metrics without noise


def smooth(values: Sequence[float], reach: int) -> np.ndarray:
    """Means over 2 * reach + 1 values, [n - 2 * reach]: none within ``reach`` of an end, where they would be biased."""
    width = 2 * reach + 1
    return np.convolve(values, np.full(width, 1 / width), "valid")


def plot_curves(rows: list[dict], path: Path) -> None:
    """Writes a PNG with one panel per group of metrics in ``rows`` (of ``metrics.jsonl``); without any, no file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(*words, [n for n in names if any(r.get(n) is not None for r in rows)]) for *words, names in PANELS]
    panels = [panel for panel in panels if panel[-1]]
    if not panels:
        return
    columns = 3 if len(panels) <= 6 else 4
    lines = -(-len(panels) // columns)
    size = (4.8 * columns, 3.9 * lines)
    figure, axes = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, (title, unit, names) in zip(axes.flat, panels, strict=False):
        for colour, name in enumerate(names):
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            steps, values = zip(*points, strict=True)
            line = {"color": f"C{colour}", "label": name, "linewidth": 2}
            if name in EXACT or name.startswith("eval/") or len(points) < NOISY:
                axis.plot(steps, values, marker="" if name in EXACT else "o", markersize=5, **line)
            else:
                axis.plot(steps, values, color=f"C{colour}", alpha=0.3, linewidth=1)
                reach = max(1, round(WINDOW * len(points)))
                axis.plot(steps[reach:-reach], smooth(values, reach), **line)
        axis.set_title(title, fontsize=14)
        axis.set_xlabel("step", fontsize=12)
        axis.set_ylabel(unit, fontsize=12)
        axis.tick_params(labelsize=11)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.ticklabel_format(axis="y", style="plain" if title != "learning rate" else "sci", scilimits=(-3, 4))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=11)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    if len(rows) >= NOISY:
        figure.suptitle(
            "Pale: each step. Strong: mean over the steps around, not drawn at the ends.",
            fontsize=11,
            x=0.01,
            ha="left",
        )
    with file_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    pyplot.close(figure)

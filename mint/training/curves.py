"""Training curves as a picture."""

from __future__ import annotations

from pathlib import Path

from mint.files import file_aside

PANELS = (
    ("loss", ("loss", "eval/loss", "nll_loss")),
    ("reward margin", ("rewards/margins", "eval/rewards/margins")),
    ("reward accuracy", ("rewards/accuracies", "eval/rewards/accuracies")),
    ("log-probability", ("logps/chosen", "logps/rejected")),
    ("learning rate", ("lr",)),
    ("gradient norm", ("grad_norm",)),
)


def plot_curves(rows: list[dict], path: Path) -> None:
    """Writes a PNG with one panel per group of metrics in ``rows`` (of ``metrics.jsonl``); without any, no file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(title, [n for n in names if any(r.get(n) is not None for r in rows)]) for title, names in PANELS]
    panels = [(title, names) for title, names in panels if names]
    if not panels:
        return
    figure, axes = pyplot.subplots(
        (len(panels) + 2) // 3, 3, figsize=(13, 3.2 * ((len(panels) + 2) // 3)), squeeze=False, layout="constrained"
    )
    for axis, (title, names) in zip(axes.flat, panels, strict=False):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            steps, values = zip(*points, strict=True)
            marker = "o" if name.startswith("eval/") else ("." if len(points) == 1 else "")
            axis.plot(steps, values, marker=marker, linewidth=1.2, markersize=4, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        if len(names) > 1:
            axis.legend(fontsize=7)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    with file_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    pyplot.close(figure)

"""Attention to the lesion by decoder layer: means over the records with intervals, and their picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mint.evaluation.scores import Score, estimate, geometric_mean_score, mean_score
from mint.files import file_aside

QUERIES = {"prompt": "last prompt token", "span": "changed words"}
PANELS = {  # metric -> title and unit
    "attention_ratio": "attention ratio, lesion over elsewhere",
    "kl": "KL from the lesion to the attention (nats)",
    "js": "JS of lesion and attention (nats)",
}
EVEN = "even"  # instead of a query: the same attention on all image tokens


def layer_means(records: Sequence[Mapping], groups: Sequence[str] | None = None) -> dict[str, dict[str, list[dict]]]:
    """query -> metric of ``PANELS`` -> for each decoder layer value, low and high (95 %).

    records: with ``layers``, query -> metric -> [layers] (``attention_on_lesion.by_layer``); without any, {}. The ratio
    has a geometric mean. ``EVEN`` stands for even attention, the same in every layer. groups: see ``estimate``.
    """
    if not records or any("layers" not in record for record in records):
        return {}
    shape = records[0]["layers"]
    names = [(q, metric, i) for q, rows in shape.items() for metric, row in rows.items() for i in range(len(row))]
    flat = [{f"{q}/{metric}/{i}": record["layers"][q][metric][i] for q, metric, i in names} for record in records]
    columns: dict[str, Score] = {}
    for query, metric, layer in names:
        mean = geometric_mean_score if metric == "attention_ratio" else mean_score
        columns[f"{query}/{metric}/{layer}"] = mean(f"{query}/{metric}/{layer}", metric)
    found = {name: asdict(e) for name, e in estimate(columns, [flat], groups).items()}
    return {
        query: {metric: [found[f"{query}/{metric}/{i}"] for i in range(len(row))] for metric, row in rows.items()}
        for query, rows in shape.items()
    }


def plot_layers(means: Mapping[str, Mapping[str, Sequence[Mapping]]], title: str, path: Path) -> None:
    """Writes a PNG: a panel for each metric over the layers, a line with its interval for each query.

    means: as :func:`layer_means` returns them. A dashed line is even attention.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(4.8 * len(PANELS), 4.2), layout="constrained")
    for axis, (metric, heading) in zip(axes, PANELS.items(), strict=True):
        for colour, (query, label) in enumerate(QUERIES.items()):
            value, low, high = ([e[part] for e in means[query][metric]] for part in ("value", "low", "high"))
            layers = range(1, len(value) + 1)
            axis.plot(layers, value, color=f"C{colour}", marker="o", markersize=4, linewidth=2, label=label)
            axis.fill_between(layers, low, high, color=f"C{colour}", alpha=0.2, linewidth=0)
        even = means[EVEN][metric][0]["value"]
        axis.axhline(even, color="#666e7a", linestyle="--", linewidth=1.5, label="even attention")
        axis.set_title(heading, fontsize=12)
        axis.set_xlabel("decoder layer", fontsize=12)
        axis.tick_params(labelsize=11)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=11)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    with file_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    pyplot.close(figure)

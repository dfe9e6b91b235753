"""Grounding and clinical accuracy of all rows, on the ward, on balanced and on reversed patients.

Each row's learning rate is chosen from the same ones, by its clinical accuracy on patients and pairs that are in no
table. ``rates.json`` holds the choice, ``ward/table.md`` and so on the tables, ``rows.png`` and ``layers.png`` the
figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.fire.methods import ABLATIONS, METHODS, OURS, WIDER, compare
from benchmarks.fire.ward import BASE, TestSet, Ward, jobs, read_rows, sample, slug
from mint.data.preferences import read_preferences, write_jsonl
from mint.data.record_images import find_images
from mint.demo.arms import Arm, Job, logged, side_by_side
from mint.demo.radiograph_demo import load
from mint.files import file_aside, read_json, write_aside
from mint.tasks.attention_layers import EVEN, QUERIES, layer_means
from mint.tasks.attention_on_lesion import look

EVERY = "FiRe, v' of every record"
ABLATED = ("FiRe, no image term", WIDER, f"{WIDER}, no image term", "FiRe, v1", "FiRe, v2")
ROWS = METHODS | {row: ABLATIONS[row] for row in ABLATED}
ROWS |= {EVERY: METHODS[OURS], "mDPO, lesion hidden": METHODS["mDPO"]}
# Which records have a corrupted image, and what it hides. presence: the lesion, where the false answer becomes true.
# every: the paper's rule: the lesion, or noise over the whole image where there is none. crop: mDPO's own, everywhere.
VIEWS = {"mDPO": "crop", "mDPO, lesion hidden": "every", EVERY: "every"}
RATES = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
DRAWN = (BASE, "DPO", "RRPO, KL on spans", "mDPO", "FiRe, no image term", OURS, WIDER)  # in the figure of attention
LOOKED = 200  # records of balanced patients on which attention is measured
SHOWN = {"clinical": "clinical accuracy, per cent", "difference": "drop of log p: lesion - elsewhere, nats"}


def find_grounding(ward: Ward, rows: Sequence[str], rates: Sequence[float]) -> str:
    """Chooses rates, trains and scores what is missing; writes the tables and figures, and returns the tables."""
    tuning = {row: [arm_of(ward, row, "tuning", rate) for rate in rates] for row in rows}
    side_by_side(jobs([arm for arms in tuning.values() for arm in arms], ward.tuned))
    chosen = choose_rates(ward, tuning)
    arms = {row: [arm_of(ward, row, place, chosen[row]) for place in ward.places] for row in rows}
    by_seed = [arm for some in zip(*arms.values(), strict=True) for arm in some]
    side_by_side(jobs(by_seed, ward.unseen))
    every = {BASE: [ward.base("unseen")], **arms}
    side_by_side(attention_jobs([arm for some in every.values() for arm in some], ward.unseen))
    return write_tables(ward, every)


def arm_of(ward: Ward, row: str, place: str, rate: float) -> Arm:
    """A row trained on the pairs in the folder ``place``."""
    pairs, folder = VIEWS.get(row, "presence"), f"{slug(row)}/{rate:g}"
    return ward.arm(row, place, {**ROWS[row], "lr": rate}, pairs, folder)


def choose_rates(ward: Ward, arms: Mapping[str, Sequence[Arm]]) -> dict[str, float]:
    """The learning rate of each row with the best clinical accuracy, mean over the populations; writes all of them."""
    found: dict[str, dict[str, float]] = {}
    for row, some in arms.items():
        files = [[arm.folder / test.name / "metrics.json" for test in ward.tuned] for arm in some]
        scores = [np.mean([read_json(file)["scores"]["clinical"]["value"] for file in sets]) for sets in files]
        found[row] = {f"{arm.settings['lr']:g}": float(one) for arm, one in zip(some, scores, strict=True)}
    write_aside(ward.root / "rates.json", json.dumps(found, indent=2) + "\n")
    return read_rates(ward.root)


def read_rates(root: Path) -> dict[str, float]:
    """The learning rate of each row that ``choose_rates`` chose."""
    found = read_json(root / "rates.json")
    return {row: float(max(scores, key=scores.__getitem__)) for row, scores in found.items()}


def describe_rates(root: Path) -> str:
    """The chosen learning rates; those at the edge of what was tried may not be the best."""
    tried = {row: list(map(float, scores)) for row, scores in read_json(root / "rates.json").items()}
    lines = [
        f"{row} {rate:g}{' (at the edge of those tried)' * (rate in (min(tried[row]), max(tried[row])))}"
        for row, rate in read_rates(root).items()
    ]
    return f"learning rates: {'; '.join(lines)}\n"


def attention_file(arm: Arm, test: TestSet) -> Path:
    return arm.folder / test.name / "attention.jsonl"


def attention_jobs(arms: Sequence[Arm], sets: Sequence[TestSet]) -> list[Job]:
    """What has no attention measured yet, on balanced patients."""
    (test,) = (one for one in sets if one.name == "balanced")
    left = [arm for arm in arms if not attention_file(arm, test).is_file()]
    return [(f"attention of {arm.name}, {arm.folder}", measure_attention, (arm, test)) for arm in left]


def measure_attention(arm: Arm, test: TestSet) -> None:
    """A job: the attention to the lesion in every layer."""
    file = test.folder / "contrasts.jsonl"
    records = sample(find_images(read_preferences(file), file), LOOKED)
    with logged(arm.folder / "attention.log"):
        found = look(*load(*arm.trained, arm.hardware), records, file)
        rows = [{"id": one.id, "images": one.images, **row} for one, row in zip(records, found, strict=True) if row]
        write_jsonl(attention_file(arm, test), rows)


def write_tables(ward: Ward, rows: Mapping[str, Sequence[Arm]]) -> str:
    """The table of every population, and the figures; returns the tables."""
    tables = []
    for test in ward.unseen:
        folders = {row: [arm.folder / test.name for arm in arms] for row, arms in rows.items()}
        tables.append(f"{test.name}\n\n{compare(folders, ward.root / test.name)}")
    tables.append(describe_rates(ward.root))
    for name, figure in (("rows", draw_rows(ward)), ("layers", draw_layers(ward, rows))):
        with file_aside(ward.root / f"{name}.png") as aside:
            figure.savefig(aside, dpi=150, bbox_inches="tight")
    return "\n".join(tables)


def draw_rows(ward: Ward) -> Figure:
    """A column of panels for each of ``SHOWN``'s scores; bars are 95 % intervals."""
    tables = {test.name: read_json(ward.root / test.name / "table.json")["rows"] for test in ward.unseen}
    names = list(next(iter(tables.values())))[::-1]
    figure = Figure(figsize=(6 * len(SHOWN), 0.35 * len(names) + 1.5))
    for panel, (score_name, title) in enumerate(SHOWN.items(), 1):
        axes = figure.add_subplot(1, len(SHOWN), panel)
        scale = 100 if score_name == "clinical" else 1
        for shift, (population, table) in zip(np.linspace(0.2, -0.2, len(tables)), tables.items(), strict=True):
            found = [table[name][score_name] for name in names]
            middle = [scale * e["value"] for e in found]
            reach = [[scale * abs(e["value"] - e[end]) for e in found] for end in ("low", "high")]
            places = np.arange(len(names)) + shift
            axes.errorbar(middle, places, xerr=reach, fmt="o", markersize=4, capsize=2, label=population)
        axes.set(title=title, yticks=range(len(names)), yticklabels=names if panel == 1 else [])
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def draw_layers(ward: Ward, rows: Mapping[str, Sequence[Arm]]) -> Figure:
    """The attention ratio over the decoder layers: a panel for each query, a line with its interval for each row."""
    (test,) = (one for one in ward.unseen if one.name == "balanced")
    figure = Figure(figsize=(6 * len(QUERIES), 4.5), layout="constrained")
    panels = figure.subplots(1, len(QUERIES), sharey=True)
    for row in (row for row in rows if row in DRAWN):
        records = [record for arm in rows[row] for record in read_rows(attention_file(arm, test))]
        means = layer_means(records, [record["images"][0] for record in records])
        for axes, (query, title) in zip(panels, QUERIES.items(), strict=True):
            value, low, high = ([e[part] for e in means[query]["attention_ratio"]] for part in ("value", "low", "high"))
            layers = range(1, len(value) + 1)
            (line,) = axes.plot(layers, value, marker="o", markersize=4, label=row)
            axes.fill_between(layers, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
            axes.set(title=title, xlabel="decoder layer")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
    for axes in panels:
        axes.axhline(means[EVEN]["attention_ratio"][0]["value"], color="grey", linestyle="--", linewidth=1)
    panels[0].set_ylabel("attention ratio, lesion over elsewhere")
    panels[0].legend(fontsize=8)
    return figure

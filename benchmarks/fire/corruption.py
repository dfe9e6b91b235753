"""Where and how to corrupt an image, against how easily the corruption itself is recognised.

The paper's reading is that crops and black boxes fail because they are recognisable as such. For each kind: FiRe's gain
over itself without the image term, all at FiRe's learning rate, and how often a linear probe of the tower's features
separates corrupted images from clean ones. ``corruption.md`` has the table, ``corruption.png`` the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure

from benchmarks.fire.grounding import read_rates
from benchmarks.fire.methods import ABLATIONS, METHODS, OURS, cell, lead_over, read_scores
from benchmarks.fire.probe import probe, tower_features
from benchmarks.fire.ward import Ward, jobs, slug
from mint.data.preferences import read_preferences
from mint.data.record_images import find_images
from mint.demo.arms import Arm, side_by_side
from mint.demo.radiograph_demo import Seeing, load
from mint.evaluation.statistics import Estimate, bootstrap
from mint.files import file_aside, write_aside

WITHOUT = "FiRe, no image term"
KINDS = {  # what is hidden -> (the row, its pairs)
    "lesion, inpainted": (OURS, "presence"),
    "lesion, noise": ("FiRe, noise on the lesion", "presence-noise"),
    "lesion, black": ("FiRe, lesion black", "presence-black"),
    "whole image, noise": ("FiRe, noise everywhere", "presence-global"),
    "crop": ("FiRe, crop", "presence-crop"),
}
GAINS = {"clinical": ("clinical accuracy, points", 100), "difference": ("lesion - elsewhere, nats", 1)}
Gains = dict[str, tuple[Estimate, float]]  # of GAINS: score -> (gain, p)
LEARNT, ASKED = "tuning", "seed-0"  # places whose images the probe learns from, and is asked about


def find_corruption(ward: Ward) -> str:
    """Trains and scores what is missing; writes a table for each population and the figure, and returns the tables."""
    arms, without = arms_of(ward)
    side_by_side(jobs([arm for some in zip(without, *arms.values(), strict=True) for arm in some], ward.unseen))
    loaded = load(str(ward.policy), None, ward.hardware)
    told = {kind: recognised(ward, loaded, pairs) for kind, (_, pairs) in KINDS.items()}
    found = {test.name: {kind: gains(some, without, test.name) for kind, some in arms.items()} for test in ward.unseen}
    first = next(iter(arms))
    leads = {test.name: {kind: gains(arms[first], arms[kind], test.name) for kind in arms} for test in ward.unseen}
    text = "\n\n".join(f"corruption, {name}\n\n{table(told, some, leads[name])}" for name, some in found.items())
    with file_aside(ward.root / "corruption.png") as aside:
        draw(told, found).savefig(aside, dpi=150, bbox_inches="tight")
    write_aside(ward.root / "corruption.md", text + "\n")
    return text


def table(told: Mapping[str, Estimate], found: Mapping[str, Gains], leads: Mapping[str, Gains]) -> str:
    """A row for each kind: how often the probe tells it, what is gained, and by how much the first kind is ahead."""
    heads = [f"{heading} | p" for heading, _ in GAINS.values()]
    heads.append(f"{next(iter(told))}, is ahead by (nats) | p")
    lines = [f"| hidden | probe: corrupted or clean (%) | {' | '.join(heads)} |", "|---" * (2 * len(heads) + 2) + "|"]
    for kind, e in told.items():
        measured = [*found[kind].items(), ("difference", leads[kind]["difference"])]
        cells = [f"{cell(gain, name, '+')} | {p:.4f}" for name, (gain, p) in measured]
        lines.append(f"| {kind} | {cell(e, 'told')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def arms_of(ward: Ward) -> tuple[dict[str, list[Arm]], list[Arm]]:
    """(the arms of each kind, those without the image term), one for each seed, all at FiRe's learning rate."""
    rate = read_rates(ward.root)[OURS]

    def seeds(row: str, method: Mapping, pairs: str) -> list[Arm]:
        settings, folder = {**method, "lr": rate}, f"{slug(row)}/{rate:g}"
        return [ward.arm(row, place, settings, pairs, folder) for place in ward.places]

    kinds = {kind: seeds(row, METHODS[OURS], pairs) for kind, (row, pairs) in KINDS.items()}
    return kinds, seeds(WITHOUT, ABLATIONS[WITHOUT], "presence")


def recognised(ward: Ward, policy: Seeing, name: str) -> Estimate:
    """How often a linear probe tells the corrupted images of a file from their clean ones, on other patients."""
    features, labels, names = [], [], []
    for place in (LEARNT, ASKED):
        file = ward.root / place / f"{name}.jsonl"
        shown = [one for one in find_images(read_preferences(file), file, corrupted=True) if one.corrupted_images]
        once = {one.images[0]: one.corrupted_images[0] for one in shown}  # of each patient, one of either
        names = [*once, *once]
        features.append(tower_features(policy[0], policy[2], [*once, *once.values()]))
        labels.append(torch.arange(2).repeat_interleave(len(once)))
    right = probe(features[0], labels[0], features[1], labels[1]).double().numpy()
    return bootstrap(right[None], groups=names)


def gains(arms: Sequence[Arm], others: Sequence[Arm], population: str) -> Gains:
    """What a row gains over another one, paired by patient and seed."""
    ours, theirs = (read_scores([arm.folder / population for arm in some]) for some in (arms, others))
    return {name: lead_over(ours[name], theirs[name]) for name in GAINS}


def draw(told: Mapping[str, Estimate], found: Mapping[str, Mapping[str, Gains]]) -> Figure:
    """A row of panels for each gain, a column for each population; bars are 95 % intervals."""
    figure = Figure(figsize=(5 * len(found), 3.5 * len(GAINS)), layout="constrained")
    panels = figure.subplots(len(GAINS), len(found), sharex=True, sharey="row")
    for row, (name, (heading, scale)) in zip(panels, GAINS.items(), strict=True):
        for axes, (population, some) in zip(row, found.items(), strict=True):
            for kind, e in told.items():
                gain, _ = some[kind][name]
                middle, reach = scale * gain.value, [[scale * abs(gain.value - end)] for end in (gain.low, gain.high)]
                axes.errorbar(100 * e.value, middle, yerr=reach, fmt="o", capsize=3, label=kind)
            axes.axhline(0, color="grey", linestyle="--", linewidth=1)
            axes.set(title=population)
            axes.grid(alpha=0.3)
        row[0].set_ylabel(f"gain: {heading}")
    figure.supxlabel("accuracy of a linear probe: corrupted or clean (%)")
    panels[0][0].legend(fontsize=8)
    return figure

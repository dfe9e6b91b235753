"""The methods of FiRe-MPO's comparison, trained on the same pairs of one policy, and the table of their scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mint.config import TrainConfig
from mint.data.preferences import image_names
from mint.demo.radiograph_demo import ALIGN, score
from mint.evaluation.statistics import Estimate, bootstrap, paired_p
from mint.files import make_folder, write_aside
from train import train

OURS, WIDER = "FiRe", "FiRe, KL on the answer"  # the paper's form, and the one with RRPO's KL
METHODS = {
    "SFT": {"loss": "sft"},
    "DPO": {"loss": "dpo"},
    "RRPO": {"loss": "rrpo"},
    "RRPO, KL on spans": {"loss": "fire", "gamma": 0.0, "lam": 1.0},  # the FiRe-MPO paper's baseline
    "mDPO": {"loss": "mdpo"},
    "MASK-DPO": {"loss": "mask-dpo"},
    OURS: {"loss": "fire"},
}
ABLATIONS = {
    "FiRe, no forward KL": {"loss": "fire", "lam": 0.0},
    "FiRe, no reverse KL": {"loss": "fire", "lam": 1.0},
    "FiRe, no KL": {"loss": "fire", "alpha": 0.0},
    "FiRe, no image term": {"loss": "fire", "gamma": 0.0},
    WIDER: {"loss": "fire", "loss_args": {"kl_over": "all"}},
    f"{WIDER}, no image term": {"loss": "fire", "gamma": 0.0, "loss_args": {"kl_over": "all"}},
    "FiRe, v1": {"loss": "fire", "visual": "v1"},
    "FiRe, v2": {"loss": "fire", "visual": "v2"},
}
ON_IMAGES = {row: (METHODS | ABLATIONS)[row] for row in ("SFT", "DPO", "RRPO", OURS, WIDER)}  # compared on real ones
ANSWERS = {
    "clinical": "clinical accuracy",
    "facts": "F1 of facts in reports",
    "closed": "closed accuracy",
    "open": "open recall",
}
LOOKING = {
    "drop_lesion": "drop, lesion",
    "drop_elsewhere": "drop, elsewhere",
    "difference": "lesion - elsewhere",
    "flip_lesion": "flips, lesion",
    "flip_elsewhere": "flips, elsewhere",
}
DRIFT = {"kl": "KL to the reference"}
PARTS = ((ANSWERS, "predictions.jsonl"), (LOOKING, "sensitivity/pairs.jsonl"), (DRIFT, "kl.jsonl"))
NATS = ("drop_lesion", "drop_elsewhere", "difference", *DRIFT)
Scores = tuple[np.ndarray, list[str]]  # [runs, items], the image of each item
LAST = Path("scores") / "sensitivity" / "metrics.json"  # what a run writes last


def row_config(settings: dict, **more) -> TrainConfig:
    """The training settings of a row: the demo's, then ``more``, then its own ``settings``."""
    return TrainConfig(**{**ALIGN, **more, **settings})


def align(
    model: str, pairs: Path, out: Path, methods: dict[str, dict], common: dict, unseen: Path, records: dict
) -> Iterator[tuple[str, Path]]:
    """(row, folder of its scores) of every method, trained from ``model`` on the file ``pairs`` unless already done.

    common: settings beside the demo's. unseen, records: the evaluation set, as ``score`` takes it.
    """
    for row, settings in methods.items():
        folder = out / row.lower().replace(",", "").replace(" ", "-")
        if not (folder / LAST).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            train(row_config(settings, **common, model=model, data=str(pairs), out=str(folder), device="cpu"))
            print(score(row, model, folder / "adapter", folder / "scores", unseen, records), flush=True)
        yield row, folder / "scores"


def read_scores(folders: Sequence[Path]) -> dict[str, Scores]:
    """score -> its numbers, of several runs of one row; what has no score is left out."""
    found = {}
    for names, file in PARTS:
        if not (folders[0] / file).is_file():
            continue
        runs = [
            [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]
            for folder in folders
        ]
        for name in names:
            had = [i for i in range(len(runs[0])) if all(run[i].get(name) is not None for run in runs)]
            if not had:
                continue
            images = [next(iter(image_names(run)), run["id"].rpartition("-")[0]) for run in (runs[0][i] for i in had)]
            found[name] = np.array([[run[i][name] for i in had] for run in runs]), images
    return found


def compare(rows: dict[str, list[Path]], out: Path) -> str:
    """The table of all rows, and by what FiRe leads each, as text; saved in ``out`` as table.md and table.json.

    FiRe has two forms, the paper's and ``WIDER``; each is compared with all other rows that there are.

    Intervals resample images (with all their questions) and, where a row has several, seeds. Flips are of pairs that
    were right in every run, so their items differ from row to row and are not compared pair by pair.
    """
    scores = {row: read_scores(folders) for row, folders in rows.items()}
    columns = {
        name: title
        for name, title in (ANSWERS | LOOKING | DRIFT).items()
        if all(name in some for some in scores.values())
    }
    estimates = {
        row: {name: bootstrap(some[name][0], groups=some[name][1]) for name in columns} for row, some in scores.items()
    }
    lines = ["| | runs | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 2) + "|"]
    for row, found in estimates.items():
        cells = [cell(found[name], name) for name in columns]
        lines.append(f"| {row} | {len(rows[row])} | " + " | ".join(cells) + " |")
    compared = [name for name in ("clinical", "facts", "difference") if name in columns]
    leads: dict[str, dict] = {leader: {} for leader in (OURS, WIDER) if leader in rows}
    for leader, found in leads.items():
        lines += ["", f"| lead of {leader} over | " + " | ".join(f"{columns[name]} | p" for name in compared) + " |"]
        lines.append("|---" * (2 * len(compared) + 1) + "|")
        for row in (row for row in rows if row != leader):
            found[row] = {name: lead_over(scores[leader][name], scores[row][name]) for name in compared}
            cells = [f"{cell(e, name, sign='+')} | {p:.4f}" for name, (e, p) in found[row].items()]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    record = {
        "rows": {row: {name: vars(e) for name, e in found.items()} for row, found in estimates.items()},
        "by_seed": {row: {name: some[name][0].mean(1).tolist() for name in columns} for row, some in scores.items()},
        "leads": {
            leader: {row: {name: {**vars(e), "p": p} for name, (e, p) in some.items()} for row, some in found.items()}
            for leader, found in leads.items()
        },
    }
    make_folder(out)
    write_aside(out / "table.json", json.dumps(record, indent=2) + "\n")
    write_aside(out / "table.md", text)
    return text


def lead_over(ours: Scores, theirs: Scores) -> tuple[Estimate, float]:
    """(the mean difference of two rows on the same items, its p-value).

    Paired by seed where both have as many runs, or either has one.
    """
    (a, images), (b, _) = ours, theirs
    gap = a - b if len(a) == len(b) or 1 in (len(a), len(b)) else (a.mean(0) - b.mean(0))[None]
    return bootstrap(gap, groups=images), paired_p(a.mean(0), b.mean(0), groups=images)


def cell(e: Estimate, name: str, sign: str = "") -> str:
    """A score with its interval, in the unit of :func:`scale`. sign: "+" for differences."""
    factor, form = scale(name), f"{sign}.{2 if name in NATS else 1}f"
    return f"{factor * e.value:{form}} ({factor * e.low:{form}} to {factor * e.high:{form}})"


def scale(name: str) -> int:
    """What a score is multiplied by where it is shown: nats and words are as they are, shares in per cent."""
    return 1 if name in (*NATS, "words") else 100

"""FiRe-MPO's comparison on a ward with its own habits, over several seeds.

    python -m benchmarks.radiograph_seeds --out DIR [--seeds 3] [--rows DPO FiRe] [--model DIR]

A policy is taught on the patients of a ward, whose findings are correlated (``mint.synthetic.populations``). Its
answers about other patients of this ward are edited and their lesions hidden. Every method starts from it with the
same pairs and trains an adapter of the language model alone. They are scored on unseen patients of the ward, on
balanced ones, and on patients with the reversed correlations: the answers, and whether these depend on the lesion.
Each method's learning rate is chosen from the same ones, by its clinical accuracy on patients and pairs that are in
no table.

A command that was stopped goes on where it was. ``rates.json`` holds the choice of the learning rates,
``ward/table.md`` and so on the tables, ``rows.png`` the figure.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.command import make_parser, run
from benchmarks.divergence import divergences
from benchmarks.fire_methods import ABLATIONS, METHODS, OURS, compare
from mint.data.preferences import Preference, read_preferences, write_jsonl
from mint.demo.arms import Arm, Job, load_train, logged, run_arm, side_by_side
from mint.demo.radiograph_demo import (
    DESCRIBING,
    MODE,
    TEACH,
    contrast_images,
    edit_answers,
    hide_lesions,
    score,
    write_asked,
    write_lessons,
    write_unseen,
)
from mint.demo.stages import teach
from mint.errors import InputError
from mint.files import file_aside, folder_aside, read_json, write_aside
from mint.prefs.question_files import read_asked
from mint.prefs.rules_editor import true_without_lesion
from mint.synthetic.populations import BALANCED, POPULATIONS, WARD

BASE, EVERY = "base", "FiRe, v' of every record"
ROWS = METHODS | {row: ABLATIONS[row] for row in ("FiRe, no image term", "FiRe, v1", "FiRe, v2")}
ROWS |= {EVERY: METHODS[OURS], "mDPO, lesion hidden": METHODS["mDPO"]}
# Which records have a corrupted image, and what it hides. presence: the lesion, where the false answer becomes true.
# every: the paper's rule: the lesion, or noise over the whole image where there is none. crop: mDPO's own, everywhere.
VIEWS = {"mDPO": "crop", "mDPO, lesion hidden": "every", EVERY: "every"}
RATES = (1e-5, 3e-5, 1e-4, 3e-4)
RECIPE = {"batch_size": 16, "lora_rank": 64, "lora_alpha": 128.0, "rslora": True, "lora_targets": "all-linear"}
STEPS, TUNING = 320, 100  # of 16 pairs; seed of the runs that choose a learning rate
TUNED, UNSEEN = (100, 500), (300, 80)  # patients of each population, and their seed
ASKING = 210  # seed of the patients that the policy is asked about; one more for each place
SHOWN = {"clinical": "clinical accuracy, per cent", "difference": "drop of log p: lesion - elsewhere, nats"}


@dataclass(frozen=True)
class TestSet:
    """Unseen patients of one population. folder: their files. contrasts: as ``contrast_images`` returns them."""

    name: str
    folder: Path
    contrasts: Mapping[str, list[Preference]] = field(repr=False)


@dataclass(frozen=True)
class Study:
    """The experiment in ``root``. policy: directory of the model that all rows start from."""

    root: Path
    policy: Path
    rows: Sequence[str]
    seeds: int
    steps: int
    rates: Sequence[float]

    def sets(self, name: str, count: int, seed: int) -> list[TestSet]:
        """The test sets of all populations in the folder ``name``, drawn unless they are there."""
        found = []
        for place, (population, patients) in enumerate(POPULATIONS.items()):
            folder = self.root / name / population
            if not (folder / "contrasts.jsonl").is_file():
                write_unseen(folder, count, seed + place, patients)
            found.append(TestSet(population, folder, contrast_images(folder, folder / "contrasts")))
        return found

    @cached_property
    def tuned(self) -> list[TestSet]:
        return self.sets("tuning", *TUNED)

    @cached_property
    def unseen(self) -> list[TestSet]:
        return self.sets("unseen", *UNSEEN)

    def arm(self, row: str, place: str, rate: float) -> Arm:
        """A row trained on the pairs in the folder ``place``."""
        slug, pairs = re.sub(r"\W+", "-", row.lower()), self.root / place / f"{VIEWS.get(row, 'presence')}.jsonl"
        folder = self.root / place / slug / f"{rate:g}"
        seed = self.places.index(place) if place in self.places else TUNING
        settings = {**RECIPE, **ROWS[row], "data": str(pairs), "steps": self.steps, "lr": rate, "seed": seed}
        return Arm(row, folder, self.policy, settings)

    def base(self, name: str) -> Arm:
        """The policy as it is, on the sets of the folder ``name``."""
        return Arm(BASE, self.root / name / BASE, self.policy)

    @property
    def places(self) -> list[str]:
        return [f"seed-{seed}" for seed in range(self.seeds)]


def run_study(args: argparse.Namespace) -> str:
    """Draws, trains and scores what is missing; writes the tables and the figure, and returns the tables.

    Raises InputError for numbers out of range, or a folder whose runs have other settings.
    """
    if min(args.seeds, args.steps) < 1 or min(args.rates) <= 0:
        raise InputError("--seeds and --steps must be at least 1, --rates greater than 0")
    root = Path(args.out)
    policy = Path(args.model) if args.model else teach_policy(root)
    study = Study(root, policy, args.rows, args.seeds, args.steps, args.rates)
    places = ["tuning", *study.places]
    asked = [(f"pairs of {place}", write_pairs, (root / place, policy, ASKING + i)) for i, place in enumerate(places)]
    side_by_side([job for job in asked if not (job[2][0] / "presence.jsonl").is_file()])
    side_by_side(jobs([study.base("tuning")], study.tuned) + jobs([study.base("unseen")], study.unseen))
    tuning = {row: [study.arm(row, "tuning", rate) for rate in study.rates] for row in study.rows}
    side_by_side(jobs([arm for arms in tuning.values() for arm in arms], study.tuned))
    rates = choose_rates(study, tuning)
    rows = {row: [study.arm(row, place, rates[row]) for place in study.places] for row in study.rows}
    by_seed = [arm for arms in zip(*rows.values(), strict=True) for arm in arms]
    side_by_side(jobs(by_seed, study.unseen))
    return write_tables(study, {BASE: [study.base("unseen")], **rows})


def teach_policy(root: Path) -> Path:
    """A tiny LLaVA that learned to describe balanced patients, then to answer questions about the ward's."""
    if not (root / "policy").is_dir():
        with folder_aside(root / "policy") as aside:
            write_lessons(aside, BALANCED, WARD)
            described = teach(
                aside / "blank", aside / "descriptions.jsonl", DESCRIBING, load_train(), aside / "described"
            )
            teach(described, aside / "lessons.jsonl", TEACH, load_train(), aside / "model")
            shutil.rmtree(described)
    return root / "policy" / "model"


def write_pairs(folder: Path, policy: Path, seed: int) -> None:
    """A job: the policy's answers about patients of the ward, edited, with the three kinds of corrupted images."""
    with logged(folder / "pairs.log"):
        write_jsonl(folder / "questions.jsonl", write_asked(folder, seed, WARD))
        rows = edit_answers(folder, policy)
        hide_lesions(folder, rows, "crop", "crop")
        every = hide_lesions(folder, rows, "every", MODE)
        truths = {asked.id: asked.truth for asked in read_asked(folder / "questions.jsonl")}
        rejected = [record.rejected.text for record in read_preferences(folder / "edited.jsonl") if record.rejected]
        kept = [true_without_lesion(text, truths[row["id"]]) for text, row in zip(rejected, every, strict=True)]
        presence = [row if keep else row | {"corrupted_images": []} for row, keep in zip(every, kept, strict=True)]
        print(f"{sum(kept)} of {len(kept)} records have a false answer that is true once the lesion is hidden")
        write_jsonl(folder / "presence.jsonl", presence)


def jobs(arms: Sequence[Arm], sets: Sequence[TestSet]) -> list[Job]:
    """What is not trained and scored yet. Raises InputError for an arm that was trained with other settings."""
    for arm in arms:
        arm.check()
    left = [(arm, [one for one in sets if not is_scored(arm, one)]) for arm in arms]
    return [(f"{arm.name}, {arm.folder}", run_row, (arm, some)) for arm, some in left if some]


def is_scored(arm: Arm, test: TestSet) -> bool:
    return (arm.folder / test.name / "kl.jsonl").is_file()


def run_row(arm: Arm, sets: Sequence[TestSet]) -> None:
    """A job: trains one arm and scores it on each set. The base's answers are what all divergences are measured on."""
    run_arm(arm)
    for test in sets:
        place, answers = arm.folder / test.name, test.folder / "answers.jsonl"
        with logged(arm.folder / f"{test.name}.log"):
            print(score(arm.name, *arm.trained, place, test.folder, dict(test.contrasts)))
            if not arm.settings:
                write_answers(place / "predictions.jsonl", test.folder / "test.jsonl", answers)
            write_jsonl(place / "kl.jsonl", divergences(*arm.trained, answers))


def write_answers(predictions: Path, questions: Path, out: Path) -> None:
    """The answers of an evaluation as records beside its questions."""
    asked, answered = (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for file in (questions, predictions)
    )
    prompts = [{"id": one["id"], "prompt": one["question"], "images": one["images"]} for one in asked]
    pairs = zip(prompts, answered, strict=True)
    write_jsonl(out, [prompt | {"chosen": one["answer"]} for prompt, one in pairs if one["answer"].strip()])


def choose_rates(study: Study, arms: Mapping[str, Sequence[Arm]]) -> dict[str, float]:
    """The learning rate of each row with the best clinical accuracy, mean over the populations; writes all of them."""
    found = {}
    for row, some in arms.items():
        files = [[arm.folder / test.name / "metrics.json" for test in study.tuned] for arm in some]
        scores = [np.mean([read_json(file)["scores"]["clinical"]["value"] for file in sets]) for sets in files]
        found[row] = {f"{rate:g}": float(one) for rate, one in zip(study.rates, scores, strict=True)}
    write_aside(study.root / "rates.json", json.dumps(found, indent=2) + "\n")
    return {row: float(max(scores, key=scores.__getitem__)) for row, scores in found.items()}


def write_tables(study: Study, rows: Mapping[str, Sequence[Arm]]) -> str:
    """The table of every population, and the figure; returns the tables."""
    tables = []
    for test in study.unseen:
        folders = {row: [arm.folder / test.name for arm in arms] for row, arms in rows.items()}
        tables.append(f"{test.name}\n\n{compare(folders, study.root / test.name)}")
    with file_aside(study.root / "rows.png") as aside:
        draw(study.root, [test.name for test in study.unseen]).savefig(aside, dpi=150, bbox_inches="tight")
    return "\n".join(tables)


def draw(root: Path, populations: Sequence[str]) -> Figure:
    """A column of panels for each of ``SHOWN``'s scores; bars are 95 % intervals."""
    tables = {name: read_json(root / name / "table.json")["rows"] for name in populations}
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


def main() -> int:
    parser = make_parser(__doc__, seeds=3)
    add = parser.add_argument
    add("--model", metavar="DIR", help="a LLaVA that was taught on the ward (default: a tiny one, taught in --out)")
    add("--steps", type=int, default=STEPS, help=f"of 16 pairs (default {STEPS})")
    add("--rates", type=float, nargs="+", default=RATES, metavar="X", help="learning rates to choose from")
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    return run(parser, run_study)


if __name__ == "__main__":
    sys.exit(main())

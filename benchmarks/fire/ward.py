"""What all findings share: pairs of a ward's patients, unseen patients, and how rows are trained and scored.

The policy's answers (``policy``) about other patients of the ward are edited and their lesions hidden. Every row trains
an adapter of the language model alone, from the same policy and on the same pairs. Unseen patients are of the ward,
balanced, or have the reversed correlations (``mint.synthetic.populations``).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from benchmarks.fire.divergence import divergences
from mint.data.preferences import Preference, read_preferences, write_jsonl
from mint.demo.arms import Arm, Job, logged, run_arm, side_by_side
from mint.demo.radiograph_demo import (
    MODE,
    contrast_images,
    edit_answers,
    hide_lesions,
    load,
    score_reliance,
    score_unseen,
    write_asked,
    write_unseen,
)
from mint.demo.stages import CPU, Hardware
from mint.prefs.question_files import read_asked
from mint.prefs.rules_editor import true_without_lesion
from mint.synthetic.populations import POPULATIONS, WARD
from mint.synthetic.radiograph_set import SHORT, Wording
from mint.synthetic.radiographs import Patients

Row = TypeVar("Row")

BASE = "base"
RECIPE = {"batch_size": 16, "lora_rank": 64, "lora_alpha": 128.0, "rslora": True, "lora_targets": "all-linear"}
OTHER_MODES = ("noise", "global", "crop", "black")  # ways to corrupt an image, beside MODE
TESTED = "blur"  # how lesions are hidden to measure reliance on them: no row is trained with it
TUNING = 100  # seed of the runs that choose a learning rate
TUNED = 50, 500  # patients of each population on which learning rates are chosen, and their seed
UNSEEN = 80  # seed of the patients of the tables
MEASURED = 200  # of a test set: pairs on which reliance on the lesion is measured, answers on which KL is
ASKING = 210  # seed of the patients that the policy is asked about; one more for each place


@dataclass(frozen=True)
class TestSet:
    """Unseen patients of one population. folder: their files. contrasts: of sets for tables, ``contrast_images``'s."""

    name: str
    folder: Path
    contrasts: Mapping[str, list[Preference]] = field(repr=False)


@dataclass(frozen=True)
class Ward:
    """The study in ``root``. policy: directory of the model that all rows start from. steps: of 16 pairs, of a row.

    patients: unseen ones of each population. wording: of the true answers that are compared with false ones.
    """

    root: Path
    policy: Path
    seeds: int
    steps: int
    patients: int = 300
    wording: Wording = SHORT
    hardware: Hardware = CPU

    def sets(self, name: str, count: int, seed: int, for_tables: bool = True) -> list[TestSet]:
        """The test sets of all populations in the folder ``name``, drawn unless they are there."""
        found = []
        for number, (population, patients) in enumerate(POPULATIONS.items()):
            folder = self.root / name / population
            if not (folder / "contrasts.jsonl").is_file():
                write_unseen(folder, count, seed + number, patients, self.wording)
            contrasts = contrast_images(folder, folder / "contrasts", TESTED) if for_tables else {}
            found.append(
                TestSet(population, folder, {kind: sample(pairs, MEASURED) for kind, pairs in contrasts.items()})
            )
        return found

    @cached_property
    def tuned(self) -> list[TestSet]:
        return self.sets("tuning", *TUNED, for_tables=False)

    @cached_property
    def unseen(self) -> list[TestSet]:
        return self.sets("unseen", self.patients, UNSEEN)

    @property
    def places(self) -> list[str]:
        """The folder of each seed."""
        return [f"seed-{seed}" for seed in range(self.seeds)]

    def arm(self, row: str, place: str, settings: Mapping, pairs: str, folder: str = "") -> Arm:
        """A row trained on the file ``pairs`` in the folder ``place``. folder: its own one, by default named after it.

        settings: those that differ from ``RECIPE``.
        """
        seed = self.places.index(place) if place in self.places else TUNING
        data = str(self.root / place / f"{pairs}.jsonl")
        common = {**RECIPE, "data": data, "steps": self.steps, "seed": seed}
        return Arm(row, self.root / place / (folder or slug(row)), self.policy, {**common, **settings}, self.hardware)

    def base(self, name: str) -> Arm:
        """The policy as it is, on the sets of the folder ``name``."""
        return self.untrained(self.root / name / BASE)

    def untrained(self, folder: Path) -> Arm:
        """The policy as it is, with its answers in ``folder``."""
        return Arm(BASE, folder, self.policy, hardware=self.hardware)

    def prepare(self) -> None:
        """Writes the pairs of all places and scores the policy as it is, unless this is done."""
        places = ["tuning", *self.places]
        asked = [
            (f"pairs of {place}", write_pairs, (self.root / place, self.policy, ASKING + i, self.hardware))
            for i, place in enumerate(places)
        ]
        side_by_side([job for job in asked if not (job[2][0] / "presence.jsonl").is_file()])
        side_by_side(jobs([self.base("tuning")], self.tuned) + jobs([self.base("unseen")], self.unseen))


def sample(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` of the rows, in their order and the same in every run; all of fewer."""
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), min(count, len(rows))))]


def slug(row: str) -> str:
    return re.sub(r"\W+", "-", row.lower())


def write_pairs(folder: Path, policy: Path, seed: int, hardware: Hardware, patients: Patients = WARD) -> None:
    """A job: the policy's answers about other patients, edited (``edited``), with corrupted images.

    ``every``: the lesion hidden, noise over the whole image where there is none. ``presence``: as the others, but no
    image where the false answer does not become true; ``presence-MODE``: these, corrupted in another way. ``crop``:
    mDPO's own.
    """
    with logged(folder / "pairs.log"):
        write_jsonl(folder / "questions.jsonl", write_asked(folder, seed, patients))
        rows = edit_answers(folder, policy, hardware)
        hide_lesions(folder, rows, "crop", "crop")
        every = hide_lesions(folder, rows, "every", MODE)
        kept = where_flipped(folder, every)
        for mode in OTHER_MODES:
            name = f"presence-{mode}"
            hidden = {row["id"]: row for row in hide_lesions(folder, rows, name, mode)}
            shown = [
                row | {"corrupted_images": hidden[row["id"]]["corrupted_images"][: len(row["corrupted_images"])]}
                for row in kept
            ]
            write_jsonl(folder / f"{name}.jsonl", shown)
        write_jsonl(folder / "presence.jsonl", kept)


def where_flipped(folder: Path, rows: Sequence[dict]) -> list[dict]:
    """``rows`` without the corrupted image where the false answer is not true once the lesion is hidden."""
    truths = {asked.id: asked.truth for asked in read_asked(folder / "questions.jsonl")}
    rejected = [record.rejected.text for record in read_preferences(folder / "edited.jsonl") if record.rejected]
    kept = [true_without_lesion(text, truths[row["id"]]) for text, row in zip(rejected, rows, strict=True)]
    print(f"{sum(kept)} of {len(kept)} records have a false answer that is true once the lesion is hidden")
    return [row if keep else row | {"corrupted_images": []} for row, keep in zip(rows, kept, strict=True)]


def read_rows(file: Path) -> list[dict]:
    """The records of a JSON Lines file that this study wrote."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def jobs(arms: Sequence[Arm], sets: Sequence[TestSet]) -> list[Job]:
    """What is not trained and scored yet. Raises InputError for an arm that was trained with other settings."""
    for arm in arms:
        arm.check()
    left = [(arm, [one for one in sets if not is_scored(arm, one)]) for arm in arms]
    return [(f"{arm.name}, {arm.folder}", run_row, (arm, some)) for arm, some in left if some]


def is_scored(arm: Arm, test: TestSet) -> bool:
    return (arm.folder / test.name / ("kl.jsonl" if test.contrasts else "metrics.json")).is_file()


def run_row(arm: Arm, sets: Sequence[TestSet]) -> None:
    """A job: trains one arm and scores it on each set: its answers and, for tables, its reliance on lesions and its KL.

    The base's answers are what all divergences are measured on.
    """
    run_arm(arm)
    loaded = load(*arm.trained, arm.hardware)
    for test in sets:
        place, answers = arm.folder / test.name, test.folder / "answers.jsonl"
        with logged(arm.folder / f"{test.name}.log"):
            print(score_unseen(arm.name, loaded, place, test.folder))
            if not arm.settings:
                write_answers(place / "predictions.jsonl", test.folder / "test.jsonl", answers)
            if test.contrasts:
                print(score_reliance(arm.name, loaded, place / "sensitivity", dict(test.contrasts), TESTED))
                write_jsonl(place / "kl.jsonl", divergences(*arm.trained, answers, arm.hardware))


def write_answers(predictions: Path, questions: Path, out: Path) -> None:
    """Some of the answers of an evaluation as records beside their questions."""
    asked, answered = map(read_rows, (questions, predictions))
    prompts = [{"id": one["id"], "prompt": one["question"], "images": one["images"]} for one in asked]
    pairs = zip(prompts, answered, strict=True)
    records = [prompt | {"chosen": one["answer"]} for prompt, one in pairs if one["answer"].strip()]
    write_jsonl(out, sample(records, MEASURED))

"""From ranked cases to preference records: the top of the ranking is chosen, its bottom rejected."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from mint.data.cases import vary
from mint.errors import InputError
from mint.prefs.file_names import relative_name
from mint.teachers.ranking import CHUNK, Teacher, rank

ANSWERS = ("ranking", "disease")


class Asked(Protocol):
    """What pairs need of a task; see :class:`mint.tasks.ranked.RankedTask`. field: of the truth in a record."""

    field: str

    def truth(self, example) -> str:
        """The true name."""

    def messages(self, example, rng: random.Random | None = None) -> list[dict]:
        """The prompt; ``rng`` may vary its wording."""

    def images(self, example) -> list[str]:
        """The files of its images."""

    def format(self, names: Sequence[str]) -> str:
        """The answer that lists ``names``."""

    def pair_fields(self, example) -> dict:
        """Further fields of a preference record."""


@dataclass(frozen=True)
class PairSettings:
    """How rankings become pairs.

    top_k, bottom_q: names listed by the chosen and the rejected answer. label_first: the true name is moved to the
    front of the chosen list, and never in the rejected one. variants: notes per case; all but the first are shuffled
    and have a share ``drop_terms`` of their findings left out, and each is ranked by the findings that are left.
    rejected_samples: records per note; the first rejects the bottom q, each other q drawn from the ranking's lower
    half. answer: ``ranking`` as above; ``disease``: the chosen answer names the true disease (tissue) alone.
    """

    top_k: int = 10
    bottom_q: int = 15
    label_first: bool = False
    variants: int = 1
    drop_terms: float = 0.2
    rejected_samples: int = 1
    answer: str = "ranking"
    seed: int = 0

    def check(self, count: int, noun: str = "disease") -> None:
        """Raises InputError for values out of range, or lists that would overlap among ``count`` names."""
        if min(self.top_k, self.bottom_q, self.variants, self.rejected_samples) < 1 or not 0 <= self.drop_terms <= 0.5:
            raise InputError(
                "--top-k, --bottom-q, --variants and --rejected-samples must be at least 1, "
                "--drop-terms between 0 and 0.5"
            )
        if self.top_k + self.bottom_q > count:
            raise InputError(
                f"the top {self.top_k} and bottom {self.bottom_q} of {count} {noun}s overlap; lower one of them"
            )
        if self.rejected_samples > 1 and count - self.top_k <= self.bottom_q:
            raise InputError(f"{count} {noun}s leave one way to reject {self.bottom_q}: no --rejected-samples")


@dataclass
class PairReport:
    """Where the truth stood in the rankings, over all notes."""

    notes: int = 0
    pairs: int = 0
    known: int = 0
    first: int = 0
    top: int = 0
    bottom: int = 0
    what: str = "disease"  # the class that is predicted

    def __str__(self) -> str:
        shares = [count / max(1, self.notes) for count in (self.first, self.top, self.bottom)]
        unknown = self.notes - self.known
        notes = f" of {self.notes} notes" if self.pairs != self.notes else ""
        return (
            f"{self.pairs} pairs{notes}; the true {self.what} is first in {100 * shares[0]:.1f} %, "
            f"in the chosen list in {100 * shares[1]:.1f} %, in the rejected list in {100 * shares[2]:.1f} %"
            + (f"; unknown to the teacher in {unknown}" if unknown else "")
        )


def make_pairs(
    task: Asked,
    examples: Sequence,
    teacher: Teacher,
    settings: PairSettings,
    report: PairReport,
    held_out: bool = True,
    folder: str | Path = ".",
) -> Iterator[dict]:
    """Preference records of all examples, as ``mint.data.preferences`` reads them, with the ranking's own numbers.

    held_out: the teacher has not learned from the examples; otherwise each is ranked as one of its own. folder: of the
    preference file; images inside it are named relative to it. ``report`` is filled on the way.
    Raises InputError for settings out of range, or lists that overlap.
    """
    settings.check(len(teacher.classes), task.field)
    report.what, notes = task.field, _notes(examples, settings)
    while chunk := list(islice(notes, CHUNK)):
        rankings = rank(teacher, [note for note, *_ in chunk], None if held_out else [one for _, one, *_ in chunk])
        for (note, example, name, rng), ranking in zip(chunk, rankings, strict=True):
            fields: dict[str, Any] = {"prompt": task.messages(note, rng)}
            if files := task.images(example):
                fields["images"] = [relative_name(file, Path(folder)) for file in files]
            about = {task.field: task.truth(example), **task.pair_fields(example)}
            for suffix, chosen, rejected, numbers in _lists(task.truth(example), rng, ranking, settings, report):
                numbers = {"ranker": teacher.name, **numbers, "settings": asdict(settings)}
                answers = {"chosen": task.format(chosen), "rejected": task.format(rejected)}
                yield {"id": f"{name}{suffix}", **fields, **answers, **about, "teacher": numbers}


def _notes(examples: Sequence, settings: PairSettings) -> Iterator[tuple]:
    """(what the note says, the example, the record's id, its random generator) of every variant."""
    for number, example in enumerate(examples):
        rng = random.Random(f"{settings.seed}/{number}/{example.id}")
        yield example, example, example.id, rng
        for variant in range(1, settings.variants):
            rng = random.Random(f"{settings.seed}/{number}/{example.id}#{variant}")
            yield vary(example, rng, settings.drop_terms), example, f"{example.id}#{variant}", rng


def _lists(
    truth: str, rng: random.Random, ranking: list[tuple[str, float]], settings: PairSettings, report: PairReport
) -> Iterator[tuple[str, list[str], list[str], dict]]:
    """(suffix of the id, chosen names, rejected names, their numbers) of each record of a note."""
    scores = dict(ranking)
    names = list(scores)
    chosen, lower = names[: settings.top_k], names[settings.top_k :]
    report.notes += 1
    report.known += truth in scores
    report.first += names[0] == truth
    report.top += truth in chosen
    report.bottom += truth in names[-settings.bottom_q :]
    if settings.label_first or settings.answer == "disease":
        others = [other for other in names if other != truth]
        chosen = [truth, *others][: 1 if settings.answer == "disease" else settings.top_k]
        lower = [other for other in others if other not in chosen]
    truth_rank = names.index(truth) + 1 if truth in scores else None
    for sample in range(settings.rejected_samples):
        rejected = lower[-settings.bottom_q :] if sample == 0 else _sample(lower, settings.bottom_q, len(names), rng)
        report.pairs += 1
        numbers = {
            "truth_rank": truth_rank,
            "chosen_scores": [round(scores[other], 4) if other in scores else None for other in chosen],
            "rejected_scores": [round(scores[other], 4) for other in rejected],
        }
        yield f"~{sample}" if sample else "", chosen, rejected, numbers


def _sample(lower: list[str], count: int, diseases: int, rng: random.Random) -> list[str]:
    """``count`` names of the ranking's lower half (of more, where that is too small), in rank order."""
    pool = lower[-max(count + 1, diseases // 2) :]
    return [pool[i] for i in sorted(rng.sample(range(len(pool)), count))]

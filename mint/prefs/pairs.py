"""From ranked cases to preference records: the top of the ranking is chosen, its bottom or another list rejected."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mint.data.cases import vary
from mint.errors import InputError
from mint.prefs.file_names import relative_name
from mint.prefs.policy_lists import ON_POLICY, ListPair, Policy, edited_pair, sampled_pair
from mint.teachers.ranking import CHUNK, Teacher, rank

ANSWERS = ("ranking", "disease")
RANKED_BY = ("note", "case")
REJECTED = ("bottom", "random", *ON_POLICY)


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

    def parse(self, answer: str) -> list[str]:
        """The names that an answer lists."""

    def pair_fields(self, example) -> dict:
        """Further fields of a preference record."""


@dataclass(frozen=True)
class PairSettings:
    """How rankings become pairs.

    top_k, bottom_q: names listed by the chosen and the rejected answer. label_first: the true name is moved to the
    front of the chosen list, and never in the rejected one. variants: notes per case; all but the first are shuffled
    and have a share ``drop_terms`` of their findings left out. rank_by: each is ranked by the ``note``, the findings
    that are left, or by the whole ``case``: the teacher then knows more than the student is told.
    reject: ``bottom``, the last q of the ranking; ``random``, q drawn from the names that are not chosen; ``policy``
    and ``edit``, lists of the policy (:mod:`mint.prefs.policy_lists`). rejected_samples: records per note; the first
    rejects as ``reject`` says, each other q names drawn from the ranking's lower half, or at random. answer:
    ``ranking`` as above; ``disease``: the chosen answer names the true disease (tissue) alone.
    """

    top_k: int = 10
    bottom_q: int = 15
    label_first: bool = False
    variants: int = 1
    drop_terms: float = 0.2
    rank_by: str = "note"
    rejected_samples: int = 1
    answer: str = "ranking"
    reject: str = "bottom"
    seed: int = 0

    def check(self, count: int, noun: str = "disease") -> None:
        """Raises InputError for values out of range, or lists that would overlap among ``count`` names."""
        if min(self.top_k, self.bottom_q, self.variants, self.rejected_samples) < 1 or not 0 <= self.drop_terms <= 0.5:
            raise InputError(
                "--top-k, --bottom-q, --variants and --rejected-samples must be at least 1, "
                "--drop-terms between 0 and 0.5"
            )
        if self.reject in ON_POLICY and self.rejected_samples > 1:
            raise InputError(f"--reject {self.reject} gives one pair of a note: no --rejected-samples")
        if self.reject == "edit" and self.answer != "ranking":
            raise InputError(f"--reject edit edits towards the ranking: it does not go with --answer {self.answer}")
        bottom = 0 if self.reject in ON_POLICY else self.bottom_q
        if self.top_k + bottom > count:
            raise InputError(f"the top {self.top_k} and bottom {bottom} of {count} {noun}s overlap; lower one of them")
        if self.rejected_samples > 1 and count - self.top_k <= bottom:
            raise InputError(f"{count} {noun}s leave one way to reject {bottom}: no --rejected-samples")


@dataclass
class PairReport:
    """Where the truth stood, over all notes.

    first, top: in the ranking, its first place and its first k. bottom: in the last q of the ranking, or in the
    rejected list if that is another. same, without_list: notes left out, since the policy wrote the chosen list, or
    wrote nothing that can be edited or rejected.
    """

    notes: int = 0
    pairs: int = 0
    known: int = 0
    first: int = 0
    top: int = 0
    bottom: int = 0
    same: int = 0
    without_list: int = 0
    what: str = "disease"  # the class that is predicted

    def __str__(self) -> str:
        shares = [count / max(1, self.notes) for count in (self.first, self.top, self.bottom)]
        notes = f" of {self.notes} notes" if self.pairs != self.notes else ""
        others = (
            (self.same, "left out, where the policy's list equals the chosen one"),
            (self.without_list, "left out, where the policy wrote no list"),
            (self.notes - self.known, "unknown to the teacher"),
        )
        return (
            f"{self.pairs} pairs{notes}; the true {self.what} is first in {100 * shares[0]:.1f} %, "
            f"in the chosen list in {100 * shares[1]:.1f} %, in the rejected list in {100 * shares[2]:.1f} %"
            + "".join(f"; {count} {words}" for count, words in others if count)
        )


class Note(NamedTuple):
    """A variant of an example. case: what the note says. name: the record's id. answers: the policy's."""

    case: Any
    example: Any
    name: str
    rng: random.Random
    prompt: list[dict]
    answers: Sequence[str] = ()


def make_pairs(
    task: Asked,
    examples: Sequence,
    teacher: Teacher,
    settings: PairSettings,
    report: PairReport,
    held_out: bool = True,
    folder: str | Path = ".",
    policy: Policy | None = None,
) -> Iterator[dict]:
    """Preference records of all examples, as ``mint.data.preferences`` reads them, with the ranking's own numbers.

    held_out: the teacher has not learned from the examples; otherwise each is ranked as one of its own. folder: of the
    preference file; images inside it are named relative to it. ``report`` is filled on the way. policy: of ``reject``
    policy and edit; it answers all notes before the first record.
    Raises InputError for settings out of range, or lists that overlap.
    """
    settings.check(len(teacher.classes), task.field)
    report.what, notes = task.field, _notes(task, examples, settings)
    if policy is not None:
        notes = _answered(task, list(notes), policy)
    return _records(task, notes, teacher, settings, report, held_out, Path(folder))


def _answered(task: Asked, notes: Sequence[Note], policy: Policy) -> Iterator[Note]:
    found = policy.answers([note.prompt for note in notes], [task.images(note.example) for note in notes])
    return (note._replace(answers=answers) for note, answers in zip(notes, found, strict=True))


def _notes(task: Asked, examples: Sequence, settings: PairSettings) -> Iterator[Note]:
    for number, example in enumerate(examples):
        for variant in range(settings.variants):
            name = f"{example.id}#{variant}" if variant else example.id
            rng = random.Random(f"{settings.seed}/{number}/{name}")
            case = vary(example, rng, settings.drop_terms) if variant else example
            yield Note(case, example, name, rng, task.messages(case, rng))


def _records(
    task: Asked,
    notes: Iterator[Note],
    teacher: Teacher,
    settings: PairSettings,
    report: PairReport,
    held_out: bool,
    folder: Path,
) -> Iterator[dict]:
    while chunk := list(islice(notes, CHUNK)):
        own = None if held_out else [note.example for note in chunk]
        ranked = [note.case if settings.rank_by == "note" else note.example for note in chunk]
        for note, ranking in zip(chunk, rank(teacher, ranked, own), strict=True):
            fields: dict[str, Any] = {"prompt": note.prompt}
            if files := task.images(note.example):
                fields["images"] = [relative_name(file, folder) for file in files]
            about = {task.field: task.truth(note.example), **task.pair_fields(note.example)}
            for number, (chosen, rejected, numbers) in enumerate(_pairs(task, note, ranking, settings, report)):
                name = f"{note.name}~{number}" if number else note.name
                numbers = {"ranker": teacher.name, **numbers, "settings": asdict(settings)}
                yield {"id": name, **fields, "chosen": chosen, "rejected": rejected, **about, "teacher": numbers}


def _pairs(
    task: Asked, note: Note, ranking: Sequence[tuple[str, float]], settings: PairSettings, report: PairReport
) -> Iterator[tuple[str, str, dict]]:
    """(chosen, rejected, their numbers) of each record of a note."""
    truth, scores = task.truth(note.example), dict(ranking)
    names = list(scores)
    report.notes += 1
    report.known += truth in scores
    report.first += names[0] == truth
    report.top += truth in names[: settings.top_k]
    ordered = names
    if settings.label_first or settings.answer == "disease":
        ordered = [truth, *(name for name in names if name != truth)]
    length = 1 if settings.answer == "disease" else settings.top_k
    chosen, lower = ordered[:length], ordered[length:]
    found: Iterator[ListPair]
    if settings.reject in ON_POLICY:
        found = _policy_pairs(task, note, chosen, ordered, settings, report)
    else:
        found = _ranked_pairs(task, note, chosen, lower, len(names), settings)
    for number, pair in enumerate(found):
        report.pairs += 1
        if number == 0:
            report.bottom += truth in (names[-settings.bottom_q :] if settings.reject == "bottom" else pair.avoided)
        numbers = {
            "truth_rank": names.index(truth) + 1 if truth in scores else None,
            "chosen_scores": [_round(scores.get(name)) for name in pair.listed],
            "rejected_scores": [_round(scores.get(name)) for name in pair.avoided],
        }
        yield pair.chosen, pair.rejected, numbers | pair.numbers


def _policy_pairs(
    task: Asked, note: Note, chosen: list[str], ordered: list[str], settings: PairSettings, report: PairReport
) -> Iterator[ListPair]:
    """The pair of the policy's answers, unless there is none; ``report`` then says why."""
    make = sampled_pair if settings.reject == "policy" else edited_pair
    pair = make(task, note.answers, chosen, ordered)
    if not pair.rejected.strip():
        report.without_list += 1
    elif pair.same:
        report.same += 1
    else:
        yield pair


def _ranked_pairs(
    task: Asked, note: Note, chosen: list[str], lower: list[str], diseases: int, settings: PairSettings
) -> Iterator[ListPair]:
    """The pairs that reject names of the ranking."""
    count = settings.bottom_q
    half = lower[-max(count + 1, diseases // 2) :]  # the ranking's lower half; more, where that is too small
    for sample in range(settings.rejected_samples):
        if settings.reject == "random":
            rejected = _draw(lower, count, note.rng)
        else:
            rejected = _draw(half, count, note.rng) if sample else lower[-count:]
        yield ListPair(task.format(chosen), task.format(rejected), chosen, rejected, {})


def _draw(pool: list[str], count: int, rng: random.Random) -> list[str]:
    """``count`` names of ``pool``, in its order."""
    return [pool[i] for i in sorted(rng.sample(range(len(pool)), count))]


def _round(score: float | None) -> float | None:
    return None if score is None else round(score, 4)

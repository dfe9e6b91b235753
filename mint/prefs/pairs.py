"""From ranked cases to preference records: the top of the ranking is chosen, its bottom rejected."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from mint.data.cases import Case, diagnosis_messages, format_list, vary, write_note
from mint.errors import InputError
from mint.teachers.ranking import CHUNK, Ranker, rank

ANSWERS = ("ranking", "disease")


@dataclass(frozen=True)
class PairSettings:
    """How rankings become pairs.

    top_k, bottom_q: diseases listed by the chosen and the rejected answer. label_first: the true disease is moved to
    the front of the chosen list, and never in the rejected one. variants: notes per case; all but the first are shuffled
    and have a share ``drop_terms`` of their findings left out, and each is ranked on what it still says.
    rejected_samples: records per note; the first rejects the bottom q, each other q drawn from the ranking's lower half.
    answer: ``ranking`` as above; ``disease``: the chosen answer names the true disease alone.
    """

    top_k: int = 10
    bottom_q: int = 15
    label_first: bool = False
    variants: int = 1
    drop_terms: float = 0.2
    rejected_samples: int = 1
    answer: str = "ranking"
    seed: int = 0

    def check(self, diseases: int) -> None:
        """Raises InputError for values out of range, or lists that would overlap among ``diseases``."""
        if min(self.top_k, self.bottom_q, self.variants, self.rejected_samples) < 1 or not 0 <= self.drop_terms <= 0.5:
            raise InputError(
                "--top-k, --bottom-q, --variants and --rejected-samples must be at least 1, --drop-terms between 0 and 0.5"
            )
        if self.top_k + self.bottom_q > diseases:
            raise InputError(
                f"the top {self.top_k} and bottom {self.bottom_q} of {diseases} diseases overlap; lower one of them"
            )
        if self.rejected_samples > 1 and diseases - self.top_k <= self.bottom_q:
            raise InputError(f"{diseases} diseases leave one way to reject {self.bottom_q}: no --rejected-samples")


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
            f"{self.pairs} pairs{notes}; the true {self.what} is first in {shares[0]:.1%}, "
            f"in the chosen list in {shares[1]:.1%}, in the rejected list in {shares[2]:.1%}"
            + (f"; unknown to the ranker in {unknown}" if unknown else "")
        )


def make_pairs(
    cases: Sequence[Case], ranker: Ranker, settings: PairSettings, report: PairReport, held_out: bool
) -> Iterator[dict]:
    """Preference records of all cases, as ``mint.data.preferences`` reads them, with the ranking's own numbers.

    held_out: the cases are not among those the ranker learned from; otherwise each is ranked as one of them (``own``).
    ``report`` is filled on the way.
    """
    settings.check(len(ranker.diseases))
    notes = _notes(cases, settings)
    while chunk := list(islice(notes, CHUNK)):
        told = [note for note, *_ in chunk]
        rankings = rank(ranker, told, None if held_out else [case for _, case, *_ in chunk])
        for (note, case, name, rng), ranking in zip(chunk, rankings, strict=True):
            yield from _records(note, case, name, rng, ranking, ranker.name, settings, report)


def _notes(cases: Sequence[Case], settings: PairSettings) -> Iterator[tuple[Case, Case, str, random.Random]]:
    """(what the note tells, the case, the record's id, its generator) of every variant."""
    for number, case in enumerate(cases):
        rng = random.Random(f"{settings.seed}/{number}/{case.id}")
        yield case, case, case.id, rng
        for variant in range(1, settings.variants):
            rng = random.Random(f"{settings.seed}/{number}/{case.id}#{variant}")
            yield vary(case, rng, settings.drop_terms), case, f"{case.id}#{variant}", rng


def _records(
    note: Case,
    case: Case,
    name: str,
    rng: random.Random,
    ranking: list[tuple[str, float]],
    ranker: str,
    settings: PairSettings,
    report: PairReport,
) -> Iterator[dict]:
    scores = dict(ranking)
    names = list(scores)
    chosen, lower = names[: settings.top_k], names[settings.top_k :]
    report.notes += 1
    report.known += case.disease in scores
    report.first += names[0] == case.disease
    report.top += case.disease in chosen
    report.bottom += case.disease in names[-settings.bottom_q :]
    if settings.label_first or settings.answer == "disease":
        others = [other for other in names if other != case.disease]
        chosen = [case.disease, *others][: 1 if settings.answer == "disease" else settings.top_k]
        lower = [other for other in others if other not in chosen]
    messages = diagnosis_messages(write_note(note, rng))
    truth_rank = names.index(case.disease) + 1 if case.disease in scores else None
    for sample in range(settings.rejected_samples):
        rejected = lower[-settings.bottom_q :] if sample == 0 else _sample(lower, settings.bottom_q, len(names), rng)
        report.pairs += 1
        yield {
            "id": name if sample == 0 else f"{name}~{sample}",
            "prompt": messages,
            "chosen": format_list(chosen),
            "rejected": format_list(rejected),
            "disease": case.disease,
            "disease_id": case.disease_id,
            "teacher": {
                "ranker": ranker,
                "truth_rank": truth_rank,
                "chosen_scores": [round(scores[other], 4) if other in scores else None for other in chosen],
                "rejected_scores": [round(scores[other], 4) for other in rejected],
                "settings": asdict(settings),
            },
        }


def _sample(lower: list[str], count: int, diseases: int, rng: random.Random) -> list[str]:
    """``count`` names of the ranking's lower half (of more, where that is too small), in rank order."""
    pool = lower[-max(count + 1, diseases // 2) :]
    return [pool[i] for i in sorted(rng.sample(range(len(pool)), count))]

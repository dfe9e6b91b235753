"""From ranked cases to preference records: the top of the ranking is chosen, its bottom rejected."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mint.data.cases import Case, diagnosis_messages, format_list, vary, write_note
from mint.errors import InputError

ANSWERS = ("ranking", "disease")


@dataclass(frozen=True)
class PairSettings:
    """How rankings become pairs.

    top_k, bottom_q: diseases listed by the chosen and the rejected answer. label_first: the true disease is moved to
    the front of the chosen list, and never in the rejected one. variants: notes per case; all but the first are shuffled
    and have a share ``drop_terms`` of their findings left out, and each is ranked on what it still says. answer:
    ``ranking`` as above; ``disease``: the chosen answer names the true disease alone.
    """

    top_k: int = 10
    bottom_q: int = 15
    label_first: bool = False
    variants: int = 1
    drop_terms: float = 0.2
    answer: str = "ranking"
    seed: int = 0

    def check(self, diseases: int) -> None:
        """Raises InputError for values out of range, or lists that would overlap among ``diseases``."""
        if min(self.top_k, self.bottom_q, self.variants) < 1 or not 0 <= self.drop_terms <= 0.5:
            raise InputError("--top-k, --bottom-q and --variants must be at least 1, --drop-terms between 0 and 0.5")
        if self.top_k + self.bottom_q > diseases:
            raise InputError(
                f"the top {self.top_k} and bottom {self.bottom_q} of {diseases} diseases overlap; lower one of them"
            )


@dataclass
class PairReport:
    """Where the truth stood in the rankings, over all notes whose disease the ranker knows."""

    notes: int = 0
    known: int = 0
    first: int = 0
    top: int = 0
    bottom: int = 0

    def __str__(self) -> str:
        shares = [count / max(1, self.notes) for count in (self.first, self.top, self.bottom)]
        unknown = self.notes - self.known
        return (
            f"{self.notes} pairs; the true disease is first in {shares[0]:.1%}, in the chosen list in {shares[1]:.1%}, "
            f"in the rejected list in {shares[2]:.1%}" + (f"; unknown to the ranker in {unknown}" if unknown else "")
        )


def make_pairs(
    cases: Sequence[Case], ranker, settings: PairSettings, report: PairReport, held_out: bool
) -> Iterator[dict]:
    """Preference records of all cases, as ``mint.data.preferences`` reads them, with the ranking's own numbers.

    ranker: has ``rank(case, own)`` and ``name``. held_out: the cases are not among those the ranker counted; otherwise
    each is ranked as if it were not. ``report`` is filled on the way.
    """
    settings.check(len(ranker.diseases))
    known = set(ranker.diseases)
    for number, case in enumerate(cases):
        rng = random.Random(f"{settings.seed}/{number}/{case.id}")
        for variant in range(settings.variants):
            told = case if variant == 0 else vary(case, rng, settings.drop_terms)
            ranking = ranker.rank(told, None if held_out else case)
            names = [name for name, _ in ranking]
            top, bottom = names[: settings.top_k], names[-settings.bottom_q :]
            report.notes += 1
            report.known += case.disease in known
            report.first += names[0] == case.disease
            report.top += case.disease in top
            report.bottom += case.disease in bottom
            chosen = top
            if settings.label_first or settings.answer == "disease":
                others = [name for name in names if name != case.disease]
                bottom = others[-settings.bottom_q :]
                chosen = [case.disease, *others][: 1 if settings.answer == "disease" else settings.top_k]
            scores = dict(ranking)
            yield {
                "id": case.id if variant == 0 else f"{case.id}#{variant}",
                "prompt": diagnosis_messages(write_note(told, rng)),
                "chosen": format_list(chosen),
                "rejected": format_list(bottom),
                "disease": case.disease,
                "disease_id": case.disease_id,
                "teacher": {
                    "ranker": ranker.name,
                    "top_k": settings.top_k,
                    "bottom_q": settings.bottom_q,
                    "truth_rank": names.index(case.disease) + 1 if case.disease in known else None,
                    "chosen_scores": [round(scores[name], 4) if name in scores else None for name in chosen],
                    "rejected_scores": [round(scores[name], 4) for name in bottom],
                },
            }

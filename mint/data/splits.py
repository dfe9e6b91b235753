"""Train and test splits by patient: no patient is in both."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import ClassVar, Protocol, TypeVar

from mint.errors import InputError

SPLITS = ("train", "dev", "val", "test")  # values of ``Case.split``; all but train are held out
SHOWN = 5  # patients named in a message


class Sample(Protocol):
    """A case or a tile, a dataclass."""

    __dataclass_fields__: ClassVar[dict]

    @property
    def id(self) -> str: ...

    @property
    def subject(self) -> str: ...

    @property
    def split(self) -> str: ...


S = TypeVar("S", bound=Sample)


def split_by_patient(
    cases: Sequence[S], test_share: float = 0.1, seed: int = 0, label: Callable[[S], str] = attrgetter("disease")
) -> tuple[list[S], list[S]]:
    """(train, held out), each in the order of ``cases``. label: the class of a case, by default its disease.

    A patient is a ``subject``, or a case without one; people who share an id ("Patient 2" of two reports) count as one.
    The ``split`` of any of a patient's cases applies to all of them; dev, val and test are held out. Of the other
    patients ``test_share`` are drawn, but never the last one of a class in train. The draw depends on the seed and the
    patients alone.
    Raises InputError for a share outside [0, 1), an unknown split, or two splits of one patient.
    """
    if not 0 <= test_share < 1:
        raise InputError(f"the share of test patients must be at least 0 and less than 1, not {test_share}")
    patients: dict[tuple[str, str], list[S]] = defaultdict(list)
    for case in cases:
        patients[_patient(case)].append(case)
    splits = {patient: _splits(group) for patient, group in patients.items()}
    if torn := [f"{patient[1]} ({', '.join(sorted(found))})" for patient, found in splits.items() if len(found) > 1]:
        more = f" and {len(torn) - SHOWN} more" if len(torn) > SHOWN else ""
        raise InputError(f"patients with cases in more than one split: {'; '.join(torn[:SHOWN])}{more}")
    held_out = {patient for patient, found in splits.items() if found and found != {"train"}}
    free = sorted(patient for patient, found in splits.items() if not found)
    diseases = {patient: {label(case) for case in group} for patient, group in patients.items()}
    left = Counter(disease for patient in patients if patient not in held_out for disease in diseases[patient])
    wanted = len(held_out) + round(test_share * len(free))
    for patient in random.Random(seed).sample(free, len(free)):
        if len(held_out) < wanted and all(left[disease] > 1 for disease in diseases[patient]):
            held_out.add(patient)
            left.subtract(diseases[patient])
    train: list[S] = []
    test: list[S] = []
    for case in cases:
        (test if _patient(case) in held_out else train).append(case)
    return train, test


def take_split(cases: Sequence[S], split: str, label: Callable[[S], str] = attrgetter("disease")) -> list[S]:
    """The cases of one split: train, val (those of dev too) or test, by patient as :func:`split_by_patient` does.

    test is all that is held out, but for the patients of dev and val where others are held out besides.
    """
    train, held_out = split_by_patient(cases, label=label)
    if split == "train":
        return train
    tuning = {_patient(case) for case in held_out if case.split in ("dev", "val")}
    of_val = [case for case in held_out if _patient(case) in tuning]
    if split == "val":
        return of_val
    return [case for case in held_out if _patient(case) not in tuning] or of_val


def hold_out(
    samples: Sequence[S], share: float, seed: int, label: Callable[[S], str] = attrgetter("disease")
) -> tuple[list[S], list[S]]:
    """(train, early-stopping set): by the samples' own splits, or a ``share`` drawn if all of them have the same."""
    if len({sample.split or "train" for sample in samples}) == 1:
        samples = [dataclasses.replace(sample, split="") for sample in samples]
    return split_by_patient(samples, share, seed, label)


def _patient(case: Sample) -> tuple[str, str]:
    """A key that keeps a subject's id apart from a case's."""
    return ("subject", case.subject) if case.subject else ("case", case.id)


def _splits(group: Sequence[Sample]) -> set[str]:
    """The splits that a patient's cases name; dev and val are one."""
    found = {case.split for case in group if case.split}
    if unknown := found.difference(SPLITS):
        raise InputError(f"{group[0].id}: split {min(unknown)!r} is not one of {', '.join(SPLITS)}")
    return {"dev" if split == "val" else split for split in found}

"""Published case reports of common diseases, split by publication: what ``case_reports`` trains on and asks.

Cases of one publication resemble each other in what their authors looked for, so that a model may recognise the
report instead of the disease. Here no publication is on both sides.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mint.data.cases import Case, read_term_ids
from mint.data.phenopackets import read_phenopackets
from mint.errors import InputError

DISEASES = 150  # the most common
UNSEEN, SEEN, FREE_TEXT = 200, 100, 60  # cases to be asked about
LARGEST = 5  # cases of an unseen publication at most, so that no few decide the score
LEAST = 5  # training cases of every disease of an unseen publication


@dataclass(frozen=True)
class Cohort:
    """Cases of one split. names: of all diseases.

    training: of the publications to learn from. unseen: of other publications, but no other diseases. seen: new cases
    of publications in training, as a split by case has them. free_text: cases that have a note in prose, none of them
    in training.
    """

    training: list[Case]
    unseen: list[Case]
    seen: list[Case]
    free_text: list[Case]

    @property
    def names(self) -> list[str]:
        return sorted({case.disease for case in self.training})

    def __str__(self) -> str:
        parts = [f"{len(self.names)} diseases"]
        for name in ("training", "unseen", "seen", "free_text"):
            cases = getattr(self, name)
            papers, diseases = ({getattr(c, key) for c in cases} for key in ("subject", "disease"))
            parts.append(f"{name} {len(cases)} cases, {len(papers)} publications, {len(diseases)} diseases")
        return "; ".join(parts)


def publication(case: Case) -> str:
    """The PMID at the front of a case's id; of another id all of it."""
    found = re.match(r"PMID_\d+", case.id)
    return found[0] if found else case.id


def read_reports(train: str, dev: str, face_terms: str | None = None, notes: Sequence[str] = ()) -> Cohort:
    """The cohort of two parts of a split by case. ``subject`` of its cases is the publication.

    face_terms: findings that notes leave out. notes: JSON Lines (.gz) with ``id`` and ``note``. Raises InputError for
    files that cannot be read, and parts that leave no case to train on or to ask about.
    """
    facial = read_term_ids(face_terms) if face_terms else None
    parts = [[replace(c, subject=publication(c)) for c in read_phenopackets(part, facial)[0]] for part in (train, dev)]
    count = Counter(case.disease_id for part in parts for case in part)
    common = {disease for disease, _ in count.most_common(DISEASES)}
    old, new = ([case for case in part if case.disease_id in common] for part in parts)
    held, written = hold_out(old, new), read_notes(notes)
    training = [case for case in old if case.subject not in held and case.id not in written]
    unseen = [case for case in [*old, *new] if case.subject in held]
    seen = [case for case in new if case.subject in {c.subject for c in training}]
    if not (training and unseen and seen):
        raise InputError(f"{train} and {dev} do not share publications, or have too few to hold some out")
    free = [replace(case, text=written[case.id]) for case in [*old, *new] if case.id in written]
    rng, names = random.Random(0), {case.disease for case in training}
    few = [rng.sample(cases, min(size, len(cases))) for cases, size in ((seen, SEEN), (free, FREE_TEXT))]
    return Cohort(training, unseen, *([case for case in some if case.disease in names] for some in few))


def hold_out(old: Sequence[Case], new: Sequence[Case]) -> set[str]:
    """Random publications with about ``UNSEEN`` cases, whose diseases keep ``LEAST`` other cases of ``old``."""
    cases = defaultdict(list)
    for case in [*old, *new]:
        cases[case.subject].append(case)
    left = {subject: Counter(case.disease for case in old if case.subject == subject) for subject in cases}
    remaining, held, taken = Counter(case.disease for case in old), set(), 0
    for subject in random.Random(0).sample(sorted(cases), len(cases)):
        size, diseases = len(cases[subject]), {case.disease for case in cases[subject]}
        keeps = all(remaining[disease] - left[subject][disease] >= LEAST for disease in diseases)
        if size <= LARGEST and taken + size <= UNSEEN and keeps:
            held.add(subject)
            taken += size
            remaining -= left[subject]
    return held


def read_notes(files: Sequence[str]) -> Mapping[str, str]:
    """id -> note. Raises InputError for a file that cannot be read, or has another form."""

    def lines(file: str) -> Iterator[str]:
        with (gzip.open if file.endswith(".gz") else open)(file, "rt", encoding="utf-8") as opened:
            yield from opened

    found: dict[str, str] = {}
    for file in map(str, map(Path, files)):
        try:
            found |= {record["id"]: record["note"] for record in map(json.loads, lines(file))}
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} holds no notes that can be read ({error})") from None
    return found

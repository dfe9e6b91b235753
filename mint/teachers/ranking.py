"""The interface of a teacher: a model that ranks the classes of a case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

CHUNK = 256  # cases scored at a time


class Teacher(Protocol):
    """Scores each of its classes (diseases, tissues) for every case."""

    name: str

    @property
    def classes(self) -> Sequence[str]: ...

    def scores(self, cases: Sequence, own: Sequence | None = None) -> np.ndarray:
        """[cases, classes]; a higher score is a likelier class.

        own: for each case the training case that it is (a variant of); a teacher that can leaves it out. None: the
        cases are new.
        """
        ...


def rank(teacher: Teacher, cases: Sequence, own: Sequence | None = None) -> Iterator[list[tuple[str, float]]]:
    """For every case all (class, score), the likeliest first; ties in the order of ``teacher.classes``."""
    for start in range(0, len(cases), CHUNK):
        chunk = slice(start, start + CHUNK)
        for scores in teacher.scores(cases[chunk], own and own[chunk]):
            yield [(teacher.classes[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]

"""Nearest neighbours: diseases ranked by the training note that is most like a case's own, by BM25.

    score(disease) = the best BM25 score among the notes of its training cases

Diseases without a note that shares a word with the case's rank last, the more frequent first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mint.data.cases import Case, write_note
from mint.data.retrieval import Passage, Retriever
from mint.errors import InputError


class NeighbourTeacher:
    """The notes of a cohort. ``classes`` are the diseases that it names, in alphabetical order."""

    name = "neighbours"

    def __init__(self, cases: Sequence[Case]):
        """Indexes the notes. Raises InputError if they name fewer than two diseases, or hold no word."""
        self.classes = sorted({case.disease for case in cases})
        if len(self.classes) < 2:
            raise InputError("ranking needs cases of at least two diseases")
        column = {name: i for i, name in enumerate(self.classes)}
        self._column = np.array([column[case.disease] for case in cases])  # of each case
        self._notes = Retriever([Passage(case.id, write_note(case)) for case in cases])
        self._places: dict[tuple[str, ...], list[int]] = defaultdict(list)  # patient -> cases
        for place, case in enumerate(cases):
            self._places[_patient(case)].append(place)

    def scores(self, cases: Sequence[Case], own: Sequence[Case] | None = None) -> np.ndarray:
        """[cases, diseases]: BM25 scores; of diseases without a neighbour -1 / (1 + their training cases).

        own: for each, the training case that it is (a variant of); the notes of that case's patient are left out.
        """
        return np.stack([self._score(case, own[i] if own else None) for i, case in enumerate(cases)])

    def _score(self, case: Case, own: Case | None) -> np.ndarray:
        others = np.ones(len(self._column), dtype=bool)
        if own is not None:
            others[self._places.get(_patient(own), [])] = False
        columns, similar = self._column[others], self._notes.scores(write_note(case))[others]
        best = np.zeros(len(self.classes))
        np.maximum.at(best, columns, similar)
        counts = np.bincount(columns, minlength=len(self.classes))
        return np.where(best > 0, best, -1 / (1 + counts))


def _patient(case: Case) -> tuple[str, ...]:
    """What a patient's cases share; reports of different diseases may call their patients by the same id."""
    return (case.subject, case.disease) if case.subject else (case.id,)

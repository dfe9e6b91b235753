"""What a ranking of diseases is, whoever makes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from mint.data.cases import Case

CHUNK = 256  # cases scored at a time


class Ranker(Protocol):
    """An upstream model: it scores every disease it knows for every case it is given."""

    name: str

    @property
    def diseases(self) -> Sequence[str]: ...

    def scores(self, cases: Sequence[Case], own: Sequence[Case] | None = None) -> np.ndarray:
        """[cases, diseases]; higher is likelier.

        own: for each case the one of the ranker's own cohort that it is (a variant of), so that it can be ranked as if
        it had not been learned from; None: the cases are new.
        """
        ...


def rank(ranker: Ranker, cases: Sequence[Case], own: Sequence[Case] | None = None) -> Iterator[list[tuple[str, float]]]:
    """For every case (disease, score) of all diseases, the likeliest first; ties in the order of ``ranker.diseases``."""
    for start in range(0, len(cases), CHUNK):
        chunk = slice(start, start + CHUNK)
        for scores in ranker.scores(cases[chunk], own and own[chunk]):
            yield [(ranker.diseases[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]

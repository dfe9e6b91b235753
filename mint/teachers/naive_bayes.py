"""Naive Bayes over a case's findings: the simplest ranking of diseases, and the yardstick for every other.

    score(disease) = log prior + sum over observed terms of log p(term | disease)

    p(term | disease) = (cases of the disease with the term + m * share of all cases with it) / (cases + m)

The estimate leans on the whole cohort with the weight of ``m`` cases, so that a disease with one case still ranks.
Absent findings are left out: as log(1 - p) they make the ranking of unseen cases worse, and as findings of their own
("was looked for") much better, but largely because which of them a report lists is a habit of its authors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mint.data.cases import Case
from mint.errors import InputError

STRENGTH = 6.0  # m above
PRIOR_CASES = 0.3  # added to every disease's count for the prior


class NaiveBayesTeacher:
    """Counts of a cohort, and scores from them. ``diseases`` are the names it knows, in alphabetical order."""

    name = "naive Bayes"

    def __init__(self, cases: Sequence[Case]):
        """Counts the cohort. Raises InputError if it names fewer than two diseases."""
        classes = sorted({case.disease for case in cases})
        if len(classes) < 2:
            raise InputError("ranking needs cases of at least two diseases")
        labels = sorted({term.label for case in cases for term in case.observed})
        self._set(classes, labels, np.zeros(len(classes)), np.zeros((len(labels), len(classes))))
        for case in cases:
            column = self._disease[case.disease]
            self._cases[column] += 1
            self._with[self._known(case), column] += 1
        self._estimate()

    def _set(self, classes: list[str], labels: list[str], cases: np.ndarray, with_term: np.ndarray) -> None:
        """cases: [diseases]; with_term: [terms, diseases], how many of them have the term."""
        self.classes, self._cases, self._with = classes, cases, with_term
        self._disease = {name: i for i, name in enumerate(classes)}
        self._term = {label: i for i, label in enumerate(labels)}

    def _estimate(self) -> None:
        self._share = (self._with.sum(1) + 0.5) / (self._cases.sum() + 1)
        self._log_p = np.log((self._with + STRENGTH * self._share[:, None]) / (self._cases + STRENGTH))
        prior = self._cases + PRIOR_CASES
        self._prior_total = prior.sum()
        self._log_prior = np.log(prior / self._prior_total)

    def counts(self) -> dict:
        """What the teacher has counted, for a JSON file; :meth:`from_counts` restores it."""
        findings = {label: self._with[row].astype(int).tolist() for label, row in self._term.items()}
        return {"classes": self.classes, "cases": self._cases.astype(int).tolist(), "findings": findings}

    @classmethod
    def from_counts(cls, counts: Mapping) -> NaiveBayesTeacher:
        """The teacher with these counts. Raises InputError for counts of another form."""
        teacher = cls.__new__(cls)
        try:
            cases, rows = np.array(counts["cases"], float), list(counts["findings"].values())
            if len(counts["classes"]) != len(cases):
                raise ValueError(f"{len(counts['classes'])} classes, {len(cases)} counts")
            table = np.array(rows, float).reshape(len(rows), len(cases))
            teacher._set(list(counts["classes"]), list(counts["findings"]), cases, table)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the counts of naive Bayes have another form than expected ({error})") from None
        teacher._estimate()
        return teacher

    def _known(self, case: Case) -> list[int]:
        return [self._term[label] for label in {t.label: None for t in case.observed} if label in self._term]

    def scores(self, cases: Sequence[Case], own: Sequence[Case] | None = None) -> np.ndarray:
        """[cases, diseases]: log score of every disease for every case.

        own: for each, the training case that it is (a variant of); that case's own counts are then taken out.
        """
        return np.stack([self._score(case, own[i] if own else None) for i, case in enumerate(cases)])

    def _score(self, case: Case, own: Case | None) -> np.ndarray:
        terms = self._known(case)
        scores = self._log_prior + self._log_p[terms].sum(0)
        if own is not None and own.disease in self._disease:
            column = self._disease[own.disease]
            others = self._cases[column] - 1
            counted = np.isin(terms, self._known(own))
            p = (self._with[terms, column] - counted + STRENGTH * self._share[terms]) / (others + STRENGTH)
            scores[column] = np.log((others + PRIOR_CASES) / self._prior_total) + np.log(p).sum()
        return scores

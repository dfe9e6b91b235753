"""Retrieval for the prompt: the passages of a collection that fit a note best, by BM25.

A collection is made of disease descriptions, written from a table of features and frequencies in the form of the Human
Phenotype Ontology's annotations, or of cases with known diagnoses.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import bm25s
import numpy as np

from mint.data.cases import Case, in_prose, write_note
from mint.data.records import read_text
from mint.errors import InputError

TABLES = {  # of a folder of descriptions -> the columns that are read
    "disease_features": {"disease_id", "hpo_id", "qualifier", "frequency_value", "aspect"},
    "diseases": {"disease_id", "name"},
    "terms": {"id", "label"},
}
BANDS = (  # least share of patients -> words; the bands are HPO's own
    (0.8, "very frequent"),
    (0.3, "frequent"),
    (0.0, "occasional"),
)
FEATURES = 40  # of a description at most, the most frequent first


class Passage(NamedTuple):
    """A text of the collection; id: the case or disease it is about."""

    id: str
    text: str


def is_description_folder(path: str | Path) -> bool:
    """Whether the folder holds tables for :func:`read_descriptions`."""
    return all(_table(Path(path), name).is_file() for name in TABLES)


def read_descriptions(folder: str | Path) -> list[Passage]:
    """A description of every disease in ``disease_features``, ``diseases`` and ``terms`` (.tsv or .tsv.gz).

    Features that are excluded, and rows that are no phenotype (inheritance, onset), are left out.
    Raises InputError for a table that is missing, unreadable or lacks a column.
    """
    folder = Path(folder)
    labels = {row["id"]: row["label"] for row in _rows(folder, "terms")}
    names = {row["disease_id"]: row["name"] for row in _rows(folder, "diseases")}
    features: dict[str, list[tuple[float | None, str]]] = defaultdict(list)
    for row in _rows(folder, "disease_features"):
        if (
            row["qualifier"] != "NOT"
            and row["aspect"] == "P"
            and row["hpo_id"] in labels
            and row["disease_id"] in names
        ):
            features[row["disease_id"]].append((_share(row["frequency_value"]), labels[row["hpo_id"]]))
    return [Passage(disease, write_description(names[disease], found)) for disease, found in features.items()]


def write_description(name: str, features: Sequence[tuple[float | None, str]]) -> str:
    """ "NAME. Very frequent: a, b. Frequent: c. Also reported: d." from (share of patients or None, label) pairs."""
    ordered = sorted(features, key=lambda feature: -1.0 if feature[0] is None else -feature[0] - 1)[:FEATURES]
    sentences = [f"{name}."]
    for least, words in BANDS:
        top = min((above for above, _ in BANDS if above > least), default=2.0)
        some = [in_prose(label) for share, label in ordered if share is not None and least <= share < top]
        sentences += [f"{words.capitalize()}: {', '.join(some)}."] if some else []
    unknown = [in_prose(label) for share, label in ordered if share is None]
    return " ".join(sentences + ([f"Also reported: {', '.join(unknown)}."] if unknown else []))


def describe_cases(cases: Sequence[Case]) -> list[Passage]:
    """Every case's note with its diagnosis."""
    return [Passage(case.id, f"{write_note(case)} Diagnosis: {case.disease}.") for case in cases]


class Index:
    """Passages and how well each fits a note. least: the score below which a passage is not retrieved."""

    passages: Sequence[Passage]
    least = -np.inf

    def scores(self, note: str) -> np.ndarray:
        """[passages]: a score for every passage, higher for a better fit."""
        raise NotImplementedError

    def retrieve(self, notes: Sequence[str], count: int, own: Sequence[str] | None = None) -> list[list[str]]:
        """For each note the texts of the ``count`` best passages, the best first.

        own: for each note the id of passages that must not be among them: its own. Raises InputError for count < 1.
        """
        if count < 1:
            raise InputError(f"at least one passage has to be retrieved, not {count}")
        result = []
        for place, note in enumerate(notes):
            scores = self.scores(note)
            order = (i for i in np.argsort(-scores, kind="stable") if scores[i] >= self.least)
            best = (self.passages[i] for i in order)
            found = (passage.text for passage in best if own is None or passage.id != own[place])
            result.append(list(islice(found, count)))
        return result


class Retriever(Index):
    """BM25 over the passages of a collection."""

    def __init__(self, passages: Sequence[Passage]):
        """Raises InputError if there is no passage that holds a word."""
        words = _words([passage.text for passage in passages])
        if not any(words):
            raise InputError("there are no passages to retrieve from")
        self.passages = passages
        self._index = bm25s.BM25()
        self._index.index(words, show_progress=False)

    def scores(self, note: str) -> np.ndarray:
        """[passages]: the BM25 score of every passage for a note, 0 for those that share no word with it."""
        words = _words([note])[0]
        return self._index.get_scores(words) if words else np.zeros(len(self.passages), dtype=np.float32)


def _words(texts: Sequence[str]) -> list[list[str]]:
    return bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False) if texts else []


def _table(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.tsv.gz"
    return packed if packed.is_file() else folder / f"{name}.tsv"


def _rows(folder: Path, name: str) -> Iterator[dict[str, str]]:
    path = _table(folder, name)
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        if missing := TABLES[name].difference(rows.fieldnames or ()):
            raise InputError(f"{path} lacks the columns {', '.join(sorted(missing))}")
        for row in rows:
            if any(row[column] is None for column in TABLES[name]):
                raise InputError(f"{path}:{rows.line_num}: the row is too short")
            yield row
    except csv.Error as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _share(text: str) -> float | None:
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 <= share <= 1 else None

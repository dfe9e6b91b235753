"""Scores of written reports: words (BLEU, ROUGE-L, METEOR), and findings said to be there or not."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from operator import itemgetter
from pathlib import Path

import numpy as np
from nltk.stem import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score

from mint.data.questions import Question
from mint.errors import InputError
from mint.evaluation.scores import Score, estimate, mean_score, means_table, save_scores
from mint.evaluation.statistics import Estimate
from mint.files import make_folder, write_aside
from mint.prefs.claims import Finding, Truth, read_claims
from mint.tasks.vqa import words

LONGEST = 4  # words of an n-gram
FINDINGS = Path(__file__).with_name("chest_findings.tsv")
PRECISION, RECALL, F1 = range(3)


class _NoSynonyms:
    """Stands for WordNet, which is not loaded: words match as they are, or by their stems."""

    @staticmethod
    def synsets(word: str) -> list:
        return []


@dataclass(frozen=True)
class ReportScore:
    """Of one report. ngrams: of each length (shared with the reference, all). found, denied: (shared, told, true) findings."""

    told: int
    true: int
    ngrams: tuple[tuple[int, int], ...]
    rouge_l: float
    meteor: float
    found: tuple[int, int, int]
    denied: tuple[int, int, int]


def read_findings(path: str | Path = FINDINGS) -> tuple[Finding, ...]:
    """The findings of a table: a line each, its names separated by tabs.

    Raises InputError if the table cannot be read or names something twice.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = [[name.strip() for name in row if name.strip()] for row in csv.reader(file, delimiter="\t")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    rows = [row for row in rows if row]
    twice = [name for name, count in Counter(name.lower() for row in rows for name in row).items() if count > 1]
    if not rows or twice:
        raise InputError(f"{path} " + (f"names {twice[0]!r} twice" if twice else "names no findings"))
    return tuple(Finding(tuple(row), present=False) for row in rows)


def stated(report: str, findings: Sequence[Finding]) -> tuple[set[str], set[str]]:
    """(findings that a report says are there, those it says are not), by their first names. Said both ways: there."""
    claims = read_claims(report, Truth(tuple(findings)))[1]
    there = {claim.finding.names[0] for claim in claims if claim.present}
    return there, {claim.finding.names[0] for claim in claims} - there


def score_report(told: str, reference: str, findings: Sequence[Finding]) -> ReportScore:
    """All scores of one report against its reference."""
    mine, true = words(told), words(reference)
    ngrams = tuple(_shared(mine, true, n) for n in range(1, LONGEST + 1))
    there, absent = stated(told, findings), stated(reference, findings)
    counts = [(len(a & b), len(a), len(b)) for a, b in zip(there, absent, strict=True)]
    meteor = single_meteor_score(true, mine, stemmer=_stemmer(), wordnet=_NoSynonyms()) if mine and true else 0.0
    return ReportScore(len(mine), len(true), ngrams, rouge_l(mine, true), float(meteor), *counts)


@cache
def _stemmer() -> PorterStemmer:
    return PorterStemmer()


def _shared(mine: Sequence[str], true: Sequence[str], n: int) -> tuple[int, int]:
    grams = [Counter(tuple(some[i : i + n]) for i in range(len(some) - n + 1)) for some in (mine, true)]
    return sum((grams[0] & grams[1]).values()), sum(grams[0].values())


def rouge_l(mine: Sequence[str], true: Sequence[str]) -> float:
    """The F1 of the longest common subsequence of words (Lin 2004)."""
    if not mine or not true:
        return 0.0
    row = [0] * (len(true) + 1)
    for word in mine:
        before = 0
        for j, other in enumerate(true, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(mine) + len(true))


def bleu(sums: np.ndarray) -> np.ndarray:
    """[..., LONGEST]: BLEU-1 to BLEU-4 of corpora (Papineni et al. 2002), without smoothing.

    sums: [..., 2 + 2 x LONGEST]: words told, words of the references, then of each length shared and all n-grams.
    """
    told, true = sums[..., 0], sums[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(sums[..., 2::2] / np.maximum(sums[..., 3::2], 1))
        brevity = np.minimum(0.0, 1 - true / told)
        means = np.cumsum(logs, -1) / np.arange(1, LONGEST + 1)
        return np.where(told[..., None] > 0, np.exp(np.minimum(0.0, means) + brevity[..., None]), 0.0)


def agreement(sums: np.ndarray) -> np.ndarray:
    """[..., 3]: precision, recall and F1 of findings. sums: [..., 3]: shared, told, true."""
    shared, told, true = np.moveaxis(sums, -1, 0)
    parts = (shared / np.maximum(told, 1), shared / np.maximum(true, 1), 2 * shared / np.maximum(told + true, 1))
    return np.stack(parts, -1)


def _ngram_counts(record: Mapping) -> list[float]:
    return [record["told"], record["true"], *(count for pair in record["ngrams"] for count in pair)]


def _nth_bleu(n: int, sums: np.ndarray) -> np.ndarray:
    return bleu(sums)[..., n]


def _nth_agreement(n: int, sums: np.ndarray) -> np.ndarray:
    return agreement(sums)[..., n]


COLUMNS = {
    **{f"bleu_{n + 1}": Score(f"BLEU-{n + 1}", _ngram_counts, partial(_nth_bleu, n)) for n in range(LONGEST)},
    "rouge_l": mean_score("rouge_l", "ROUGE-L"),
    "meteor": mean_score("meteor", "METEOR"),
    "precision": Score("findings, precision", itemgetter("found"), partial(_nth_agreement, PRECISION)),
    "recall": Score("findings, recall", itemgetter("found"), partial(_nth_agreement, RECALL)),
    "f1": Score("findings, F1", itemgetter("found"), partial(_nth_agreement, F1)),
    "denied": Score("denied findings, F1", itemgetter("denied"), partial(_nth_agreement, F1)),
}
MEANINGS = {
    **{f"bleu_{n}": f"Corpus BLEU of n-grams of up to {n} words, without smoothing." for n in range(1, LONGEST + 1)},
    "rouge_l": "F1 of the longest common subsequence of words with the reference.",
    "meteor": "Aligned words and stems, weighted towards recall; no synonyms.",
    "precision": "Findings stated as present that the reference states too.",
    "recall": "Findings present in the reference that the report states.",
    "f1": "F1 of the findings stated as present.",
    "denied": "F1 of the findings stated as absent.",
}
COLUMNS = {name: replace(score, meaning=MEANINGS[name]) for name, score in COLUMNS.items()}


def summarize(scores: Sequence[ReportScore]) -> dict[str, Estimate]:
    """Every score of the corpus with its interval over reports. Raises InputError for none."""
    if not scores:
        raise InputError("there are no reports to score")
    return estimate(COLUMNS, [[dataclasses.asdict(score) for score in scores]])


def by_finding(told: Sequence[str], references: Sequence[str], findings: Sequence[Finding]) -> list[dict]:
    """For every finding that a report or reference says is there: shared, told and true reports."""
    mine, true = ([stated(report, findings)[0] for report in some] for some in (told, references))
    rows = []
    for finding in findings:
        name = finding.names[0]
        pairs = [(name in a, name in b) for a, b in zip(mine, true, strict=True)]
        row = {"finding": name, "shared": sum(a and b for a, b in pairs)}
        row |= {"told": sum(a for a, _ in pairs), "true": sum(b for _, b in pairs)}
        if row["told"] or row["true"]:
            rows.append(row)
    return rows


def format_means(name: str, means: dict[str, Estimate]) -> str:
    """The scores as text, in per cent."""
    return means_table(name, means, COLUMNS)


def save_reports(
    folder: Path,
    name: str,
    questions: Sequence[Question],
    told: Sequence[str],
    scores: Sequence[ReportScore],
    means: dict[str, Estimate],
    findings: Sequence[Finding],
    settings: dict,
) -> None:
    """Writes predictions.jsonl, findings.csv, and metrics.json last. Raises InputError if the folder cannot be written."""
    counts = io.StringIO()
    writer = csv.DictWriter(counts, ("finding", "shared", "told", "true"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(by_finding(told, [q.answer for q in questions], findings))
    make_folder(folder)
    write_aside(folder / "findings.csv", counts.getvalue())
    rows = (
        {
            "id": q.id,
            "images": [os.path.relpath(file, folder) for file in q.images],
            "report": report,
            "reference": q.answer,
        }
        | dataclasses.asdict(score)
        for q, report, score in zip(questions, told, scores, strict=True)
    )
    save_scores(folder, "predictions.jsonl", rows, name, means, settings)

"""Scores of written reports: words (BLEU, ROUGE-L, METEOR), and findings said to be there or not."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from nltk.stem import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score

from mint.data.preferences import write_jsonl
from mint.data.vqa import Question
from mint.errors import InputError
from mint.evaluation.statistics import RESAMPLES, Estimate, bootstrap
from mint.evaluation.vqa import words
from mint.files import make_folder, write_aside
from mint.prefs.claims import Finding, Truth, read_claims

LONGEST = 4  # words of an n-gram
FINDINGS = Path(__file__).with_name("chest_findings.tsv")
COLUMNS = {
    **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, LONGEST + 1)},
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "precision": "findings, precision",
    "recall": "recall",
    "f1": "F1",
    "denied": "denied findings, F1",
}


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
    """BLEU-1 to BLEU-4 of corpora (Papineni et al. 2002), without smoothing.

    sums: [corpora, 2 + 2 x LONGEST]: words told, words of the references, then of each length shared and all n-grams.
    """
    told, true = sums[:, 0], sums[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(sums[:, 2::2] / np.maximum(sums[:, 3::2], 1))
        brevity = np.minimum(0.0, 1 - true / told)
    means = np.cumsum(logs, 1) / np.arange(1, LONGEST + 1)
    return np.where(told[:, None] > 0, np.exp(np.minimum(0.0, means) + brevity[:, None]), 0.0)


def agreement(sums: np.ndarray) -> np.ndarray:
    """[corpora, 3]: precision, recall and F1 of findings. sums: [corpora, 3]: shared, told, true."""
    shared, told, true = sums.T
    return np.stack([shared / np.maximum(told, 1), shared / np.maximum(true, 1), 2 * shared / np.maximum(told + true, 1)], 1)


def summarize(scores: Sequence[ReportScore]) -> dict[str, Estimate]:
    """Every score of the corpus with its interval over reports. Raises InputError for none."""
    if not scores:
        raise InputError("there are no reports to score")
    counts = np.array([[s.told, s.true, *(value for pair in s.ngrams for value in pair)] for s in scores], dtype=float)
    found = {f"bleu_{n + 1}": e for n, e in enumerate(_of_sums(counts, bleu))}
    for name in ("rouge_l", "meteor"):
        found[name] = bootstrap(np.array([[getattr(s, name) for s in scores]]))
    there, denied = (np.array([getattr(s, name) for s in scores], dtype=float) for name in ("found", "denied"))
    found |= zip(("precision", "recall", "f1"), _of_sums(there, agreement), strict=True)
    found["denied"] = _of_sums(denied, agreement)[2]
    return found


def _of_sums(counts: np.ndarray, function: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> list[Estimate]:
    """What a function of the reports' summed counts gives, with the percentile bootstrap's intervals."""
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLES)
    low, high = np.percentile(function(weights @ counts), (2.5, 97.5), axis=0)
    value = function(counts.sum(0, keepdims=True))[0]
    return [Estimate(*map(float, some)) for some in zip(value, low, high, strict=True)]


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
    cells = [f"{100 * e.value:.1f} ({100 * e.low:.1f}-{100 * e.high:.1f})" for e in means.values()]
    head = "| | " + " | ".join(COLUMNS[metric] for metric in means) + " |"
    return "\n".join([head, "|---" * (len(means) + 1) + "|", f"| {name} | " + " | ".join(cells) + " |"])


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
    make_folder(folder)
    rows = (
        {"id": q.id, "images": q.images, "report": report, "reference": q.answer, **dataclasses.asdict(score)}
        for q, report, score in zip(questions, told, scores, strict=True)
    )
    write_jsonl(folder / "predictions.jsonl", rows)
    counts = io.StringIO()
    writer = csv.DictWriter(counts, ("finding", "shared", "told", "true"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(by_finding(told, [q.answer for q in questions], findings))
    write_aside(folder / "findings.csv", counts.getvalue())
    record = {"settings": settings, "name": name, "scores": {key: dataclasses.asdict(e) for key, e in means.items()}}
    write_aside(folder / "metrics.json", json.dumps(record, indent=2) + "\n")

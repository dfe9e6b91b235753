"""Written reports: scores of words (BLEU, ROUGE-L, METEOR), of findings stated as present or absent, of GREEN, and of
labels that CheXbert and RadGraph gave them elsewhere."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import itemgetter
from pathlib import Path

import numpy as np
from nltk.stem import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score

from mint.data.questions import Question, read_questions
from mint.data.records import read_text
from mint.data.vqa_files import SPLITS
from mint.errors import InputError
from mint.evaluation.folder import EvaluationFolder
from mint.evaluation.green import GREEN_COLUMNS, ask_green, green_fields
from mint.evaluation.report_labels import LABEL_COLUMNS, read_labels
from mint.evaluation.scores import F1, PRECISION, RECALL, Score, agreement, mean_score
from mint.files import make_folder, write_aside
from mint.prefs.claims import Finding, Truth, read_claims
from mint.prefs.instructed_editor import Complete
from mint.tasks.base import Result
from mint.tasks.vqa import COLUMNS as VQA_COLUMNS
from mint.tasks.vqa import QuestionTask, words

LONGEST = 4  # words of an n-gram
SHOWN = 10  # unparsed replies named in the printed text
FINDINGS = Path(__file__).with_name("chest_findings.tsv")
COUNTED = ("finding", "n_shared", "n_predicted", "n_reference")  # columns of findings.csv


class _NoSynonyms:
    """Stands for WordNet, which is not loaded: words match as they are, or by their stems."""

    @staticmethod
    def synsets(word: str) -> list:
        return []


@dataclass(frozen=True)
class ReportScore:
    """Of one report. n_predicted, n_reference: words. ngrams: of each length (shared with the reference, predicted).

    found, denied: findings stated as present and as absent, (shared, predicted, in the reference).
    """

    n_predicted: int
    n_reference: int
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
        table = csv.reader(io.StringIO(read_text(Path(path)), newline=""), delimiter="\t")
        rows = [[name.strip() for name in row if name.strip()] for row in table]
    except csv.Error as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    rows = [row for row in rows if row]
    twice = [name for name, count in Counter(name.lower() for row in rows for name in row).items() if count > 1]
    if not rows or twice:
        raise InputError(f"{path} " + (f"names {twice[0]!r} twice" if twice else "names no findings"))
    return tuple(Finding(tuple(row), present=False) for row in rows)


def stated(report: str, findings: Sequence[Finding]) -> tuple[set[str], set[str]]:
    """(findings that a report states as present, as absent), by their first names; stated as both counts as present."""
    claims = read_claims(report, Truth(tuple(findings)))[1]
    there = {claim.finding.names[0] for claim in claims if claim.present}
    return there, {claim.finding.names[0] for claim in claims} - there


def score_report(report: str, reference: str, findings: Sequence[Finding]) -> ReportScore:
    """All scores of one report against its reference."""
    mine, true = words(report), words(reference)
    ngrams = tuple(_shared(mine, true, n) for n in range(1, LONGEST + 1))
    there, absent = stated(report, findings), stated(reference, findings)
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

    sums: [..., 2 + 2 x LONGEST]: words predicted, words of the references, then of each length the n-grams that are
    shared and those that are predicted.
    """
    predicted, reference = sums[..., 0], sums[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(sums[..., 2::2] / np.maximum(sums[..., 3::2], 1))
        brevity = np.minimum(0.0, 1 - reference / predicted)
        means = np.cumsum(logs, -1) / np.arange(1, LONGEST + 1)
        return np.where(predicted[..., None] > 0, np.exp(np.minimum(0.0, means) + brevity[..., None]), 0.0)


def _ngram_counts(record: Mapping) -> list[float]:
    older = {"n_predicted": "told", "n_reference": "true"}  # names in files of earlier versions
    words = [record[name] if name in record else record[old] for name, old in older.items()]
    return [*words, *(count for pair in record["ngrams"] for count in pair)]


def _nth_bleu(n: int, sums: np.ndarray) -> np.ndarray:
    return bleu(sums)[..., n]


def _nth_agreement(n: int, sums: np.ndarray) -> np.ndarray:
    return agreement(sums)[..., n]


def _finding_score(heading: str, field: str, n: int, meaning: str) -> Score:
    return Score(heading, itemgetter(field), partial(_nth_agreement, n), meaning=meaning)


NGRAMS = "Corpus BLEU of n-grams of up to {} words, without smoothing."
COLUMNS = {
    **{
        f"bleu_{n + 1}": Score(f"BLEU-{n + 1}", _ngram_counts, partial(_nth_bleu, n), meaning=NGRAMS.format(n + 1))
        for n in range(LONGEST)
    },
    "rouge_l": mean_score("rouge_l", "ROUGE-L", meaning="F1 of the longest common subsequence of words."),
    "meteor": mean_score("meteor", "METEOR", meaning="Aligned words and stems, weighted towards recall; no synonyms."),
    "precision": _finding_score("findings, precision", "found", PRECISION, "Stated findings that the reference has."),
    "recall": _finding_score("findings, recall", "found", RECALL, "Findings of the reference that are stated."),
    "f1": _finding_score("findings, F1", "found", F1, "F1 of the findings stated as present."),
    "denied": _finding_score("denied findings, F1", "denied", F1, "F1 of the findings stated as absent."),
    **GREEN_COLUMNS,
    **LABEL_COLUMNS,
    "judged": VQA_COLUMNS["judged"],
}


def by_finding(reports: Sequence[str], references: Sequence[str], findings: Sequence[Finding]) -> list[dict]:
    """For every finding that a report or reference states as present: in how many it is, by the keys of ``COUNTED``."""
    mine, true = ([stated(text, findings)[0] for text in texts] for texts in (reports, references))
    rows = []
    for finding in findings:
        name = finding.names[0]
        pairs = [(name in a, name in b) for a, b in zip(mine, true, strict=True)]
        counts = sum(a and b for a, b in pairs), sum(a for a, _ in pairs), sum(b for _, b in pairs)
        if any(counts):
            rows.append(dict(zip(COUNTED, (name, *counts), strict=True)))
    return rows


class Report(QuestionTask):
    """Written reports of radiographs. findings: those that are looked for in the reports."""

    name = noun = "reports"
    field = "rouge_l"
    columns = COLUMNS
    tested = ("bleu_4", "rouge_l", "meteor", "f1", "green", *LABEL_COLUMNS, "judged")
    texts = {"reference": "Reference"}
    private = ("green_reply",)  # it cites the reference
    answer = "report"
    decoding = {**QuestionTask.decoding, "max_new_tokens": 256}

    def __init__(self, findings: Sequence[Finding] | None = None, instruction: str = "", judge: Complete | None = None):
        """findings: default those of the chest."""
        super().__init__(instruction, judge)
        self.findings = read_findings() if findings is None else findings
        self.replies: dict[str, str] = {}  # id -> GREEN's reply
        self.labels: dict[str, dict] = {}  # id -> fields of the record

    def score(self, report: str, question: Question) -> dict:
        scores = dataclasses.asdict(score_report(report, question.answer, self.findings))
        green = green_fields(self.replies[question.id]) if self.replies else {}
        return scores | green | self.labels.get(question.id, {}) | self.judged(report, question)

    def record(self, question: Question, folder: Path) -> dict:
        return super().record(question, folder) | {"reference": question.answer}

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--reports", required=True, metavar="FILE", help="IU-Xray's annotation.json, or JSON Lines")
        add("--split", default="test", choices=SPLITS, help="of annotation.json (default test)")
        add("--findings", metavar="FILE.tsv", help="a finding a line, its names by tabs (default: of the chest)")
        add("--green", metavar="DIR|ID", help="GREEN's judge, such as StanfordAIMI/GREEN-RadLlama2-7b")
        add("--labels", metavar="FILE.jsonl", help="labels of CheXbert or RadGraph, computed elsewhere")
        super().add_options(parser)

    def read(self, args: argparse.Namespace) -> list[Question]:
        self.findings = read_findings(args.findings) if args.findings else self.findings
        questions, read = read_questions(args.reports, args.images, split=args.split)
        print(f"{args.reports}: {read}")
        if args.labels:
            self.labels = read_labels(args.labels, [question.id for question in questions])
            missing = [question.id for question in questions[: args.limit] if question.id not in self.labels]
            if missing:
                raise InputError(f"--labels {args.labels} lacks {len(missing)} reports: {', '.join(missing[:5])}")
        return questions

    def answers(self, args: argparse.Namespace, folder: EvaluationFolder, questions: Sequence[Question]) -> list:
        """The reports; then, with ``--green``, the judge's replies to them."""
        reports = super().answers(args, folder, questions)
        if args.green:
            ids, references = [question.id for question in questions], [question.answer for question in questions]
            self.replies = dict(zip(ids, ask_green(args, folder.path, ids, references, reports), strict=True))
        return reports

    def text(self, results: Sequence[Result]) -> str:
        """The table, and which replies of GREEN cannot be parsed."""
        lost = unparsed(results[-1])
        names = ", ".join(lost[:SHOWN]) + f" and {len(lost) - SHOWN} more" * (len(lost) > SHOWN)
        note = f"\nGREEN: {len(lost)} of {len(self.replies)} replies cannot be parsed and count as 0: {names}"
        return super().text(results) + note * bool(lost)

    def save_more(self, folder: Path, results: Sequence[Result], settings: dict) -> dict:
        """Writes findings.csv too."""
        *_, result = results
        counts = io.StringIO()
        writer = csv.DictWriter(counts, COUNTED, lineterminator="\n")
        writer.writeheader()
        writer.writerows(by_finding(result.answers, [question.answer for question in result.examples], self.findings))
        make_folder(folder)
        write_aside(folder / "findings.csv", counts.getvalue())
        return {"green_unparsed": unparsed(result)} if self.replies else {}


def unparsed(result: Result) -> list[str]:
    """The ids of reports to which GREEN's reply cannot be parsed."""
    return [record["id"] for record in result.records if "green" in record and record["green_matched"] is None]

"""Questions about medical images: closed and open questions are scored apart, as in LLaVA-Med's evaluation."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mint.data.questions import Question, read_questions, yes_or_no
from mint.errors import InputError
from mint.evaluation.scores import Score, mean_score
from mint.evaluation.statistics import Estimate
from mint.prefs.chat_endpoint import ChatEndpoint, add_chat_options
from mint.prefs.claims import Truth
from mint.prefs.instructed_editor import Complete
from mint.prefs.rules_editor import says_truth
from mint.tasks.base import Result, Task, first_image
from mint.tasks.facts import facts_f1

SCORES = {  # score -> heading, meaning
    "clinical": ("clinical accuracy", "Answers that state something and nothing false, where the truth is known."),
    "facts": ("F1 of facts", "F1 of the facts that a description states, where the truth is known."),
    "judged": ("accuracy by judge", "Answers that the judge model finds to agree with the reference."),
    "closed": ("closed accuracy", "Closed questions answered correctly (yes or no, or one of the named options)."),
    "open": ("open recall", "Open questions: the share of the reference's words that the answer holds."),
    "exact": ("exact match", "Answers with exactly the reference's words."),
    "f1": ("F1", "F1 of the answer's words against the reference's."),
    "bleu_1": ("BLEU-1", "Words of the answer that are in the reference, times the brevity penalty."),
    "unparsed": ("unparsed", "Yes-no questions whose answer says neither."),
}
BY_KIND = ("closed", "open", "overall")
SCORERS = {  # scorer -> the scores of closed questions, open questions, and all of them; its heading
    "exact": (("exact_closed", "exact_open", "exact"), "exact match"),
    "recall": (("closed", "open", "recall"), "closed: yes, no or option found; open: token recall"),
    "judged": (("judged_closed", "judged_open", "judged"), "judge"),
}
JUDGE = (
    "You compare an answer to a question about a medical image with the reference answer. Say whether the answer means "
    "the same as the reference as far as the question asks. Reply with yes or no and nothing else."
)
YES_NO = ("accuracy", "precision", "recall", "f1", "yes_rate")


def _of_kind(field: str, kind: str, record: Mapping) -> tuple[float, float] | None:
    return (float(record[field]), 1.0) if record.get("kind") == kind and record.get(field) is not None else None


def _recall(record: Mapping) -> tuple[float, float] | None:
    value = record["open"] if record["closed"] is None else record["closed"]
    return None if value is None else (float(value), 1.0)


def _columns() -> dict[str, Score]:
    """The scores of ``SCORES``, and those that only the table of scorers shows."""
    columns = {n: mean_score(n, h, marked=n != "unparsed", meaning=m) for n, (h, m) in SCORES.items()}
    for field in ("exact", "judged"):
        names, heading = SCORERS[field]
        for name, kind in zip(names, BY_KIND[:2], strict=False):
            meaning = f"{SCORES[field][0].capitalize()}, {kind} questions alone."
            columns[name] = Score(f"{heading}, {kind}", partial(_of_kind, field, kind), meaning=meaning, printed=False)
    meaning = "Closed accuracy or open recall, whichever a question has, over all questions."
    return columns | {"recall": Score("token recall, overall", _recall, meaning=meaning, printed=False)}


COLUMNS = _columns()


def scorer_table(means: Mapping[str, Estimate], judge: str = "") -> str:
    """A Markdown table with a row for each scorer: closed, open and all questions, in per cent with intervals.

    judge: the name of the judge. Figures of different scorers are not comparable.
    """
    lines = [f"| scorer | {' | '.join(BY_KIND)} |", "|---" * (len(BY_KIND) + 1) + "|"]
    for scorer, (names, heading) in SCORERS.items():
        found = [(COLUMNS[name], means.get(name)) for name in names]
        cells = [f"{score.number(e.value)} ({score.interval(e)})" if e else "" for score, e in found]
        if any(cells):
            lines.append(f"| {heading}{f' {judge}' * (scorer == 'judged')} | {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class AnswerScore:
    """closed, open: for a question of that kind, else None. unparsed: whether a yes-no question's answer says neither.

    clinical: where the truth is known, whether the answer states something and nothing false. facts: of a description,
    see ``facts_f1``.
    """

    clinical: float | None
    closed: float | None
    open: float | None
    exact: float
    f1: float
    bleu_1: float
    unparsed: float | None
    facts: float | None = None


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def score_answer(answer: str, question: Question) -> AnswerScore:
    """All scores of one answer.

    A closed question is answered correctly if the first whole word "yes" or "no" is that of the truth; for another
    truth, if the answer contains its words in a row. Open: token recall, the share of the truth's words that the answer
    contains (with multiplicity). F1 and BLEU-1 (clipped precision times the brevity penalty) are over words too.
    """
    predicted, truth = words(answer), words(question.answer)
    common = sum((Counter(predicted) & Counter(truth)).values())
    recall, precision = common / len(truth) if truth else 0.0, common / len(predicted) if predicted else 0.0
    short = math.exp(min(0.0, 1 - len(truth) / len(predicted))) if predicted else 0.0
    closed = unparsed = None
    if question.kind == "closed":
        wanted = yes_or_no(question.answer)
        if wanted is not None:
            found = yes_or_no(answer)
            closed, unparsed = float(found == wanted), float(found is None)
        else:
            closed = float(f" {' '.join(truth)} " in f" {' '.join(predicted)} ")
    clinical = facts = None
    if question.truth is not None:
        known = Truth.from_dict(question.truth)
        clinical, facts = float(says_truth(answer, known)), facts_f1(answer, known)
    return AnswerScore(
        clinical=clinical,
        facts=facts,
        closed=closed,
        open=recall if question.kind == "open" else None,
        exact=float(predicted == truth),
        f1=2 * precision * recall / (precision + recall) if common else 0.0,
        bleu_1=precision * short,
        unparsed=unparsed,
    )


def judge_answer(question: Question, answer: str, complete: Complete) -> float | None:
    """Whether a chat model finds that an answer agrees with the reference; None where its reply is no verdict."""
    text = f"Question: {question.text}\nReference: {question.answer}\nAnswer: {answer}"
    (reply,) = complete([[{"role": "system", "content": JUDGE}, {"role": "user", "content": text}]])
    return {"yes": 1.0, "no": 0.0, None: None}[yes_or_no(reply)]


def yes_no_scores(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float] | None:
    """Of the yes-no questions, as POPE counts: accuracy, precision, recall and F1 of "yes", and how often it is said.

    None where there are no such questions. What cannot be parsed counts as wrong, and as not said.
    """
    pairs = [(yes_or_no(a), yes_or_no(q.answer)) for a, q in zip(answers, questions, strict=True) if q.kind == "closed"]
    pairs = [pair for pair in pairs if pair[1] is not None]
    if not pairs:
        return None
    count = Counter(pairs)
    hits, said = count["yes", "yes"], sum(n for (predicted, _), n in count.items() if predicted == "yes")
    real = sum(n for (_, truth), n in count.items() if truth == "yes")
    precision, recall = hits / said if said else 0.0, hits / real if real else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    right = sum(n for (predicted, truth), n in count.items() if predicted == truth)
    return dict(zip(YES_NO, (right / len(pairs), precision, recall, f1, said / len(pairs)), strict=True))


class QuestionTask(Task):
    """Tasks whose examples are questions about images. judge: a chat model that compares answers with references."""

    vision = True

    def __init__(self, instruction: str = "", judge: Complete | None = None):
        """instruction: a line below every question."""
        self.instruction, self.judge = instruction, judge

    def judged(self, answer: str, question: Question) -> dict[str, float | None]:
        """The judge's verdict as a field of the record, None without a judge."""
        return {"judged": judge_answer(question, answer, self.judge) if self.judge else None}

    def messages(self, question: Question) -> list[dict]:
        return [{"role": "user", "content": "\n".join(filter(None, (question.text, self.instruction)))}]

    def images(self, question: Question) -> list[str]:
        return question.images

    def record(self, question: Question, folder: Path) -> dict:
        return {"id": question.id, "images": [os.path.relpath(file, folder) for file in question.images]}

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--images", metavar="DIR", help="where the images lie (default: beside their file)")
        parser.add_argument("--instruction", default="", help="a line below every question")
        group = parser.add_argument_group("judge")
        group.add_argument("--judge", metavar="MODEL", help="a chat model that compares answers with the references")
        add_chat_options(group, "--judge")

    def check(self, args: argparse.Namespace) -> None:
        super().check(args)
        if args.judge and not args.url:
            raise InputError("--judge needs --url")

    def prepare(self, args: argparse.Namespace, questions: Sequence[Question]) -> None:
        self.instruction = args.instruction
        if args.judge:
            replies = Path(args.out) / "replies"
            self.judge = ChatEndpoint(args.url, args.judge, replies, args.per_minute, args.key_name)


class Vqa(QuestionTask):
    """Answers to questions about medical images."""

    name = noun = "questions"
    field = "kind"
    columns = _columns()
    tested = ("clinical", "facts", "judged", "closed", "open")
    texts = {"question": "Question", "truth": "Reference"}
    group = staticmethod(first_image)

    def score(self, answer: str, question: Question) -> dict:
        return dataclasses.asdict(score_answer(answer, question)) | self.judged(answer, question)

    def record(self, question: Question, folder: Path) -> dict:
        fields = {"question": question.text, "truth": question.answer, "kind": question.kind, **question.traits}
        return super().record(question, folder) | fields

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--questions", required=True, metavar="FILE", help="of VQA-RAD, SLAKE or PathVQA, or JSON Lines"
        )
        parser.add_argument("--language", default="en", help="of SLAKE's questions (default en)")
        super().add_options(parser)

    def read(self, args: argparse.Namespace) -> list[Question]:
        questions, report = read_questions(args.questions, args.images, args.language)
        print(f"{args.questions}: {report}")
        for question in questions[: args.limit]:
            try:
                if question.truth is not None:
                    Truth.from_dict(question.truth)
            except InputError as error:
                raise InputError(f"question {question.id}: {error}") from None
        return questions

    def save_more(self, folder: Path, results: Sequence[Result], settings: dict) -> dict:
        return {"yes_no": yes_no_scores(results[-1].answers, results[-1].examples)}

    def text(self, results: Sequence[Result]) -> str:
        """The table, closed, open and overall by each scorer, and a line on yes-no questions."""
        scorers = scorer_table(results[-1].means, getattr(self.judge, "model", ""))
        found = yes_no_scores(results[-1].answers, results[-1].examples) or {}
        shares = ", ".join(f"{key.replace('_', ' ')} {100 * value:.1f}" for key, value in found.items())
        return f"{super().text(results)}\n\n{scorers}" + (f"\nyes or no: {shares}" if found else "")

"""Scores of answers about images: closed and open questions kept apart (as LLaVA-Med's evaluation does)."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mint.data.image_features import ImageReader
from mint.data.questions import Question, yes_or_no
from mint.data.record_images import ImageSlots, encode_with_images
from mint.errors import InputError
from mint.evaluation.scores import estimate, mean_score, means_table, save_scores
from mint.evaluation.statistics import Estimate
from mint.models.generate import generate
from mint.prefs.claims import Truth
from mint.prefs.rules_editor import says_truth
from mint.tasks.facts import facts_f1

HEADINGS = {
    "clinical": "clinically right",
    "facts": "F1 of facts",
    "judged": "right to the judge",
    "closed": "closed accuracy",
    "open": "open recall",
    "exact": "exact match",
    "f1": "F1",
    "bleu_1": "BLEU-1",
    "unparsed": "unparsed",
}
MEANINGS = {
    "clinical": "Answers that state something and nothing false, where the truth is known.",
    "facts": "F1 of the facts that a description states, where the truth is known.",
    "judged": "Answers that the judge model finds to agree with the reference.",
    "closed": "Closed questions answered correctly (yes or no, or one of the named options).",
    "open": "Open questions: the share of the reference's words that the answer holds.",
    "exact": "Answers with exactly the reference's words.",
    "f1": "F1 of the answer's words against the reference's.",
    "bleu_1": "Words of the answer that are in the reference, times the brevity penalty.",
    "unparsed": "Yes-no questions whose answer says neither.",
}
COLUMNS = {n: mean_score(n, h, marked=n != "unparsed", meaning=MEANINGS[n]) for n, h in HEADINGS.items()}
JUDGE = (
    "You compare an answer to a question about a medical image with the reference answer. Say whether the answer means the "
    "same as the reference as far as the question asks. Reply with yes or no and nothing else."
)
YES_NO = ("accuracy", "precision", "recall", "f1", "yes_rate")


@dataclass(frozen=True)
class AnswerScore:
    """closed, open: of a question of that kind, else None. unparsed: of a yes-no question, whether no answer was found.

    clinical: where the truth is known, whether the answer says something and nothing false. facts: of a description, see
    ``facts_f1``. judged: what a judge says, if there is one; None where its reply could not be read.
    """

    clinical: float | None
    closed: float | None
    open: float | None
    exact: float
    f1: float
    bleu_1: float
    unparsed: float | None
    facts: float | None = None
    judged: float | None = None


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def score_answer(answer: str, question: Question) -> AnswerScore:
    """All scores of one answer.

    A closed question is right if the first whole word "yes" or "no" is the truth's; where that is neither, if the answer
    holds the truth's words in a row. Open: the share of the truth's words that the answer holds, each as often as it does
    (token recall). F1 and BLEU-1 (clipped precision times the brevity penalty) are over words too.
    """
    told, truth = words(answer), words(question.answer)
    common = sum((Counter(told) & Counter(truth)).values())
    recall, precision = common / len(truth) if truth else 0.0, common / len(told) if told else 0.0
    short = math.exp(min(0.0, 1 - len(truth) / len(told))) if told else 0.0
    closed = unparsed = None
    if question.kind == "closed":
        wanted = yes_or_no(question.answer)
        if wanted is not None:
            found = yes_or_no(answer)
            closed, unparsed = float(found == wanted), float(found is None)
        else:
            closed = float(f" {' '.join(truth)} " in f" {' '.join(told)} ")
    clinical = facts = None
    if question.truth is not None:
        known = Truth.from_dict(question.truth)
        clinical, facts = float(says_truth(answer, known)), facts_f1(answer, known)
    return AnswerScore(
        clinical=clinical,
        facts=facts,
        closed=closed,
        open=recall if question.kind == "open" else None,
        exact=float(told == truth),
        f1=2 * precision * recall / (precision + recall) if common else 0.0,
        bleu_1=precision * short,
        unparsed=unparsed,
    )


def judge_answers(
    questions: Sequence[Question], answers: Sequence[str], complete: Callable[[Sequence[list[dict]]], Iterator[str]]
) -> list[float | None]:
    """Of each answer, whether a chat model finds that it agrees with the reference; None where its reply is no verdict.

    complete: messages -> replies, one after the other.
    """
    asked = [
        [
            {"role": "system", "content": JUDGE},
            {"role": "user", "content": f"Question: {q.text}\nReference: {q.answer}\nAnswer: {answer}"},
        ]
        for q, answer in zip(questions, answers, strict=True)
    ]
    verdicts = {"yes": 1.0, "no": 0.0, None: None}
    return [verdicts[yes_or_no(reply)] for reply in complete(asked)]


def check_truths(questions: Sequence[Question]) -> None:
    """Raises InputError naming the first question whose truth is of the wrong form."""
    for question in questions:
        try:
            if question.truth is not None:
                Truth.from_dict(question.truth)
        except InputError as error:
            raise InputError(f"question {question.id}: {error}") from None


def summarize(scores: Sequence[AnswerScore], questions: Sequence[Question]) -> dict[str, Estimate]:
    """The mean of every score over the questions that have it, with an interval that draws an image's questions together.

    Raises InputError for no questions.
    """
    if not scores:
        raise InputError("there are no questions to score")
    return estimate(COLUMNS, [[dataclasses.asdict(score) for score in scores]], [str(q.image) for q in questions])


def yes_no_scores(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float] | None:
    """Of the yes-no questions, as POPE counts: accuracy, precision, recall and F1 of "yes", and how often it is said.

    None where there are no such questions. What cannot be parsed counts as wrong, and as not said.
    """
    pairs = [(yes_or_no(a), yes_or_no(q.answer)) for a, q in zip(answers, questions, strict=True) if q.kind == "closed"]
    pairs = [pair for pair in pairs if pair[1] is not None]
    if not pairs:
        return None
    count = Counter(pairs)
    hits, said = count["yes", "yes"], sum(n for (told, _), n in count.items() if told == "yes")
    real = sum(n for (_, truth), n in count.items() if truth == "yes")
    precision, recall = hits / said if said else 0.0, hits / real if real else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    right = sum(n for (told, truth), n in count.items() if told == truth)
    return dict(zip(YES_NO, (right / len(pairs), precision, recall, f1, said / len(pairs)), strict=True))


def question_messages(question: Question, instruction: str = "") -> list[dict]:
    """The prompt, without its image: the question, and below it the instruction if there is one."""
    return [{"role": "user", "content": "\n".join(filter(None, (question.text, instruction)))}]


def answer_questions(
    model: nn.Module, tokenizer, reader: ImageReader, questions: Sequence[Question], instruction: str = "", **decoding
) -> list[str]:
    """A vision-language model's answer to every question; ``decoding`` as for ``generate``."""
    slots = ImageSlots(*model.image_slots, reader.processor)
    return generate(
        model,
        tokenizer,
        [encode_with_images(tokenizer, question_messages(q, instruction), q.images, slots) for q in questions],
        images=lambda places: reader([file for i in places for file in questions[i].images]),
        progress=True,
        **decoding,
    )


def save_answers(
    folder: Path,
    name: str,
    questions: Sequence[Question],
    answers: Sequence[str],
    scores: Sequence[AnswerScore],
    means: dict[str, Estimate],
    settings: dict,
) -> None:
    """Writes predictions.jsonl, and metrics.json last. Raises InputError if the folder cannot be written."""
    rows = (
        {
            "id": q.id,
            "images": [os.path.relpath(file, folder) for file in q.images],
            "question": q.text,
            "truth": q.answer,
        }
        | {"kind": q.kind, "answer": answer, **dataclasses.asdict(score), **q.traits}
        for q, answer, score in zip(questions, answers, scores, strict=True)
    )
    save_scores(folder, "predictions.jsonl", rows, name, means, settings, yes_no=yes_no_scores(answers, questions))


def format_means(name: str, means: dict[str, Estimate], yes_no: dict[str, float] | None) -> str:
    """The scores as text, in per cent."""
    lines = [means_table(name, means, COLUMNS)]
    if yes_no:
        lines.append(
            "yes or no: " + ", ".join(f"{key.replace('_', ' ')} {100 * value:.1f}" for key, value in yes_no.items())
        )
    return "\n".join(lines)

"""The kinds of saved evaluations that can be compared: their records, scores and what a page shows of a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mint.data.preferences import image_names
from mint.evaluation.metrics import matches, normalize
from mint.evaluation.scores import Score, mean_score
from mint.tasks import attention_on_lesion, disease, report_generation, sensitivity, tissue, vqa

Record = Mapping  # of one case, as the evaluation saved it


@dataclass(frozen=True)
class Lists:
    """Of evaluations whose answers are ranked lists of names.

    truth: the field of the true name. length: places shown. listed: the score that says whether the truth is in the
    list. same: whether a listed name is another one.
    """

    truth: str
    length: int
    listed: str
    same: Callable[[str, str], bool]

    def place(self, names: Sequence[str], record: Record) -> int:
        """The place of the record's truth among the listed names, from 1; 0 if it is not among those shown."""
        listed = enumerate(names[: self.length], 1)
        return next((i for i, name in listed if self.same(name, record[self.truth])), 0)


@dataclass(frozen=True)
class Task:
    """A kind of evaluation.

    name: what was evaluated. file: where its records are. field: only its records have it. tested: the scores of the
    paired tests. group: of a record, what it belongs to; cases of one group are drawn together (None: alone). texts:
    fields that a page shows of a case, with their titles. answer: the field of the answer, None if there is none.
    """

    name: str
    file: str
    field: str
    columns: dict[str, Score]
    tested: tuple[str, ...]
    group: Callable[[Record], str | None]
    texts: dict[str, str]
    answer: str | None = "answer"
    lists: Lists | None = None


def subject(record: Record) -> str | None:
    """The patient or slide; a case without one stands alone."""
    return record.get("subject")


def first_image(record: Record) -> str | None:
    """The record's first image, or a patient's portrait, as the record names it."""
    return next(iter(image_names(record)), None) or record.get("portrait")


TASKS = (
    Task(
        "diseases",
        "predictions.jsonl",
        "disease",
        {n: mean_score(n, h, meaning=disease.MEANINGS[n]) for n, h in disease.COLUMNS.items()},
        ("top_1", "top_10", "car"),
        subject,
        {"note": "Note"},
        lists=Lists("disease", 10, "top_10", matches),
    ),
    Task(
        "tissues",
        "predictions.jsonl",
        "tissue",
        {n: mean_score(n, h, meaning=tissue.MEANINGS[n]) for n, h in tissue.CASE_COLUMNS.items()},
        ("top_1", "top_5", "car"),
        subject,
        {},
        lists=Lists("tissue", tissue.LISTED, "top_5", lambda a, b: normalize(a) == normalize(b)),
    ),
    Task(
        "questions",
        "predictions.jsonl",
        "question",
        vqa.COLUMNS,
        ("clinical", "facts", "judged", "closed", "open"),
        first_image,
        {"question": "Question", "truth": "Reference"},
    ),
    Task(
        "reports",
        "predictions.jsonl",
        "reference",
        report_generation.COLUMNS,
        ("bleu_4", "rouge_l", "meteor", "f1"),
        subject,
        {"reference": "Reference"},
        answer="report",
    ),
    Task(
        "visual sensitivity",
        "pairs.jsonl",
        "drop_lesion",
        sensitivity.COLUMNS,
        ("drop_lesion", "difference", "right", "flip_lesion"),
        first_image,
        {},
        answer=None,
    ),
    Task(
        "attention",
        "looks.jsonl",
        "attention_ratio",
        attention_on_lesion.COLUMNS,
        ("attention_ratio", "share", "js"),
        first_image,
        {},
        answer=None,
    ),
)

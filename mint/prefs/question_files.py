"""Question files: reading them, and writing lessons, questions for on-policy answers, and contrasts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mint.data.preferences import image_names, write_jsonl
from mint.data.questions import Question, yes_or_no
from mint.data.records import json_lines, parse_rows
from mint.data.spans import mark_changes
from mint.data.vqa_files import read_boxes
from mint.errors import InputError
from mint.files import parse_json
from mint.prefs.claims import Truth
from mint.prefs.rules_editor import edit_answer

FILES = ("lessons.jsonl", "questions.jsonl", "test.jsonl", "contrasts.jsonl")


@dataclass(frozen=True)
class QuestionRecord:
    """A question about an image whose truth is known. answer: the reference in words, where there is one."""

    id: str
    line: int
    images: tuple[str, ...]
    question: str
    truth: Truth
    answer: str | None = None
    raw: dict = field(default_factory=dict, compare=False)  # the record as it was read


def read_asked(path: str | Path) -> list[QuestionRecord]:
    """The records of a JSON Lines file with ``images``, ``question``, ``truth``, and optionally ``id`` and ``answer``.

    Raises FileProblems naming every bad line, InputError if the file cannot be read or holds none.
    """
    path = Path(path)
    found = parse_rows(path, json_lines(path), _asked)
    if not found:
        raise InputError(f"{path} holds no records")
    return found


def _asked(line: bytes, number: int) -> QuestionRecord:
    raw = parse_json(line)
    if not isinstance(raw, dict):
        raise InputError("a record must be an object")
    if not (images := image_names(raw)):
        raise InputError("no images: they must be a list of file names")
    question, answer = raw.get("question"), raw.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise InputError("question must be a text")
    if "truth" not in raw:
        raise InputError("no truth: an editor is never asked without it")
    identity = raw.get("id", f"line-{number}")
    reference = None if answer is None else str(answer)
    return QuestionRecord(str(identity), number, images, question, Truth.from_dict(raw["truth"]), reference, raw)


def lessons(records: Sequence[dict]) -> Iterator[dict]:
    """The true answers as records that ``train.py --loss sft`` learns from, beside their truth."""
    for record in records:
        prompt = [{"role": "user", "content": record["question"]}]
        shown = {"id": record["id"], "prompt": prompt, "images": record["images"]}
        yield {**shown, "chosen": record["answer"], "truth": record["truth"]}


def contrasts(records: Sequence[dict]) -> Iterator[dict]:
    """The true answers beside plausible false ones, where the evidence has a place: what sensitivity is measured on."""
    for record in records:
        if "mask" not in record:
            continue
        edit = edit_answer(record["answer"], Truth.from_dict(record["truth"]), record["id"])
        if edit is not None and edit.right:
            chosen, rejected = mark_changes(edit.answer, edit.edited)
            prompt = [{"role": "user", "content": record["question"]}]
            named = {"id": record["id"], "prompt": prompt, "images": record["images"], "mask": record["mask"]}
            yield {**named, "chosen": chosen.tagged, "rejected": rejected.tagged}


def write_question_files(
    folder: Path, taught: Sequence[dict], asked: Sequence[dict], unseen: Sequence[dict]
) -> dict[str, int]:
    """Writes the four FILES, and returns how many records each has.

    A record has ``id``, ``images``, ``question``, ``answer``, ``answer_type``, ``truth``, and ``mask`` if there is one;
    files are named relative to ``folder``. Raises InputError if they cannot be written.
    """
    contents = (lessons(taught), asked, unseen, contrasts(unseen))
    return {name: write_jsonl(folder / name, records) for name, records in zip(FILES, contents, strict=True)}


def ask_again(questions: Sequence[Question], folder: Path) -> Iterator[dict]:
    """Questions of a published set as records for on-policy answers, files named relative to ``folder``.

    The truth is a yes or no where that is the answer; for the rest, instructed editors read the answer. boxes: those of
    SLAKE's ``detection.json`` whose name the question or answer mentions. Raises InputError for images outside the
    folder.
    """
    boxes = cache(read_boxes)
    for question in questions:
        files = [Path(file).resolve() for file in question.images]
        if not all(file.is_relative_to(folder.resolve()) for file in files):
            raise InputError(f"the images do not lie in {folder}: write the questions to their folder, or one above it")
        record: dict = {"id": question.id, "images": [os.path.relpath(file, folder.resolve()) for file in files]}
        record |= {"question": question.text, "answer": question.answer, "answer_type": question.kind}
        lead = yes_or_no(question.answer) if question.kind == "closed" else None
        record["truth"] = question.truth or ({"answer": lead} if lead else {})
        spoken = f" {_plain(question.text)} {_plain(question.answer)} "
        places = [box for name, some in boxes(question.image).items() if f" {_plain(name)} " in spoken for box in some]
        yield record | ({"boxes": places} if places else {})


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())

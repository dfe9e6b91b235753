"""Files made of questions whose answers and truths are known: lessons, questions for a policy's own answers, contrasts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from mint.data.preferences import write_jsonl
from mint.data.questions import Question, yes_or_no
from mint.data.spans import mark_changes
from mint.data.vqa_files import read_boxes
from mint.errors import InputError
from mint.prefs.claims import Truth
from mint.prefs.rules_editor import edit_answer

FILES = ("lessons.jsonl", "questions.jsonl", "test.jsonl", "contrasts.jsonl")


def lessons(records: Sequence[dict]) -> Iterator[dict]:
    """The true answers as records that ``train.py --loss sft`` learns from."""
    for record in records:
        prompt = [{"role": "user", "content": record["question"]}]
        yield {"id": record["id"], "prompt": prompt, "images": record["images"], "chosen": record["answer"]}


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

    A record has ``id``, ``images``, ``question``, ``answer``, ``answer_type``, ``truth``, where there is one ``mask``; files
    are named relative to ``folder``. Raises InputError if they cannot be written.
    """
    contents = (lessons(taught), asked, unseen, contrasts(unseen))
    return {name: write_jsonl(folder / name, records) for name, records in zip(FILES, contents, strict=True)}


def ask_again(questions: Sequence[Question], folder: Path) -> Iterator[dict]:
    """Questions of a published set as records for a policy's own answers, files named relative to ``folder``.

    The truth is a yes or no, where that is the answer; for the rest, editors that are instructed read the answer. boxes: those
    of SLAKE's ``detection.json`` whose name the question or answer speaks of. Raises InputError for images that lie outside
    the folder.
    """
    boxes = cache(read_boxes)
    for question in questions:
        files = [Path(file).resolve() for file in question.images]
        if not all(file.is_relative_to(folder.resolve()) for file in files):
            raise InputError(f"the images do not lie in {folder}: write the questions to their folder, or one above it")
        record = {"id": question.id, "images": [os.path.relpath(file, folder.resolve()) for file in files]}
        record |= {"question": question.text, "answer": question.answer, "answer_type": question.kind}
        lead = yes_or_no(question.answer) if question.kind == "closed" else None
        record["truth"] = question.truth or ({"answer": lead} if lead else {})
        spoken = f" {_plain(question.text)} {_plain(question.answer)} "
        places = [box for name, some in boxes(question.image).items() if f" {_plain(name)} " in spoken for box in some]
        yield record | ({"boxes": places} if places else {})


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())

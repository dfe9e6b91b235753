"""Files made of questions whose answers and truths are known: lessons, questions for a policy's own answers, contrasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mint.data.preferences import write_jsonl
from mint.data.spans import mark_changes
from mint.prefs.claims import Truth
from mint.prefs.rules_editor import edit_answer

FILES = ("lessons.jsonl", "questions.jsonl", "test.jsonl", "contrasts.jsonl")


def lessons(records: Sequence[dict]) -> Iterator[dict]:
    """The true answers as records that ``train.py --loss sft`` learns from."""
    for record in records:
        prompt = [{"role": "user", "content": record["question"]}]
        yield {"id": record["id"], "prompt": prompt, "images": [record["image"]], "chosen": record["answer"]}


def contrasts(records: Sequence[dict]) -> Iterator[dict]:
    """The true answers beside plausible false ones, where the evidence has a place: what sensitivity is measured on."""
    for record in records:
        if "mask" not in record:
            continue
        edit = edit_answer(record["answer"], Truth.from_dict(record["truth"]), record["id"])
        if edit is not None and edit.right:
            chosen, rejected = mark_changes(edit.answer, edit.edited)
            prompt = [{"role": "user", "content": record["question"]}]
            named = {"id": record["id"], "prompt": prompt, "images": [record["image"]], "mask": record["mask"]}
            yield {**named, "chosen": chosen, "rejected": rejected}


def write_question_files(
    folder: Path, taught: Sequence[dict], asked: Sequence[dict], unseen: Sequence[dict]
) -> dict[str, int]:
    """Writes the four FILES, and returns how many records each has.

    A record has ``id``, ``image``, ``question``, ``answer``, ``answer_type``, ``truth``, where there is one ``mask``; files
    are named relative to ``folder``. Raises InputError if they cannot be written.
    """
    contents = (lessons(taught), asked, unseen, contrasts(unseen))
    return {name: write_jsonl(folder / name, records) for name, records in zip(FILES, contents, strict=True)}

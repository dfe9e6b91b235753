"""Editors that follow an instruction: a local instruct model, or one behind an OpenAI-compatible address."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence

from mint.prefs.question_files import QuestionRecord
from mint.prefs.rules_editor import Edit

INSTRUCTION = (
    "You check answers to questions about medical images and edit them minimally. You are given the question, what is "
    "true of the image, and the answer.\n"
    "If the answer agrees with the truth, write RIGHT, and an edit that says one thing that is medically plausible but "
    "false. If it does not, write WRONG, and an edit that agrees with the truth.\n"
    "Change as few words as possible. Keep style, length and wording. Reply in this form and write nothing else:\n"
    "VERDICT: RIGHT or WRONG\nEDIT: the whole edited answer"
)
REPLY = re.compile(r"VERDICT:\s*(RIGHT|WRONG)\s*EDIT:\s*(.+)", re.IGNORECASE | re.DOTALL)
Complete = Callable[[Sequence[list[dict]]], Iterator[str]]  # messages -> replies, one after the other


def request(asked: QuestionRecord, answer: str) -> list[dict]:
    """The messages for one answer. The truth is always among them."""
    truth = json.dumps(asked.raw["truth"], ensure_ascii=False, sort_keys=True)
    reference = f"\nReference answer: {asked.answer}" if asked.answer else ""
    text = f"Question: {asked.question}\nTruth: {truth}{reference}\nAnswer: {answer}"
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]


def parse_reply(answer: str, reply: str) -> Edit | None:
    """The edit that a reply holds, None if it is not of the form asked for."""
    match = REPLY.search(reply)
    if match is None:
        return None
    return Edit(answer, match.group(2).strip(), right=match.group(1).upper() == "RIGHT")


def instructed_editor(complete: Complete) -> Callable[[Sequence[tuple[QuestionRecord, str]]], Iterator[Edit | None]]:
    """An editor from what completes messages."""

    def edit(pairs: Sequence[tuple[QuestionRecord, str]]) -> Iterator[Edit | None]:
        replies = complete([request(asked, answer) for asked, answer in pairs])
        for (_, answer), reply in zip(pairs, replies, strict=True):
            yield parse_reply(answer, reply)

    return edit

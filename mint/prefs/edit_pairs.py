"""On-policy pairs: a model's own answers beside their minimal edits, with the changed words marked (arXiv 2606.12590).

An editor that knows the truth says of every answer whether it is right. A right answer is chosen over its edit into
something wrong; a wrong one is rejected for its edit into the truth. A verifier keeps out edits that change nothing, or
too much, or do not do what they should.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mint.data.preferences import image_names
from mint.data.records import parse_rows
from mint.data.spans import mark_changes
from mint.errors import InputError
from mint.prefs.claims import Truth
from mint.prefs.rules_editor import Edit, contradictions, edit_answer, share_kept

LEAST_KEPT = 0.5  # share of an answer's words that an edit must keep; of short ones all but SHORT may change
SHORT = 2
CARRIED = ("mask", "boxes", "polygons", "phrase")  # fields that tell where the evidence is


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


# (question, answer) pairs -> an edit for each, in order
Editor = Callable[[Sequence[tuple[QuestionRecord, str]]], Iterator["Edit | None"]]


@dataclass
class EditReport:
    """What became of the answers. words, kept_words: of those that gave a pair."""

    outcomes: Counter = field(default_factory=Counter)
    words: int = 0
    kept_words: float = 0.0

    def __str__(self) -> str:
        kept = self.outcomes["right"] + self.outcomes["wrong"]
        right, words = 100 * self.outcomes["right"] / max(1, kept), 100 * self.kept_words / max(1, self.words)
        share = f" ({right:.1f} % right as they stood; {words:.1f} % of their words kept)" if kept else ""
        others = [
            f"{count} {outcome}" for outcome, count in self.outcomes.most_common() if outcome not in ("right", "wrong")
        ]
        return f"{kept} pairs{share}" + "".join(f"; {other}" for other in others)


def read_asked(path: str | Path) -> list[QuestionRecord]:
    """Records of JSON Lines: ``images`` (see ``image_names``), ``question``, ``truth``, and where known ``id`` and ``answer``.

    Raises FileProblems naming every bad line, InputError if the file cannot be read or holds none.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a text may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    found = parse_rows(path, ((number, line) for number, line in enumerate(lines, 1) if line.strip()), _asked)
    if not found:
        raise InputError(f"{path} holds no records")
    return found


def _asked(line: str, number: int) -> QuestionRecord:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise InputError(f"invalid JSON: {error}") from None
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


def rules_editor(pairs: Sequence[tuple[QuestionRecord, str]]) -> Iterator[Edit | None]:
    """The editor that needs no model; see :mod:`mint.prefs.rules_editor`."""
    for asked, answer in pairs:
        yield edit_answer(answer, asked.truth, asked.id)


def verify(edit: Edit, truth: Truth) -> str | None:
    """What is wrong with an edit, None if nothing."""
    if not edit.edited.strip() or edit.edited.split() == edit.answer.split():
        return "change nothing"
    words = len(edit.answer.split())
    if words * (1 - share_kept(edit.answer, edit.edited)) > max(SHORT, (1 - LEAST_KEPT) * words) + 1e-9:
        return "change too much"
    chosen, rejected = (edit.answer, edit.edited) if edit.right else (edit.edited, edit.answer)
    if contradictions(chosen, truth):
        return "still contradict the truth"
    if truth.findings or truth.terms or truth.answer:
        return None if contradictions(rejected, truth) else "agree with the truth on both sides"
    return None


def edit_pairs(
    asked: Sequence[QuestionRecord],
    answers: Sequence[str],
    editor: Editor,
    name: str,
    report: EditReport,
    rejects: list[dict],
) -> Iterator[dict]:
    """Preference records with ``<mask>`` around the changed words, and of each how it came about.

    name: of the editor. ``report`` counts; ``rejects`` takes the answers without a pair, and why.
    """
    pairs = list(zip(asked, answers, strict=True))
    for (question, answer), edit in zip(pairs, editor(pairs), strict=True):
        problem = "are not judged by the editor" if edit is None else verify(edit, question.truth)
        if problem:
            report.outcomes[f"answers whose edits {problem}" if edit else f"answers that {problem}"] += 1
            rejects.append({"id": question.id, "answer": answer, "edited": edit and edit.edited, "why": problem})
            continue
        report.outcomes["right" if edit.right else "wrong"] += 1
        stays = share_kept(edit.answer, edit.edited)
        report.words += len(edit.answer.split())
        report.kept_words += stays * len(edit.answer.split())
        sides = (edit.answer, edit.edited) if edit.right else (edit.edited, edit.answer)
        chosen, rejected = mark_changes(*sides)
        yield {
            "id": question.id,
            "prompt": [{"role": "user", "content": question.question}],
            "images": list(question.images),
            "chosen": chosen.tagged,
            "rejected": rejected.tagged,
            **{key: question.raw[key] for key in CARRIED if question.raw.get(key)},
            "edit": {
                "answer": edit.answer,
                "edited": edit.edited,
                "editor": name,
                "right": edit.right,
                "kept": round(stays, 4),
            },
        }

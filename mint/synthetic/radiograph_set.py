"""Questions about drawn radiographs, with their truths, masks and answers; and the files that the commands read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mint.errors import InputError
from mint.prefs.question_files import write_question_files
from mint.progress import Progress
from mint.synthetic.radiographs import (
    EVERYONE,
    KINDS,
    ZONED,
    ZONES,
    DrawnFinding,
    Patients,
    Radiograph,
    draw_radiograph,
)

NAMES = {"effusion": ["pleural effusion", "effusion"]}  # the others are called by their kind
DESCRIBE = "Describe the radiograph."


@dataclass(frozen=True)
class DrawnQuestion:
    """A question about a drawn radiograph. mask: what it is about, where that is there."""

    text: str
    answer: str
    truth: dict
    mask: np.ndarray | None


def ask(drawn: Radiograph) -> list[DrawnQuestion]:
    """Whether each kind of finding is there; where and how large those are that are; and a short report."""
    found = {finding.kind: finding for finding in drawn.findings}
    known = {"findings": [_fact(kind, found.get(kind)) for kind in KINDS], "zones": list(ZONES)}
    questions = []
    for kind in KINDS:
        finding, asked = found.get(kind), {**known, "about": [kind]}
        article = "an" if kind[0] in "aeiou" else "a"
        there = f"There is {article if finding else 'no'} {kind} on this radiograph."  # one word decides
        mask = finding.mask if finding else None
        questions.append(DrawnQuestion(f"Is there {article} {kind}?", there, asked, mask))
        if finding:
            where = f"The {kind} is {_place(finding)}."
            questions.append(DrawnQuestion(f"Where is the {kind}?", where, asked, mask))
            size = f"The {kind} is {finding.degree}."
            questions.append(DrawnQuestion(f"How large is the {kind}?", size, asked, mask))
    seen = [
        f"There is a {found[kind].degree} {kind} {_place(found[kind])}." if kind in found else f"There is no {kind}."
        for kind in KINDS
    ]
    together = np.logical_or.reduce([finding.mask for finding in drawn.findings]) if found else None
    questions.append(DrawnQuestion(DESCRIBE, " ".join(seen), known, together))
    return questions


def _place(finding: DrawnFinding) -> str:
    return f"in the {finding.side} {finding.zone} zone" if finding.zone else f"on the {finding.side}"


def _fact(kind: str, finding: DrawnFinding | None) -> dict:
    fact = {"names": NAMES.get(kind, [kind]), "present": finding is not None}
    if finding is not None:
        fact |= {"side": finding.side, "degree": finding.degree} | ({"zone": finding.zone} if kind in ZONED else {})
    return fact


def write_set(
    folder: str | Path, name: str, count: int, seed: int, patients: Patients = EVERYONE, masks: bool = True
) -> list[dict]:
    """Draws ``count`` radiographs into ``folder`` and returns a record for every question about them.

    A record has ``id``, ``images``, ``question``, ``answer``, ``answer_type``, ``truth`` and, where there is one, ``mask``.
    """
    folder, records = Path(folder), []
    for part in ("images", "masks")[: 1 + masks]:
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in Progress(range(count), desc=name, unit="image", leave=False):
        stem = f"{name}-{number:05d}"
        drawn = draw_radiograph(f"{seed}/{number}", patients)
        drawn.image.save(folder / "images" / f"{stem}.png")
        for place, question in enumerate(ask(drawn)):
            record = {"id": f"{stem}-{place}", "images": [f"images/{stem}.png"], "question": question.text}
            record |= {"answer": question.answer, "answer_type": "open", "truth": question.truth}
            if masks and question.mask is not None:
                record["mask"] = f"masks/{stem}-{place}.png"
                Image.fromarray(question.mask).save(folder / record["mask"])
            records.append(record)
    return records


def write_radiographs(folder: str | Path, taught: int, asked: int, unseen: int, seed: int = 0) -> dict[str, int]:
    """Writes ``lessons.jsonl`` (to teach a model), ``questions.jsonl`` (for its own answers), ``test.jsonl`` and
    ``contrasts.jsonl`` (unseen, to score them), with their images and masks; returns how many of each.

    Raises InputError for a folder that is in use or cannot be written.
    """
    folder = Path(folder)
    if (folder / "questions.jsonl").exists():
        raise InputError(f"{folder} holds radiographs already; give another folder")
    try:
        named = (("taught", taught), ("asked", asked), ("unseen", unseen))
        sets = [write_set(folder, name, n, 3 * seed + i, masks=name != "taught") for i, (name, n) in enumerate(named)]
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from None
    return write_question_files(folder, *sets)

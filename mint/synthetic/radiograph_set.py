"""Questions about synthetic radiographs, with answers, ground truth and masks, as files that the commands read."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mint.prefs.question_files import write_question_files
from mint.progress import Progress
from mint.synthetic.package_tables import new_set
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


@dataclass(frozen=True)
class Wording:
    """Templates of the answers to each kind of question; one of several is drawn. some: "a", "an" or "no"."""

    presence: tuple[str, ...] = ("There is {some} {kind} on this radiograph.",)
    place: tuple[str, ...] = ("The {kind} is {place}.",)
    size: tuple[str, ...] = ("The {kind} is {degree}.",)


SHORT = Wording()
LONG = Wording(  # some 13 words, as a vision-language model answers
    (
        "On this frontal radiograph of the chest, there is {some} {kind} to be seen.",
        "The frontal view of the chest shows {some} {kind} on a careful inspection.",
    ),
    (
        "The {kind} lies {place}, as the frontal radiograph of the chest shows.",
        "On this frontal view of the chest, the {kind} is seen {place}.",
    ),
    (
        "The {kind} that is seen on this frontal radiograph of the chest is {degree}.",
        "On this frontal view of the chest, the {kind} is {degree} in its extent.",
    ),
)
NAMES = {"effusion": ["pleural effusion", "effusion"]}  # of kinds with other names
DESCRIBE = "Describe the radiograph."


@dataclass(frozen=True)
class DrawnQuestion:
    """A question. truth: the findings, as editors and scores read them. mask: of the finding, if present."""

    text: str
    answer: str
    truth: dict
    mask: np.ndarray | None


def ask(drawn: Radiograph, wording: Wording = SHORT, key: str = "") -> list[DrawnQuestion]:
    """Questions about the presence of each kind of finding, the place and size of those present, and a short report.

    key: seeds the choice among the templates.
    """
    rng = random.Random(key)
    found = {finding.kind: finding for finding in drawn.findings}
    known = {"findings": [_fact(kind, found.get(kind)) for kind in KINDS], "zones": list(ZONES)}
    questions = []
    for kind in KINDS:
        finding, asked = found.get(kind), {**known, "about": [kind]}
        article = "an" if kind[0] in "aeiou" else "a"
        there = rng.choice(wording.presence).format(some=article if finding else "no", kind=kind)  # differ in one word
        mask = finding.mask if finding else None
        questions.append(DrawnQuestion(f"Is there {article} {kind}?", there, asked, mask))
        if finding:
            where = rng.choice(wording.place).format(kind=kind, place=_place(finding))
            questions.append(DrawnQuestion(f"Where is the {kind}?", where, asked, mask))
            size = rng.choice(wording.size).format(kind=kind, degree=finding.degree)
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
    folder: str | Path,
    name: str,
    count: int,
    seed: int,
    patients: Patients = EVERYONE,
    masks: bool = True,
    wording: Wording = SHORT,
) -> list[dict]:
    """Draws ``count`` radiographs into ``folder``; returns one record per question.

    A record has ``id``, ``images``, ``question``, ``answer``, ``answer_type``, ``truth`` and, for a finding that is
    present, ``mask``. Raises OSError if a file cannot be written.
    """
    folder, records = Path(folder), []
    for part in ("images", "masks")[: 1 + masks]:
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in Progress(range(count), desc=name, unit="image", leave=False):
        stem = f"{name}-{number:05d}"
        drawn = draw_radiograph(f"{seed}/{number}", patients)
        drawn.image.save(folder / "images" / f"{stem}.png")
        for place, question in enumerate(ask(drawn, wording, f"{seed}/{number}")):
            record: dict[str, Any] = {
                "id": f"{stem}-{place}",
                "images": [f"images/{stem}.png"],
                "question": question.text,
            }
            record |= {"answer": question.answer, "answer_type": "open", "truth": question.truth}
            if masks and question.mask is not None:
                record["mask"] = f"masks/{stem}-{place}.png"
                Image.fromarray(question.mask).save(folder / record["mask"])
            records.append(record)
    return records


def write_radiographs(
    folder: str | Path, taught: int, asked: int, unseen: int, seed: int = 0, patients: Patients = EVERYONE
) -> dict[str, int]:
    """Writes question files with their images and masks; returns the number of records in each.

    ``lessons.jsonl``: to fine-tune a model; ``questions.jsonl``: for preference pairs from its answers; ``test.jsonl``
    and ``contrasts.jsonl``: unseen, for evaluation.
    Raises InputError if the folder holds a set already or cannot be written.
    """
    named = (("taught", taught), ("asked", asked), ("unseen", unseen))
    with new_set(folder, "questions.jsonl", "radiographs") as path:
        sets = [
            write_set(path, name, count, 3 * seed + i, patients, masks=name != "taught")
            for i, (name, count) in enumerate(named)
        ]
        return write_question_files(path, *sets)

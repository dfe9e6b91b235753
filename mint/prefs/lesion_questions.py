"""Questions about images of which a table knows the label and a mask the lesion, such as BUSI's breast ultrasounds.

The table (.csv, or .tsv with tabs) has ``image``, ``mask`` and ``label``; a mask without a pixel means that there is no lesion.
Left and right, upper and lower are those of the picture.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mint.data.image_files import open_image
from mint.errors import FileProblems, InputError
from mint.prefs.claims import DEGREES
from mint.prefs.question_files import write_question_files

LARGER = (0.03, 0.1)  # shares of the picture from which a lesion is moderate, and large
TAUGHT, ASKED = 0.6, 0.2  # shares of the images; the others stay unseen
ZONES = ("upper", "lower")
NAMES = ["lesion", "mass"]


@dataclass(frozen=True)
class Lesion:
    """A row of the table. mask: [height, width] bool."""

    image: Path
    mask_file: Path
    label: str
    mask: np.ndarray


def read_lesions(path: str | Path) -> list[Lesion]:
    """The rows, images and masks opened. Raises FileProblems naming every bad row, InputError for another table."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not rows or not {"image", "mask", "label"} <= set(rows[0]):
        raise InputError(f"{path} needs the columns image, mask and label, and a row")
    root, problems, found = path.parent.resolve(), [], []
    for line, row in enumerate(rows, 2):
        try:
            files = [(root / (row[name] or "")).resolve() for name in ("image", "mask")]
            if not all(row[name] for name in ("image", "mask", "label")):
                raise InputError("image, mask and label must be given")
            if not all(file.is_relative_to(root) for file in files):
                raise InputError("a file is outside the folder of the table")
            image, mask = (open_image(file) for file in files)
            if image.size != mask.size:
                raise InputError(f"the mask is {mask.size}, its image {image.size}")
            found.append(Lesion(*files, row["label"], np.asarray(mask.convert("L")) > 127))
        except InputError as error:
            problems.append(f"{path}:{line}: {error}")
    if problems:
        raise FileProblems(path, problems)
    return found


def ask(lesion: Lesion, kinds: Sequence[str], folder: Path) -> list[dict]:
    """Whether there is a lesion, and of those where and how large they are and of what kind.

    kinds: the labels of lesions. folder: what the files are named relative to.
    """
    fact, phrase = _describe(lesion.mask)
    there = fact["present"]
    known = {"findings": [fact], "zones": list(ZONES)}
    answers = [("Is there a lesion?", f"Yes, there is {phrase}." if there else "No, there is no lesion.", "closed")]
    truths = [{**known, "answer": "yes" if there else "no"}]
    if there:
        article = "an" if lesion.label[0].lower() in "aeiou" else "a"
        answers.append(("Where is the lesion?", f"The lesion is in the {fact['zone']} {fact['side']} part.", "open"))
        answers.append(("How large is the lesion?", f"The lesion is {fact['degree']}.", "open"))
        answers.append(("What kind of lesion is it?", f"It is {article} {lesion.label} lesion.", "open"))
        truths += [known, known, {**known, "terms": {"kind": lesion.label}, "kinds": {"kind": list(kinds)}}]
    name, mask = (os.path.relpath(file, folder) for file in (lesion.image, lesion.mask_file))
    records = []
    for place, ((question, answer, kind), truth) in enumerate(zip(answers, truths, strict=True)):
        record = {"id": f"{lesion.image.stem}-{place}", "image": name, "question": question, "answer": answer}
        records.append(record | {"answer_type": kind, "truth": truth} | ({"mask": mask} if there else {}))
    return records


def _describe(mask: np.ndarray) -> tuple[dict, str]:
    """(the fact, the finding in words)."""
    if not mask.any():
        return {"names": NAMES, "present": False}, ""
    rows, columns = np.nonzero(mask)
    side = "left" if columns.mean() < mask.shape[1] / 2 else "right"
    zone = ZONES[int(rows.mean() >= mask.shape[0] / 2)]
    degree = DEGREES[0][int(sum(mask.mean() >= share for share in LARGER))]
    fact = {"names": NAMES, "present": True, "side": side, "zone": zone, "degree": degree}
    return fact, f"a {degree} lesion in the {zone} {side} part"


def write_lesion_questions(table: str | Path, folder: str | Path, seed: int = 0) -> dict[str, int]:
    """Writes the question files of a table's images, split by image; returns how many records each has.

    Of the images TAUGHT are for lessons, ASKED for the policy's own answers, the others stay unseen; which, decide their
    names and the seed. Raises InputError if the files lie outside ``folder``'s reach: it must be the table's own, or above.
    """
    folder, lesions = Path(folder).resolve(), read_lesions(table)
    if not all(lesion.image.is_relative_to(folder) for lesion in lesions):
        raise InputError(f"the images do not lie in {folder}: give the table's own folder, or one above it")
    kinds = sorted({lesion.label for lesion in lesions if lesion.mask.any()})
    parts: tuple[list, list, list] = [], [], []
    for lesion in lesions:
        digest = hashlib.sha256(f"{seed}/{lesion.image.name}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        part = 0 if place < TAUGHT else 1 if place < TAUGHT + ASKED else 2
        parts[part].extend(ask(lesion, kinds, folder))
    return write_question_files(folder, *parts)

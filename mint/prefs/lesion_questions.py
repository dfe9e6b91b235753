"""Questions about images with labels and lesion masks, such as BUSI's breast ultrasounds.

The table (.csv, or .tsv with tabs) has ``image``, ``mask`` and ``label``; an empty mask means that there is no lesion.
Left and right, upper and lower are those of the picture; a lesion near the middle line has no side and is not asked
about.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mint.data.image_files import find_image, open_image
from mint.data.preferences import write_jsonl
from mint.data.questions import read_questions
from mint.data.records import read_text
from mint.data.vqa_files import SPLITS
from mint.errors import FileProblems, InputError
from mint.files import check_paths, check_unused
from mint.prefs.claims import DEGREES
from mint.prefs.question_files import FILES, ask_again, write_question_files

LARGER = (0.03, 0.1)  # shares of the picture from which a lesion is moderate, and large
BETWEEN = 0.05  # of the picture's side: a lesion whose centre is nearer to the middle line lies on neither side of it
TAUGHT, ASKED = 0.6, 0.2  # shares of the images; the others stay unseen
ZONES = ("upper", "lower")
SMALLEST_VIEW, LEAST_SEEN, TRIES = 0.6, 0.8, 20  # shares of the sides, and of the lesion, that a view must show
NAMES = ["lesion", "mass"]
DESCRIBE = "Describe the image."


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
        text = io.StringIO(read_text(path), newline="")
        rows = list(csv.DictReader(text, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True))
    except csv.Error as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not rows or not {"image", "mask", "label"} <= set(rows[0]):
        raise InputError(f"{path} needs the columns image, mask and label, and a row")
    root, problems, found = path.parent.resolve(), [], []
    for line, row in enumerate(rows, 2):
        try:
            if not all(row[name] for name in ("image", "mask", "label")):
                raise InputError("image, mask and label must be given")
            files = [find_image(root, row[name]) for name in ("image", "mask")]
            image, mask = (open_image(file) for file in files)
            if image.size != mask.size:
                raise InputError(f"the mask is {mask.size}, its image {image.size}")
            found.append(Lesion(files[0], files[1], row["label"], np.asarray(mask.convert("L")) > 127))
        except InputError as error:
            problems.append(f"{path}:{line}: {error}")
    if problems:
        raise FileProblems(path, problems)
    return found


def draw_lesion_views(lesions: Sequence[Lesion], count: int, folder: Path, seed: int = 0) -> list[Lesion]:
    """``count`` views of each image, written to ``folder`` with their masks: the image as it is, then crops of it.

    A crop has 0.6 to 1 of both sides and shows four fifths of the lesion; every second one is mirrored. They depend on
    the seed and the image's name alone. Raises InputError if the folder cannot be written.
    """
    views = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for lesion in lesions:
            views.append(lesion)
            if count == 1:
                continue
            image = open_image(lesion.image)
            for number in range(1, count):
                files = [folder / f"{lesion.image.stem}-view-{number}{end}.png" for end in ("", "-mask")]
                view, mask = _view(image, lesion.mask, random.Random(f"{seed}/{lesion.image.name}/{number}"))
                view.save(files[0])
                Image.fromarray(mask).save(files[1])
                views.append(Lesion(files[0], files[1], lesion.label, mask))
    except OSError as error:
        raise InputError(f"views cannot be written to {folder}: {error}") from None
    return views


def _view(image: Image.Image, mask: np.ndarray, rng: random.Random) -> tuple[Image.Image, np.ndarray]:
    for _ in range(TRIES):
        width, height = (round(side * rng.uniform(SMALLEST_VIEW, 1)) for side in image.size)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        seen = mask[top : top + height, left : left + width]
        if seen.sum() >= LEAST_SEEN * mask.sum():
            break
    else:
        left, top, width, height, seen = 0, 0, *image.size, mask
    view = image.crop((left, top, left + width, top + height))
    return (ImageOps.mirror(view), seen[:, ::-1].copy()) if rng.random() < 0.5 else (view, seen.copy())


def ask(lesion: Lesion, kinds: Sequence[str], folder: Path) -> list[dict]:
    """Whether there is a lesion; of those where and how large they are and of what kind; and a description.

    kinds: the labels of lesions. folder: what the files are named relative to.
    """
    fact = _fact(lesion.mask)
    there = fact["present"]
    known = {"findings": [fact], "zones": list(ZONES)}
    asked = {**known, "about": NAMES[:1]}
    answers = [("Is there a lesion?", f"There is {'a' if there else 'no'} lesion on this image.")]  # one word decides
    truths = [asked]
    if there:
        article = "an" if lesion.label[0].lower() in "aeiou" else "a"
        place = " ".join(fact[name] for name in ("zone", "side") if name in fact)
        where = f" in the {place} part" if place else ""
        of_kind = {"terms": {"kind": lesion.label}, "kinds": {"kind": list(kinds)}}
        if place:
            answers.append(("Where is the lesion?", f"The lesion is{where}."))
            truths.append(asked)
        answers.append(("How large is the lesion?", f"The lesion is {fact['degree']}."))
        answers.append(("What kind of lesion is it?", f"It is {article} {lesion.label} lesion."))
        answers.append((DESCRIBE, f"There is a {fact['degree']} {lesion.label} lesion{where}."))
        truths += [asked, {**known, **of_kind}, {**asked, **of_kind}]
    else:
        answers.append((DESCRIBE, "There is no lesion."))
        truths.append(asked)
    records = []
    name, mask = (os.path.relpath(file, folder) for file in (lesion.image, lesion.mask_file))
    for number, ((question, answer), truth) in enumerate(zip(answers, truths, strict=True)):
        record = {"id": f"{lesion.image.stem}-{number}", "images": [name], "question": question, "answer": answer}
        records.append(record | {"answer_type": "open", "truth": truth} | ({"mask": mask} if there else {}))
    return records


def _fact(mask: np.ndarray) -> dict:
    if not mask.any():
        return {"names": NAMES, "present": False}
    down, across = ((np.nonzero(mask)[axis].mean() + 0.5) / mask.shape[axis] - 0.5 for axis in (0, 1))
    fact = {"names": NAMES, "present": True, "degree": DEGREES[0][int(sum(mask.mean() >= share for share in LARGER))]}
    if abs(across) >= BETWEEN:
        fact["side"] = "left" if across < 0 else "right"
    if abs(down) >= BETWEEN:
        fact["zone"] = ZONES[int(down > 0)]
    return fact


def write_lesion_questions(table: str | Path, folder: str | Path, seed: int = 0, views: int = 1) -> dict[str, int]:
    """Writes the question files of a table's images, split by image; returns how many records each has.

    A share TAUGHT of the images is for lessons, ASKED for the policy's own answers, the others stay unseen; the image's
    name and the seed decide. views: of each image that does not stay unseen (in ``folder/views``).
    Raises InputError if the images do not lie in ``folder``, or for fewer than one view.
    """
    if views < 1:
        raise InputError(f"at least one view of an image, not {views}")
    folder, lesions = Path(folder).resolve(), read_lesions(table)
    if not all(lesion.image.is_relative_to(folder) for lesion in lesions):
        raise InputError(f"the images do not lie in {folder}: give the table's own folder, or one above it")
    kinds = sorted({lesion.label for lesion in lesions if lesion.mask.any()})
    parts: list[list[Lesion]] = [[], [], []]
    for lesion in lesions:
        digest = hashlib.sha256(f"{seed}/{lesion.image.name}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        parts[0 if place < TAUGHT else 1 if place < TAUGHT + ASKED else 2].append(lesion)
    parts = [draw_lesion_views(part, views, folder / "views", seed) for part in parts[:2]] + [parts[2]]
    return write_question_files(
        folder, *([record for one in part for record in ask(one, kinds, folder)] for part in parts)
    )


def add_questions(parser: argparse.ArgumentParser) -> None:
    """The flags of ``generate_prefs.py questions``."""
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--lesions", metavar="TABLE", help="a .csv or .tsv of image, mask and label")
    what.add_argument(
        "--vqa", metavar="FILE", help="of VQA-RAD, SLAKE, PathVQA or IU-Xray: the questions that are answered"
    )
    add("--out", metavar="DIR", help="where the files are written (default: the folder of the input)")
    add("--views", type=int, default=1, help="of every image but the unseen: crops of it, mirrored (default 1)")
    add("--seed", type=int, default=0, help="of the split of the images, and the views")
    add("--images", metavar="DIR", help="of --vqa: where the images lie (default: beside the file)")
    add("--language", default="en", help="of --vqa with SLAKE (default en)")
    add("--split", default="train", choices=SPLITS, help="of --vqa with IU-Xray (default train)")
    parser.set_defaults(run=run_questions)


def run_questions(args: argparse.Namespace) -> None:
    """Writes lessons, questions, test questions and contrasts; of a VQA set the questions."""
    check_paths(args)
    folder = Path(args.out or Path(args.lesions or args.vqa).parent)
    check_unused(*(folder / name for name in (FILES if args.lesions else ["questions.jsonl"])))
    if args.lesions:
        counts = write_lesion_questions(args.lesions, folder, args.seed, args.views)
    else:
        if args.views != 1:
            raise InputError("--views is of --lesions: an answer of a VQA set may not hold for a crop of its image")
        questions, report = read_questions(args.vqa, args.images, args.language, args.split)
        print(f"{args.vqa}: {report}")
        counts = {"questions.jsonl": write_jsonl(folder / "questions.jsonl", ask_again(questions, folder))}
    print(f"{folder}: " + ", ".join(f"{count} in {name}" for name, count in counts.items()))

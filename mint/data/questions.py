"""Questions about medical images, from the files of VQA-RAD, SLAKE, PathVQA and IU-Xray, and from JSON Lines.

* VQA-RAD: a JSON list of ``image_name``, ``question``, ``answer``, ``answer_type``, ``qid``, ``image_organ``.
* SLAKE: a JSON list of ``img_name``, ``question``, ``answer``, ``answer_type``, ``q_lang``, ``qid``, ``location``, ...
* PathVQA and IU-Xray: see :mod:`mint.data.vqa_files`; a report is the answer to a request to describe.
* JSON Lines of ``images`` (see :func:`mint.data.preferences.image_names`), ``question``, ``answer``, and where known
  ``id``, ``answer_type`` and ``truth``: what ``generate_prefs.py questions`` writes.

Images are in a given folder, or beside the file (in ``images``, ``imgs``, or its own folder). A name without a suffix
is tried with .jpg and .png, also in the folder of its first part ("val_0261": ``val``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from mint.data.image_files import find_image, open_image
from mint.data.preferences import image_names
from mint.data.records import parse_rows
from mint.data.vqa_files import read_records
from mint.errors import InputError

OTHER_NAMES = ("image_name", "img_name")  # of the field that names the image
ID_KEYS = ("qid", "id")
TRAITS = ("image_organ", "location", "modality", "question_type", "content_type", "phrase_type")
KINDS = ("closed", "open")
BESIDE = ("images", "imgs", ".")
ENDINGS = (".jpg", ".png", "")


@dataclass(frozen=True)
class Question:
    """kind: closed (yes or no, or a choice) or open. traits: further fields of the data set, such as the organ.

    truth: known facts about the image, in the form of ``mint.prefs.claims``. others: further images, such as the second
    view of a chest.
    """

    id: str
    image: Path
    text: str
    answer: str
    kind: str
    traits: dict[str, str] = field(default_factory=dict)
    truth: dict | None = None
    others: tuple[Path, ...] = ()

    @property
    def images(self) -> list[str]:
        """The files of all its images."""
        return [str(self.image), *map(str, self.others)]


def read_questions(
    path: str | Path, images: str | Path | None = None, language: str = "en", split: str = "test"
) -> tuple[list[Question], str]:
    """(the questions, a line of text that counts them).

    images: the folder that image names are relative to. language: of SLAKE's questions; others are skipped. split: for
    files with several (IU-Xray). Every image is opened once. Raises FileProblems naming every bad record, InputError if
    nothing can be read.
    """
    path = Path(path)
    records = read_records(path, split)
    folders = [Path(images)] if images else [path.parent / name for name in BESIDE]
    roots = [folder.resolve() for folder in folders if folder.is_dir()]
    if not roots:
        raise InputError(f"{folders[0]} is not a folder of images")
    found: dict[str, Path | str] = {}

    def parse(record: object, number: int) -> Question | None:
        other = isinstance(record, dict) and record.get("q_lang", language) != language
        return None if other else _question(record, number, roots, found)

    questions = parse_rows(path, records, parse)
    passed = len(records) - len(questions)
    if not questions:
        raise InputError(f"{path} holds no questions" + (f" in the language {language!r}" if passed else ""))
    kinds = Counter(question.kind for question in questions)
    words = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
    other = f"; {passed} in other languages passed over" if passed else ""
    return questions, f"{len(questions)} questions on {len({q.image for q in questions})} images ({words}){other}"


def _question(record: object, number: int, roots: Sequence[Path], found: dict[str, Path | str]) -> Question:
    if not isinstance(record, dict):
        raise InputError("a record must be an object")
    other = next((record[key] for key in OTHER_NAMES if record.get(key)), None)
    names = image_names(record if other is None else {"image": other})
    if not names:
        raise InputError(f"no images ({', '.join(('images', 'image', *OTHER_NAMES))})")
    texts = {}
    for key in ("question", "answer"):
        value = record.get(key)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
            raise InputError(f"{key} must be a text")
        texts[key] = str(value).strip()
    kind = str(record.get("answer_type") or ("closed" if yes_or_no(texts["answer"]) else "open")).strip().lower()
    if kind not in KINDS:
        raise InputError(f"answer_type {kind!r} is none of {', '.join(KINDS)}")
    places = [_find(name, roots, found) for name in names]
    identity = next((record[key] for key in ID_KEYS if isinstance(record.get(key), (str, int))), number)
    traits = {key: str(record[key]) for key in TRAITS if record.get(key)}
    truth = record.get("truth") or None  # {}: nothing is known
    return Question(
        str(identity), places[0], texts["question"], texts["answer"], kind, traits, truth, tuple(places[1:])
    )


def _find(name: str, roots: Sequence[Path], found: dict[str, Path | str]) -> Path:
    """The path of an image. found: paths or problems of earlier names. Raises InputError if it cannot be read."""
    if name not in found:
        spelt = [name]
        if not Path(name).suffix:
            spelt = [f"{folder}{name}{end}" for folder in ("", f"{name.split('_')[0]}/") for end in ENDINGS]
        try:
            found[name] = _first_inside(spelt, roots)
            open_image(found[name])
        except InputError as error:
            found[name] = str(error)
    place = found[name]
    if isinstance(place, str):
        raise InputError(place)
    return place


def _first_inside(names: Sequence[str], roots: Sequence[Path]) -> Path:
    """The first file of one of these names in one of these folders. Raises InputError if all lie outside them."""
    inside, problem = [], None
    for name in names:
        for root in roots:
            try:
                find_image(root, name)
                inside.append(root / name)
            except InputError as error:
                problem = error
    if problem and not inside:
        raise problem
    return next((place for place in inside if place.is_file()), inside[0])


def yes_or_no(text: str) -> str | None:
    """The first whole word of a text that is ``yes`` or ``no``; None if there is none."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return next((word for word in words if word in ("yes", "no")), None)


def read_mmedpo(path: str | Path, images: str | Path | None) -> list[dict]:
    """The preference pairs of MMedPO's files (a JSON list) as records of preference files, with absolute image paths.

    images: their folder; None: the images are not looked for, and named as in the file. ``weighted_score`` becomes
    ``weight``. Raises FileProblems naming every bad record.
    """
    root = None if images is None else Path(images).resolve()
    found: dict[str, Path | str] = {}

    def parse(record: Any, number: int) -> dict:
        try:
            (asked, chosen), (again, rejected) = (
                [turn["value"] for turn in record[name]] for name in ("conversations", "rejected_conversations")
            )
            if asked != again or asked.count("<image>") != 1:
                raise InputError("both conversations must begin with the same question, which holds <image> once")
            (name,) = image_names(record)
            prompt = [{"role": "user", "content": asked.replace("<image>", "").strip()}]
            file = name if root is None else str(_find(name, [root], found))
            row = {"id": str(record["id"]), "prompt": prompt, "images": [file]}
            return row | {
                "chosen": chosen.strip(),
                "rejected": rejected.strip(),
                "weight": record.get("weighted_score"),
            }
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not of MMedPO's form ({type(error).__name__}: {error})") from None

    return parse_rows(Path(path), read_records(Path(path)), parse, key=itemgetter("id"))

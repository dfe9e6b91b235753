"""Questions about medical images, from the files of VQA-RAD, SLAKE, PathVQA and IU-Xray, and from JSON Lines.

* VQA-RAD: a JSON list of ``image_name``, ``question``, ``answer``, ``answer_type``, ``qid``, ``image_organ``.
* SLAKE: a JSON list of ``img_name``, ``question``, ``answer``, ``answer_type``, ``q_lang``, ``qid``, ``location`` and more.
* PathVQA and IU-Xray: see :mod:`mint.data.vqa_files`; a report is the answer to a request to describe.
* JSON Lines of ``images`` (see :func:`mint.data.image_names.image_names`), ``question``, ``answer``, and where known
  ``id``, ``answer_type`` and ``truth``: what ``generate_prefs.py questions`` writes.

Images lie in a folder that is named, or beside the file (``images``, ``imgs``, the file's own). A name without an ending
is looked for as .jpg, .png, and in the folder that its first part names ("val_0261": ``val``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mint.data.image_files import open_image
from mint.data.image_names import image_names
from mint.data.vqa_files import read_records
from mint.errors import FileProblems, InputError

OTHER_NAMES = ("image_name", "img_name")  # of the field that names the image
ID_KEYS = ("qid", "id")
TRAITS = ("image_organ", "location", "modality", "question_type", "content_type", "phrase_type")
KINDS = ("closed", "open")
BESIDE = ("images", "imgs", ".")
ENDINGS = (".jpg", ".png", "")


@dataclass(frozen=True)
class Question:
    """kind: closed (yes or no, or one of few) or open. traits: what the data set says of it, such as the organ.

    truth: what is true of the image, in the form of ``mint.prefs.claims``, where that is known. others: further images, as
    the second view of a chest.
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
    """(the questions, what was read in words).

    images: the folder that image names are relative to. language: of SLAKE's questions; the others are passed over.
    split: of files that hold several (IU-Xray's).
    Every image is opened once. Raises FileProblems naming every bad record, InputError if nothing can be read.
    """
    path = Path(path)
    records = read_records(path, split)
    folders = [Path(images)] if images else [path.parent / name for name in BESIDE]
    roots = [folder.resolve() for folder in folders if folder.is_dir()]
    if not roots:
        raise InputError(f"{folders[0]} is not a folder of images")
    found, problems, questions, passed = {}, [], [], 0
    seen: dict[str, int] = {}
    for number, record in records:
        if isinstance(record, dict) and record.get("q_lang", language) != language:
            passed += 1
            continue
        try:
            question = _question(record, number, roots, found)
            if seen.setdefault(question.id, number) != number:
                raise InputError(f"id {question.id} is that of record {seen[question.id]} too")
            questions.append(question)
        except InputError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        raise FileProblems(path, problems)
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
    for name in names:
        if name not in found:
            found[name] = _find(name, roots)
        if isinstance(found[name], str):
            raise InputError(found[name])
    places = [found[name] for name in names]
    identity = next((record[key] for key in ID_KEYS if isinstance(record.get(key), (str, int))), number)
    traits = {key: str(record[key]) for key in TRAITS if record.get(key)}
    told = texts["question"], texts["answer"], kind, traits, record.get("truth") or None  # {}: nothing is known
    return Question(str(identity), places[0], *told, tuple(places[1:]))


def _find(name: str, roots: Sequence[Path]) -> Path | str:
    """The image's place, or what is wrong with it."""
    spelt = [name]
    if not Path(name).suffix:
        spelt = [f"{folder}{name}{end}" for folder in ("", f"{name.split('_')[0]}/") for end in ENDINGS]
    inside = [root / other for other in spelt for root in roots if (root / other).resolve().is_relative_to(root)]
    if not inside:
        return f"the image {name} is outside the folder of images"
    path = next((place for place in inside if place.is_file()), inside[0])
    try:
        open_image(path)
    except InputError as error:
        return str(error)
    return path


def yes_or_no(text: str) -> str | None:
    """``yes`` or ``no``, whichever stands first in a text as a whole word; None where neither does."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return next((word for word in words if word in ("yes", "no")), None)


def read_mmedpo(path: str | Path, images: str | Path) -> list[dict]:
    """The preference pairs of MMedPO's files (a JSON list) as records of preference files, with absolute image paths.

    ``weighted_score`` becomes ``weight``. Raises FileProblems naming every bad record.
    """
    path, root = Path(path), Path(images).resolve()
    rows, problems, found = [], [], {}
    for number, record in read_records(path):
        try:
            (asked, chosen), (again, rejected) = (
                [turn["value"] for turn in record[name]] for name in ("conversations", "rejected_conversations")
            )
            if asked != again or asked.count("<image>") != 1:
                raise InputError("both conversations must begin with the same question, which holds <image> once")
            (name,) = image_names(record)
            if name not in found:
                found[name] = _find(name, [root])
            if isinstance(found[name], str):
                raise InputError(found[name])
            question = asked.replace("<image>", "").strip()
            row = {
                "id": str(record["id"]),
                "prompt": [{"role": "user", "content": question}],
                "images": [str(found[name])],
            }
            row |= {"chosen": chosen.strip(), "rejected": rejected.strip(), "weight": record.get("weighted_score")}
            rows.append(row)
        except InputError as error:
            problems.append(f"{path}:{number}: {error}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"{path}:{number}: not of MMedPO's form ({type(error).__name__}: {error})")
    if problems:
        raise FileProblems(path, problems)
    return rows

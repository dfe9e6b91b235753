"""Microscope tiles of known tissue, the question and answer of MINT's second task, and readers of three forms.

* PanNuke's folds: a folder that holds ``images.npy`` [N, H, W, 3] and ``types.npy`` [N] beside each other; the tiles
  become PNG files, since preference records name files.
* A folder of images with one folder for each tissue.
* A table (.csv, or .tsv with tabs) with one row for each image; ``COLUMNS`` lists the names its columns may have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mint.data.image_files import find_image, open_image
from mint.data.prompts import Prompt
from mint.data.records import parse_rows
from mint.data.splits import SPLITS
from mint.data.tables import SUFFIXES, read_table
from mint.errors import FileProblems, InputError
from mint.files import file_aside

PANNUKE_TISSUES = (
    "Adrenal gland", "Bile duct", "Bladder", "Breast", "Cervix", "Colon", "Esophagus", "Head & Neck", "Kidney", "Liver",
    "Lung", "Ovarian", "Pancreatic", "Prostate", "Skin", "Stomach", "Testis", "Thyroid", "Uterus",
)  # fmt: skip
PANNUKE_NAMES = {"".join(c for c in name.lower() if c.isalpha()): name for name in PANNUKE_TISSUES}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
COLUMNS = {  # field -> the names that its column may have, in order of preference
    "image": ("image", "filename", "path", "file"),
    "tissue": ("tissue", "organ", "label", "class"),
    "id": ("id", "image_id"),
    "subject": ("patient_id", "patient", "slide", "group", "source_cluster", "subject"),
    "split": ("split", "source_split"),
}
HEADER = "MOST_LIKELY_TISSUE:"
LISTED = 5  # tissues of an answer, where there are enough


@dataclass(frozen=True)
class Tile:
    """An image of known tissue. subject: the patient or slide it comes from, where that is known."""

    id: str
    image: Path
    tissue: str
    subject: str = ""
    split: str = ""


@dataclass
class TileReport:
    """The number of tiles of each tissue, and of files that were skipped."""

    tissues: Counter = field(default_factory=Counter)
    passed: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.tissues.items()))
        passed = "".join(f"; {count} {what}" for what, count in self.passed.items())
        return f"{self.tissues.total()} tiles of {len(self.tissues)} tissues ({counts}){passed}"


def read_tiles(path: str | Path, extracted: str | Path | None = None) -> tuple[list[Tile], TileReport]:
    """The tiles under ``path``, and a report on them.

    extracted: the folder that the tiles of PanNuke's arrays are written to as PNG files; existing ones are replaced.
    Every image is opened, so that none fails later. Raises FileProblems naming every bad row or file, InputError if
    nothing can be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    report = TileReport()
    if path.suffix in SUFFIXES:
        tiles = _read_table(path)
    elif not path.is_dir():
        raise InputError(f"{path} is neither a folder nor a table (.csv, .tsv)")
    elif folds := sorted(path.rglob("images.npy")):
        tiles = [tile for fold in folds for tile in _read_fold(path, fold, extracted)]
    else:
        tables = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        tiles = _read_table(tables[0]) if len(tables) == 1 else _read_folders(path, report)
    if not tiles:
        raise InputError(
            f"{path} holds no tiles: neither images.npy, nor a table, nor images in a folder of their tissue"
        )
    report.tissues.update(tile.tissue for tile in tiles)
    return tiles, report


def _read_fold(root: Path, images: Path, extracted: str | Path | None) -> Iterator[Tile]:
    types = images.with_name("types.npy")
    if extracted is None:
        raise InputError(f"{images}: say where the tiles are to be written as images (--tiles DIR)")
    try:
        pixels = np.load(images, mmap_mode="r", allow_pickle=False)
        names = np.load(types, mmap_mode="r", allow_pickle=False)
        tissues = [str(name) for name in names] if names.ndim == 1 else []
    except Exception as error:  # headers are expressions, and damaged ones raise exceptions of many kinds
        raise InputError(f"{images} or {types.name} beside it cannot be read: {error}") from None
    if pixels.dtype.kind not in "buif" or not all(name.strip() and name.isprintable() for name in tissues):
        raise InputError(f"{images} must hold numbers, and {types.name} names of tissues")
    if pixels.ndim != 4 or pixels.shape[3] != 3 or names.shape != pixels.shape[:1] or 0 in pixels.shape:
        raise InputError(
            f"{images} has the shape {pixels.shape}, {types.name} {names.shape}; expected [N, H, W, 3] and [N]"
        )
    fold = "-".join(part for part in images.parent.relative_to(root).parts if part != "images") or images.parent.name
    folder = Path(extracted) / fold
    for number, name in enumerate(tissues):
        tissue = PANNUKE_NAMES.get("".join(c for c in name.lower() if c.isalpha()), name)
        file = folder / f"{number:05d}.png"
        with file_aside(file) as aside:
            Image.fromarray(np.asarray(pixels[number]).clip(0, 255).astype(np.uint8)).save(aside)
        yield Tile(f"{fold}-{number:05d}", file, tissue)


def _read_folders(root: Path, report: TileReport) -> list[Tile]:
    tiles, problems = [], []
    for folder in sorted(file for file in root.iterdir() if file.is_dir()):
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                report.passed["files that are no images (passed over)"] += file.is_file()
                continue
            try:
                open_image(file)  # named by the folder, not by a record: it may be a link
            except InputError as error:
                problems.append(str(error))
            tiles.append(Tile(str(file.relative_to(root)), file, folder.name.replace("_", " ")))
    if problems:
        raise FileProblems(root, problems)
    return tiles


def _read_table(path: Path) -> list[Tile]:
    table, root = read_table(path, COLUMNS, (("image",), ("tissue",))), path.parent.resolve()

    def parse(cells: list[str], line: int) -> Tile:
        table.check(cells)
        values = {key: cells[columns[0]].strip() if columns else "" for key, columns in table.columns.items()}
        name, tissue, split = values["image"], values["tissue"], values["split"].lower()
        if not name or not tissue:
            raise InputError("no tissue" if name else "no image")
        file = find_image(root, name)
        if split and split not in SPLITS:
            raise InputError(f"split {values['split']!r} is not one of {', '.join(SPLITS)}")
        open_image(file)
        return Tile(values["id"] or name, file, tissue, values["subject"], split)

    return parse_rows(path, table.rows, parse)


def list_lengths(tissues: Sequence[str], top_k: int | None = None, bottom_q: int | None = None) -> tuple[int, int]:
    """How many tissues the best and the worst list hold: five, or half of few, where nothing else is asked for.

    Raises InputError if a list holds none, or the two would overlap.
    """
    few = min(LISTED, len(tissues) // 2)
    top_k, bottom_q = few if top_k is None else top_k, few if bottom_q is None else bottom_q
    if min(top_k, bottom_q) < 1 or top_k + bottom_q > len(tissues):
        count = len(tissues)
        raise InputError(
            f"the top {top_k} and bottom {bottom_q} of {count} tissues must each hold one, and not overlap"
        )
    return top_k, bottom_q


def tissue_messages(tissues: Sequence[str], count: int, prompt: Prompt | None = None) -> list[dict]:
    """The prompt of MINT's second task, without its image: one message, as some templates refuse a system message
    beside images.

    tissues: those to choose from; count: how many to name. prompt: another wording, with {tissues} and {count}.
    """
    if prompt:
        return prompt.messages(tissues=", ".join(tissues), count=str(count))
    form = "\n".join(
        [HEADER, "1. 'Tissue1'"] + (["..."] if count > 2 else []) + [f"{count}. 'Tissue{count}'"] * (count > 1)
    )
    asked = f"Name the {count} most likely of these tissues, the most likely first"
    if count == 1:
        asked = "Name the most likely of these tissues"
    request = (
        "You are a pathologist. The image shows cell nuclei, stained with haematoxylin and eosin. "
        f"{asked}: {', '.join(tissues)}. Answer in this format and write nothing else:\n\n{form}"
    )
    return [{"role": "user", "content": request}]

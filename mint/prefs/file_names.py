"""File names in preference records: relative to the folder of the file that they are written to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def relative_name(path: str | Path, folder: Path) -> str:
    """The name of a file in a record that is written to ``folder``: relative, or whole for a file outside it."""
    path, folder = Path(path).resolve(), folder.resolve()
    return os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)


def move_record(record: dict, source: Path, folder: Path) -> dict:
    """A record of a file in ``source`` with its images and mask named as a file in ``folder`` needs it."""
    moved = {**record, "images": [relative_name(source / name, folder) for name in record["images"]]}
    if isinstance(record.get("mask"), str):
        moved["mask"] = relative_name(source / record["mask"], folder)
    return moved


def say_if_outside(images: Iterable[str | Path], out: Path) -> None:
    """Prints which flag ``train.py`` needs for images that lie outside the folder of ``out``."""
    root = out.parent.resolve()
    if not all(Path(image).resolve().is_relative_to(root) for image in images):
        print("some images lie outside the folder of the pairs: train.py needs --images-anywhere for them")

"""Good files that several readers damage."""

from __future__ import annotations

import functools
import gzip
import io
import random
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.damage import damage_bytes

PACKET = {
    "id": "p1",
    "subject": {"id": "s", "sex": "MALE", "timeAtLastEncounter": {"age": {"iso8601duration": "P3Y2M"}}},
    "phenotypicFeatures": [
        {"type": {"id": "HP:0001250", "label": "Seizure"}},
        {"type": {"label": "Ptosis"}, "excluded": True},
    ],
    "interpretations": [
        {"diagnosis": {"disease": {"id": "OMIM:1", "label": "Marfan"}, "genomicInterpretations": [{"gene": {}}]}}
    ],
}


@functools.cache
def picture(form: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> bytes:
    file, grey = io.BytesIO(), np.random.default_rng(0).integers(256, size=size[::-1], dtype=np.uint8)
    Image.fromarray(grey).convert(mode).save(file, form)
    return file.getvalue()


def write_pictures(folder: Path) -> None:
    """Images as records name them, and links that lead out of the folder and in a circle."""
    for name in ("images/a.png", "images/b.png", "a.png", "b.png", "mask.png", "1_aligned.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture())
    for link, target in (("link.png", "/etc/hostname"), ("loop.png", "loop.png")):
        (folder / link).symlink_to(target)


def write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def packed(rng: random.Random, folder: Path, stem: str, content: bytes) -> Path:
    """The content as a file, sometimes gzipped, and then sometimes damaged as such."""
    if rng.random() < 0.75:
        return write(folder, stem, content)
    content = gzip.compress(content, 1, mtime=0)
    return write(folder, f"{stem}.gz", damage_bytes(rng, content, 2) if rng.random() < 0.5 else content)

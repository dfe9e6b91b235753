"""Augmented views of microscope tiles: rotated, mirrored and cropped, as a slide has no orientation."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mint.data.image_files import open_image
from mint.data.tiles import Tile
from mint.errors import InputError
from mint.files import file_aside

SMALLEST = 0.6  # of a tile's shorter side


def draw_views(tiles: Sequence[Tile], count: int, folder: str | Path, seed: int = 0) -> list[Tile]:
    """``count`` views of every tile as tiles of their own, written to ``folder``.

    The first is the tile itself. The others are random square crops, with sides of 0.6 to 1 of its shorter side,
    rotated by a multiple of 90 degrees and mirrored with probability 0.5. They depend on the seed and the tile's id
    alone. Raises InputError for a count below one, or a folder that cannot be written.
    """
    if count < 1:
        raise InputError(f"at least one view of a tile, not {count}")
    if count == 1:
        return list(tiles)
    views = []
    for place, tile in enumerate(tiles):
        views.append(tile)
        image = open_image(tile.image)
        for number in range(1, count):
            file = Path(folder) / f"{place:05d}-{number}.png"
            with file_aside(file) as aside:
                _view(image, random.Random(f"{seed}/{tile.id}/{number}")).save(aside)
            views.append(dataclasses.replace(tile, id=f"{tile.id} view {number}", image=file))
    return views


def _view(image: Image.Image, rng: random.Random) -> Image.Image:
    side = round(min(image.size) * rng.uniform(SMALLEST, 1))
    left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
    view = image.crop((left, top, left + side, top + side))
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turn = rng.choice((None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270))
    return view if turn is None else view.transpose(turn)

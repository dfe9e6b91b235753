"""Views of tiles: a microscope slide has no right way up, and a part of a tile shows the same tissue."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mint.data.image_files import open_image
from mint.data.tiles import Tile
from mint.errors import InputError

SMALLEST = 0.6  # of a tile's shorter side


def draw_views(tiles: Sequence[Tile], count: int, folder: str | Path, seed: int = 0) -> list[Tile]:
    """``count`` views of every tile as tiles of their own, written to ``folder``.

    The first is the tile as it is; the others are squares of 0.6 to 1 of its shorter side from anywhere in it, turned by
    quarters, and every second one mirrored. They depend on the seed and the tile's id alone. Raises InputError for a
    count below one, or a folder that cannot be written.
    """
    if count < 1:
        raise InputError(f"at least one view of a tile, not {count}")
    folder, views = Path(folder), []
    if count == 1:
        return list(tiles)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place, tile in enumerate(tiles):
            views.append(tile)
            image = open_image(tile.image)
            for number in range(1, count):
                file = folder / f"{place:05d}-{number}.png"
                temporary = file.with_suffix(".tmp")
                _view(image, random.Random(f"{seed}/{tile.id}/{number}")).save(temporary, "PNG")
                temporary.replace(file)
                views.append(dataclasses.replace(tile, id=f"{tile.id} view {number}", image=file))
    except OSError as error:
        raise InputError(f"views cannot be written to {folder}: {error}") from None
    return views


def _view(image: Image.Image, rng: random.Random) -> Image.Image:
    side = round(min(image.size) * rng.uniform(SMALLEST, 1))
    left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
    view = image.crop((left, top, left + side, top + side))
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turn = rng.choice((None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270))
    return view if turn is None else view.transpose(turn)

"""The drawn tiles as a folder like any other: images, and a table in a form that ``mint.data.tiles`` reads."""

from __future__ import annotations

from pathlib import Path

from mint.data.tiles import Tile
from mint.errors import InputError
from mint.progress import Progress
from mint.synthetic.table import write_table
from mint.synthetic.tissue_tiles import draw_tile, load_tissues


def draw_tiles(per_tissue: int, seed: int, folder: str | Path, split: str = "") -> list[Tile]:
    """``per_tissue`` tiles of every tissue, drawn into ``folder``; ids carry the seed, so sets can be joined."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tiles = []
    work = [(number, tissue) for number in range(per_tissue) for tissue in load_tissues()]
    for number, tissue in Progress(work, desc="tiles", unit="tile", leave=False):
        name = f"{seed}-{number}-{''.join(c for c in tissue.tissue if c.isalpha())}"
        draw_tile(tissue, f"{seed}/{number}").save(folder / f"{name}.png")
        tiles.append(Tile(name, folder / f"{name}.png", tissue.tissue, split=split))
    return tiles


def write_tiles(folder: str | Path, train: int, test: int, seed: int = 0) -> None:
    """Writes ``tiles.csv`` and ``images/``: of every tissue ``train`` and ``test`` tiles, marked so in the column ``split``.

    Raises InputError for a folder that holds a table already or cannot be written.
    """
    folder = Path(folder)
    if (folder / "tiles.csv").exists():
        raise InputError(f"{folder} holds tiles already; give another folder")
    try:
        tiles = draw_tiles(train, 2 * seed, folder / "images", "train")
        tiles += draw_tiles(test, 2 * seed + 1, folder / "images", "test")
        rows = ([tile.id, f"images/{tile.image.name}", tile.tissue, tile.split] for tile in tiles)
        write_table(folder / "tiles.csv", ["id", "image", "tissue", "split"], rows)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from None

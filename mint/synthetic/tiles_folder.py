"""Drawn tiles as a folder: images, and a table in a format that ``mint.data.tiles`` reads."""

from __future__ import annotations

from pathlib import Path

from mint.data.tiles import Tile
from mint.progress import Progress
from mint.synthetic.package_tables import new_set, write_table
from mint.synthetic.tissue_tiles import draw_tile, load_tissues


def draw_tiles(per_tissue: int, seed: int, folder: str | Path, split: str = "") -> list[Tile]:
    """``per_tissue`` tiles of every tissue, drawn into ``folder``. Ids start with the seed, so sets can be joined."""
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
    """Writes ``tiles.csv`` and ``images/`` with ``train`` and ``test`` tiles per tissue; ``split`` tells which.

    Raises InputError if the folder holds a table already or cannot be written.
    """
    with new_set(folder, "tiles.csv", "tiles") as path:
        tiles = draw_tiles(train, 2 * seed, path / "images", "train")
        tiles += draw_tiles(test, 2 * seed + 1, path / "images", "test")
        rows = ([tile.id, f"images/{tile.image.name}", tile.tissue, tile.split] for tile in tiles)
        write_table(path / "tiles.csv", ["id", "image", "tissue", "split"], rows)

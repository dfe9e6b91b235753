"""The flags by which every command reads tiles of known tissue."""

from __future__ import annotations

import argparse

from mint.data.splits import split_by_patient
from mint.data.tiles import Tile, read_tiles
from mint.errors import InputError
from mint.files import read_lines


def add_tile_options(parser: argparse.ArgumentParser) -> None:
    """``--cases`` and what goes with it; read by :func:`read_tile_options`."""
    parser.add_argument(
        "--cases",
        required=True,
        metavar="PATH",
        help="tiles: PanNuke's fold folders, a folder of images for each tissue, or a table (.csv, .tsv) of images",
    )
    parser.add_argument("--tiles", metavar="DIR", help="where PanNuke's arrays are written as images")
    parser.add_argument(
        "--tissues", metavar="FILE", help="the tissues to rank, one a line (default: those of the tiles)"
    )
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        help="part of the tiles, by patient or slide: as the table says, else a tenth",
    )


def read_tile_options(args: argparse.Namespace, path: str | None = None) -> tuple[list[Tile], tuple[str, ...]]:
    """(tiles of the asked split, all tissues to rank); prints what was read.

    path: another place to read by the same flags. Raises InputError for whatever the user can mend.
    """
    path = path or args.cases
    tiles, report = read_tiles(path, args.tiles)
    print(f"{path}: {report}")
    found = sorted({tile.tissue for tile in tiles})
    tissues = tuple(dict.fromkeys(read_lines(args.tissues))) if args.tissues else tuple(found)
    if missing := [tissue for tissue in found if tissue not in tissues]:
        raise InputError(f"{args.tissues} lacks the tissue {missing[0]!r} of some tiles")
    if args.split:
        tiles = split_by_patient(tiles, label=lambda tile: tile.tissue)[args.split == "test"]
        print(f"{path}: {len(tiles)} tiles of the {args.split} split")
        if not tiles:
            raise InputError(f"{path}: the {args.split} split is empty")
    return tiles, tissues

"""``generate_prefs.py mmedpo``: the published pairs of MMedPO in this project's form."""

from __future__ import annotations

import argparse
from pathlib import Path

from mint.data.preferences import write_jsonl
from mint.data.questions import read_mmedpo
from mint.files import check_paths, check_unused
from mint.prefs.file_names import move_record, say_if_outside


def add_mmedpo(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = parser.add_argument
    add("--pairs", required=True, metavar="FILE.json")
    add("--images", required=True, metavar="DIR")
    add("--out", required=True, metavar="FILE.jsonl")
    parser.set_defaults(run=run_mmedpo)


def run_mmedpo(args: argparse.Namespace) -> None:
    """Reads the pairs, checks their images, and writes them."""
    check_paths(args)
    check_unused(args.out)
    rows, out = read_mmedpo(args.pairs, args.images), Path(args.out)
    images = {name for row in rows for name in row["images"]}
    write_jsonl(out, (move_record(row, Path(), out.parent) for row in rows))
    print(f"{out}: {len(rows)} pairs on {len(images)} images")
    say_if_outside(images, out)

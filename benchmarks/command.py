"""What the comparisons share: their flags, errors as one line, and the comparison of their rows."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mint.cli import guard
from mint.errors import InputError
from mint.files import make_folder, read_json, write_aside

ROOT = Path(__file__).parents[1]


def make_parser(description: str, seeds: int | None = None) -> argparse.ArgumentParser:
    """A parser with ``--out`` and, for a default of ``seeds``, ``--seeds``."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", required=True, metavar="DIR")
    if seeds is not None:
        parser.add_argument("--seeds", type=int, default=seeds)
    return parser


def add_hardware(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--dtype``."""
    add = parser.add_argument
    add("--device", default="cpu", choices=("auto", "cpu", "cuda"), help="of training and answers (default: cpu)")
    add("--dtype", default="auto", choices=("auto", "bfloat16"), help="auto: answers are in float32 (default)")


def check_study(file: Path, settings: dict) -> None:
    """Writes what all runs of a folder share. Raises InputError if that differs from what is there."""
    if (known := read_json(file, optional=True)) and known != settings:
        raise InputError(f"{file.parent} is of {known}, not of {settings}: give another --out")
    make_folder(file.parent)
    write_aside(file, json.dumps(settings) + "\n")


def run(parser: argparse.ArgumentParser, job: Callable[[argparse.Namespace], str | Sequence[str]]) -> int:
    """Runs ``job`` and prints its text, or compares the rows that it returns; an InputError ends as one line."""
    args = parser.parse_args()

    def finish() -> None:
        found = job(args)
        if isinstance(found, str):
            print(found)
        else:
            out = ["--out", f"{args.out}/comparison"]
            subprocess.check_call([sys.executable, str(ROOT / "evaluate.py"), "compare", *found, *out])

    return guard(finish)

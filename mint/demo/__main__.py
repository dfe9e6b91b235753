"""Make the parts of the embedded default by hand.

    python -m mint.demo base --pairs FILE.jsonl [FILE.jsonl ...] --out DIR     a tokenizer and a blank Llama
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from mint.data.preferences import read_preferences
from mint.demo.base import SHAPES, write_base
from mint.errors import InputError


def texts(paths: Sequence[str]) -> Iterator[str]:
    """The prompts and answers of preference files, and the role names that chats are full of."""
    for path in paths:
        for record in read_preferences(path, require_rejected=False):
            messages = record.prompt if isinstance(record.prompt, list) else []
            yield record.prompt if isinstance(record.prompt, str) else ""
            yield from (text for message in messages for text in (message["role"], message["content"]))
            yield from ("assistant", record.chosen, record.rejected or "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mint.demo", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    base = commands.add_parser("base", help="a tokenizer for the notes of preference files, and a blank Llama")
    base.add_argument("--pairs", nargs="+", required=True, metavar="FILE.jsonl")
    base.add_argument("--out", required=True, metavar="DIR")
    base.add_argument("--shape", choices=SHAPES, default="small")
    base.add_argument("--vocabulary", type=int, default=10_000)
    base.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        print(write_base(args.out, texts(args.pairs), args.shape, args.vocabulary, args.seed))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

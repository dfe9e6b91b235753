"""``evaluate.py style``: how much chosen and rejected answers of preference files differ in form.

Pairs whose answers differ in length and wording teach a model their style before their content. The statistics are
those of FiRe-MPO's comparison of reference answers with on-policy edits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein

from mint.data.preferences import read_preferences
from mint.data.questions import read_mmedpo
from mint.errors import InputError
from mint.tasks.vqa import words

CLOSE = 2  # words
HEAD = ("pairs", "words, chosen", "words, rejected", f"within {CLOSE} words (%)", "edit distance (words)", "relative")


@dataclass(frozen=True)
class PairStyle:
    """Means over pairs. chosen, rejected: words. close: share in 0 to 1 whose lengths differ by CLOSE words at most.

    edits: Levenshtein distance in words. relative: the same over the words of the longer answer, in 0 to 1.
    """

    pairs: int
    chosen: float
    rejected: float
    close: float
    edits: float
    relative: float


def pair_style(pairs: Iterable[tuple[str, str]]) -> PairStyle:
    """The style of (chosen, rejected) texts. Words are compared in lower case and without punctuation.

    Raises InputError for no pairs.
    """
    rows = []
    for texts in pairs:
        chosen, rejected = map(words, texts)
        edits, longer = Levenshtein.distance(chosen, rejected), max(len(chosen), len(rejected))
        close = abs(len(chosen) - len(rejected)) <= CLOSE
        rows.append((len(chosen), len(rejected), close, edits, edits / longer if longer else 0.0))
    if not rows:
        raise InputError("there are no pairs")
    return PairStyle(len(rows), *np.mean(rows, 0).tolist())


def read_answers(path: str | Path) -> list[tuple[str, str]]:
    """(chosen, rejected) of a preference file, or of MMedPO's (.json, .json.gz); images are not read."""
    if Path(path).name.removesuffix(".gz").endswith(".json"):
        return [(row["chosen"], row["rejected"]) for row in read_mmedpo(path, None)]
    found = [(pair.chosen.text, pair.rejected) for pair in read_preferences(path)]
    return [(chosen, rejected.text) for chosen, rejected in found if rejected is not None]


def style_table(styles: Sequence[tuple[str, PairStyle]]) -> str:
    """A Markdown table with a row for each named style."""
    lines = [f"| | {' | '.join(HEAD)} |", "|---" * (len(HEAD) + 1) + "|"]
    for name, one in styles:
        cells = (f"{one.pairs:,}", f"{one.chosen:.1f}", f"{one.rejected:.1f}", f"{100 * one.close:.1f}")
        lines.append(f"| {' | '.join((name, *cells, f'{one.edits:.1f}', f'{one.relative:.2f}'))} |")
    return "\n".join(lines)


def add_style(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("data", nargs="+", metavar="FILE", help="preference files, also MMedPO's (.json)")
    parser.set_defaults(run=run_style)


def run_style(args: argparse.Namespace) -> None:
    """Prints the table of all files."""
    print(style_table([(file, pair_style(read_answers(file))) for file in args.data]))

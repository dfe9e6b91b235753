"""Make preference files from upstream models.

    python generate_prefs.py mml --cases PATH --ranker naive-bayes --out prefs.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from mint.command import read_cases, run_command
from mint.data.cases import read_term_ids
from mint.data.preferences import write_jsonl
from mint.prefs.naive_bayes import NaiveBayesRanker
from mint.prefs.pairs import ANSWERS, PairReport, PairSettings, make_pairs

RANKERS = {"naive-bayes": NaiveBayesRanker}


def add_mml(commands) -> None:
    parser = commands.add_parser("mml", help="rank the diseases of cases: the top is chosen, the bottom rejected")
    parser.add_argument("--cases", required=True, help="phenopackets: a folder, .json, .tar, .tar.gz or .tar.xz")
    parser.add_argument("--ranker", choices=RANKERS, default="naive-bayes")
    parser.add_argument("--fit-cases", help="fit the ranker on these cases (default: on --cases, each ranked without itself)")
    parser.add_argument("--face-terms", metavar="FILE", help="HPO ids (first column) of what the face shows, left out of notes")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl")
    defaults = PairSettings()
    parser.add_argument("--top-k", type=int, default=defaults.top_k, help="diseases of the chosen list (default 10)")
    parser.add_argument("--bottom-q", type=int, default=defaults.bottom_q, help="of the rejected list (default 15)")
    parser.add_argument("--label-first", action="store_true", help="move the true disease to the front of the chosen list")
    parser.add_argument("--variants", type=int, default=1, help="notes per case, all but the first shuffled and thinned")
    parser.add_argument("--drop-terms", type=float, default=defaults.drop_terms, help="mean share of findings left out")
    parser.add_argument("--answer", choices=ANSWERS, default="ranking", help="disease: chosen names the true disease alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run_mml)


def run_mml(args: argparse.Namespace) -> None:
    """Reads, ranks and writes; prints what was read and where the truth stood."""
    facial = read_term_ids(args.face_terms) if args.face_terms else None
    cases = read_cases(args.cases, facial)
    fit = read_cases(args.fit_cases, facial) if args.fit_cases else cases
    ranker = RANKERS[args.ranker](fit)
    settings = PairSettings(
        args.top_k, args.bottom_q, args.label_first, args.variants, args.drop_terms, args.answer, args.seed
    )
    report = PairReport()
    records = make_pairs(cases, ranker, settings, report, held_out=bool(args.fit_cases))
    total = len(cases) * args.variants
    write_jsonl(args.out, tqdm(records, total=total, desc="ranking", unit="note", disable=None))
    print(f"{args.out}: {report}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(__doc__.splitlines()[0], [add_mml], argv)


if __name__ == "__main__":
    sys.exit(main())

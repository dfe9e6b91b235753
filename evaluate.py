"""Score models: decode answers for a data set, print a table, save every answer.

    python evaluate.py disease --model DIR [--adapter DIR] --cases PATH
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mint.command import choose_device, read_cases, run_command
from mint.data.cases import Case, format_list, read_term_ids
from mint.data.chat import load_tokenizer
from mint.errors import InputError
from mint.evaluation.disease import average, format_table, list_diseases, rank_upstream, save_evaluation, score_lists
from mint.evaluation.metrics import KnownDiseases
from mint.models import load_model
from mint.models.lora import load_adapter, merge_lora
from mint.prefs.naive_bayes import NaiveBayesRanker

UPSTREAM = "upstream (naive Bayes)"


def add_disease(commands) -> None:
    parser = commands.add_parser("disease", help="lists of rare diseases from clinical notes (MINT's first task)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="DIR|ID")
    what.add_argument("--ranker-only", action="store_true", help="score the upstream ranking alone, without a model")
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter to put on the model")
    parser.add_argument("--cases", required=True, help="phenopackets: a folder, .json, .tar, .tar.gz or .tar.xz")
    parser.add_argument(
        "--teacher-cases",
        metavar="PATH",
        help="cases the upstream ranking (naive Bayes) is fitted on; default: --cases, each ranked without itself",
    )
    parser.add_argument("--face-terms", metavar="FILE", help="HPO ids (first column) of what the face shows, left out of notes")
    parser.add_argument("--known-diseases", metavar="FILE", help="names that count as real, one a line (default: the cases')")
    parser.add_argument("--top-k", type=int, default=10, help="length of the upstream's best list (default 10)")
    parser.add_argument("--bottom-q", type=int, default=15, help="length of its worst list (default 15)")
    parser.add_argument("--decode", choices=("greedy", "sample"), default="greedy")
    parser.add_argument("--temperature", type=float, default=0.8, help="of --decode sample, as the next two")
    parser.add_argument("--sample-top-p", type=float, default=0.8)
    parser.add_argument("--sample-top-k", type=int, default=10)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--limit", type=int, help="score the first N cases only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--chat-date", default="26 Jul 2024", help="today's date in chat templates that print one")
    parser.add_argument("--out", default="runs/evaluation", metavar="DIR", help="default runs/evaluation")
    parser.set_defaults(run=run_disease)


def run_disease(args: argparse.Namespace) -> None:
    """Decodes, scores, prints and saves; the upstream ranking stands in the table as a row of its own."""
    facial = read_term_ids(args.face_terms) if args.face_terms else None
    if min(args.top_k, args.bottom_q) < 1 or args.limit is not None and args.limit < 1:
        raise InputError("--limit, --top-k and --bottom-q must be at least 1")
    everyone = read_cases(args.cases, facial)
    cases = everyone[: args.limit]
    teacher_cases = read_cases(args.teacher_cases, facial) if args.teacher_cases else everyone
    ranker = NaiveBayesRanker(teacher_cases)
    upstream = rank_upstream(cases, ranker, args.top_k, args.bottom_q, held_out=bool(args.teacher_cases))
    known = KnownDiseases(read_names(args.known_diseases) or [case.disease for case in [*cases, *teacher_cases]])

    if args.ranker_only:
        lists, name = upstream.top, UPSTREAM
        answers = [format_list(names) for names in lists]
    else:
        answers, lists = decode(args, cases)
        name = " + ".join(filter(None, (args.model, args.adapter)))
    scores = score_lists(cases, lists, known, upstream)
    rows = {UPSTREAM: average(score_lists(cases, upstream.top, known, upstream)), name: average(scores)}
    settings = {key: value for key, value in vars(args).items() if key != "run"}
    save_evaluation(Path(args.out), rows, cases, answers, lists, scores, settings)
    print(format_table(rows))
    print(f"{len(cases)} cases, {rows[name]['without_list']} answers without a list; saved in {args.out}")


def decode(args: argparse.Namespace, cases: Sequence[Case]) -> tuple[list[str], list[list[str]]]:
    """(answers, lists) of the model for every case."""
    model, tokenizer = load(args)
    sampling = {"temperature": args.temperature, "top_p": args.sample_top_p, "top_k": args.sample_top_k}
    return list_diseases(
        model,
        tokenizer,
        cases,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        seed=args.seed,
        **(sampling if args.decode == "sample" else {}),
    )


def read_names(path: str | None) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines() if path else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def load(args: argparse.Namespace):
    """(model with its adapter merged, tokenizer)."""
    device, dtype = choose_device(args.device, args.dtype)
    model = load_model(args.model, dtype=dtype, device=device)
    if args.adapter:
        merge_lora(load_adapter(model, args.adapter), drop=True)
    return model, load_tokenizer(model.source_dir, chat_date=args.chat_date)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(__doc__.splitlines()[0], [add_disease], argv)


if __name__ == "__main__":
    sys.exit(main())

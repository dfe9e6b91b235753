"""Score models: decode answers for a data set, print a table, save every answer; compare what was saved.

python evaluate.py disease --model DIR [--adapter DIR] --cases PATH
python evaluate.py disease --predictions FILE.jsonl --cases PATH
python evaluate.py tissue --model DIR [--adapter DIR] --cases TILES --teacher CLIP
python evaluate.py vqa --model DIR [--adapter DIR] --questions FILE.json
python evaluate.py report --model DIR [--adapter DIR] --reports annotation.json
python evaluate.py sensitivity --model DIR [--adapter DIR] --data PAIRS.jsonl
python evaluate.py attention --model DIR [--adapter DIR] --data PAIRS.jsonl
python evaluate.py inspect --model DIR --adapter DIR --data PAIRS.jsonl --row N
python evaluate.py compare RUN RUN ... --out DIR

Results go to --out (default runs/eval/COMMAND-MODEL-ADAPTER-DECODING); --resume continues an interrupted evaluation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mint.cli import choose_device, run_command
from mint.data.cases import Case, format_list, parse_list, write_note
from mint.data.retrieval import Retriever, describe_cases, is_description_folder, read_descriptions
from mint.data.tiles import HEADER, list_lengths, tissue_messages
from mint.errors import InputError
from mint.evaluation.decoding import (
    add_decoding_options,
    add_image_options,
    load,
    load_vision_model,
    sampling,
    settle_decoding,
)
from mint.evaluation.folder import EvaluationFolder, add_folder_options, take_first
from mint.evaluation.metrics import KnownDiseases
from mint.evaluation.predictions import read_predictions
from mint.files import check_paths, read_lines
from mint.tasks import tissue
from mint.tasks.cohorts import add_cohort_options, read_cohort
from mint.tasks.compare_page import save_comparison
from mint.tasks.disease import (
    COLUMNS,
    average,
    format_table,
    list_diseases,
    rank_diseases,
    rank_upstream,
    save_evaluation,
    score_lists,
    write_prompts,
)
from mint.tasks.tiles import add_tile_options, read_tile_options
from mint.tasks.tissue_page import save_tissues
from mint.tasks.visual import add_attention, add_inspect, add_report, add_sensitivity, add_vqa
from mint.teachers.clip_teacher import TEMPLATES, load_zero_shot
from mint.teachers.naive_bayes import NaiveBayesRanker
from mint.teachers.ranking import Ranker
from mint.teachers.vilt_teacher import VIEWS, load_teachers


def add_disease(commands) -> None:
    parser = commands.add_parser("disease", help="lists of rare diseases from clinical notes (MINT's first task)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="DIR|ID")
    what.add_argument("--ranker-only", action="store_true", help="score the upstream ranking alone, without a model")
    what.add_argument(
        "--predictions", metavar="FILE.jsonl", help='another model\'s: {"id": ..., "answer": ...} for every case'
    )
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter to put on the model")
    parser.add_argument("--name", help="of the row in tables (default: the model and adapter)")
    add_cohort_options(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="the first N cases only")
    parser.add_argument(
        "--known-diseases", metavar="FILE", help="names that count as real, one a line (default: the cases')"
    )

    upstream = parser.add_argument_group("upstream")
    upstream.add_argument(
        "--teacher", nargs="+", metavar="DIR", help="a multimodal teacher, several: their mean (default: naive Bayes)"
    )
    upstream.add_argument(
        "--view",
        choices=VIEWS,
        default="both",
        help="--ranker-only with --teacher: score it with one modality (default both)",
    )
    upstream.add_argument(
        "--teacher-cases",
        metavar="PATH",
        help="cases the upstream ranking was fitted on; default: --cases, each ranked without itself",
    )
    upstream.add_argument("--top-k", type=int, default=10, help="length of the upstream's best list (default 10)")
    upstream.add_argument("--bottom-q", type=int, default=15, help="length of its worst list (default 15)")

    decoding = parser.add_argument_group("decoding")
    add_decoding_options(
        decoding,
        temperature=0.8,
        top_p=0.8,
        top_k=10,
        max_new_tokens=512,
        batch_size=64,
        ways=("greedy", "sample", "constrained", "rank"),
        ways_help="constrained: known names alone, none twice; rank: score every known name as the first, and sort",
    )
    decoding.add_argument(
        "--retrieve",
        metavar="PATH",
        help="put the best passages by BM25 into the prompt: from cases, or from a folder of HPO tables "
        "(disease_features.tsv, diseases.tsv, terms.tsv)",
    )
    decoding.add_argument("--passages", type=int, default=3, help="of --retrieve, for every note (default 3)")
    add_folder_options(parser, "disease-MODEL-ADAPTER-DECODE")
    parser.set_defaults(run=run_disease)


def run_disease(args: argparse.Namespace) -> None:
    """Decodes, scores, prints and saves; the upstream ranking stands in the table as a row of its own."""
    if min(args.top_k, args.bottom_q) < 1:
        raise InputError("--top-k and --bottom-q must be at least 1")
    if not args.model and (args.adapter or args.retrieve or args.decode != "greedy"):
        raise InputError("--adapter, --retrieve and --decode go with --model")
    if args.view != "both" and not (args.teacher and args.ranker_only):
        raise InputError("--view goes with --teacher and --ranker-only")
    if args.resume and not args.model:
        raise InputError("--resume goes with --model: there is nothing to decode without one")
    settle_decoding(args)
    folder = EvaluationFolder(args, "disease", *_named_after(args))
    check_paths(args)
    everyone = read_cohort(args.cases, args)
    cases = take_first(everyone, args.limit)
    part = "train" if args.split else None
    training = read_cohort(args.teacher_cases, args, part, draw=False) if args.teacher_cases else []
    ranker = load_upstream(args, "both") if args.teacher else NaiveBayesRanker(training or everyone)
    held_out = bool(args.teacher_cases) and not args.teacher
    if args.top_k + args.bottom_q > len(ranker.diseases):
        raise InputError(
            f"{args.top_k} best and {args.bottom_q} worst of {len(ranker.diseases)} diseases overlap: "
            "give --teacher-cases with more, or lower --top-k and --bottom-q"
        )
    upstream = rank_upstream(cases, ranker, args.top_k, args.bottom_q, held_out)
    if args.known_diseases:
        names = read_lines(args.known_diseases)
    else:
        names = sorted({case.disease for case in [*cases, *training]} | set(ranker.diseases))
    known = KnownDiseases(names)

    upstream_name = f"upstream ({ranker.name})"
    name = args.name or upstream_name
    if args.ranker_only:
        lists = upstream.top
        if args.view != "both":
            lists = rank_upstream(cases, load_upstream(args, args.view), args.top_k, args.bottom_q, held_out).top
            name = args.name or f"upstream ({ranker.name}, {args.view} only)"
        answers = [format_list(names) for names in lists]
    elif args.predictions:
        answers, lists = read_predictions(args.predictions, cases)
        name = args.name or args.predictions
    else:
        answers, lists = decode(args, folder, cases, training, names)
        name = args.name or " + ".join(filter(None, (args.model, args.adapter, args.retrieve and "retrieval")))
    scores = score_lists(cases, lists, known, upstream)
    rows = {upstream_name: average(score_lists(cases, upstream.top, known, upstream)), name: average(scores)}
    unknown = sum(case.disease not in ranker.diseases for case in cases)
    settings = {key: value for key, value in vars(args).items() if key != "run"} | {"unknown_to_upstream": unknown}
    save_evaluation(folder.path, rows, cases, answers, lists, scores, settings, upstream, training)
    print(format_table(rows))
    if unknown:
        print(f"the upstream has never seen the disease of {unknown} cases")
    folder.finish(f"{len(cases)} cases, {_list_summary(rows[name], COLUMNS, ('top_1', 'top_10', 'car'))}")


def _named_after(args: argparse.Namespace) -> list[str | None]:
    """What the default folder is named after."""
    if args.ranker_only:
        return ["upstream", *(args.teacher or ["naive-bayes"]), args.view]
    if args.predictions:
        return ["predictions", args.predictions]
    return [args.model, args.adapter, args.decode, "retrieval" if args.retrieve else None]


def _list_summary(row: dict[str, float], headings: dict[str, str], shown: Sequence[str]) -> str:
    scores = ", ".join(f"{headings[name]} {100 * row[name]:.1f} %" for name in shown)
    return f"{row['without_list']} answers without a list: {scores}"


def load_upstream(args: argparse.Namespace, view: str) -> Ranker:
    """The teacher, seeing what ``view`` says."""
    return load_teachers(args.teacher, choose_device(args.device, "auto")[0], view)


def decode(
    args: argparse.Namespace,
    folder: EvaluationFolder,
    cases: Sequence[Case],
    training: Sequence[Case],
    names: Sequence[str],
) -> tuple[list[str], list[list[str]]]:
    """(answers, lists) of the model for every case; those that the folder keeps are not decoded again."""
    passages = retrieve(args, cases) if args.retrieve else None
    only = names if args.decode == "constrained" else None

    def missing(**state) -> list[str]:
        if args.decode == "rank":
            return rank_diseases(*load(args), cases, names, passages, **state)[0]
        return list_diseases(*load(args), cases, passages=passages, only=only, **sampling(args), **state)[0]

    held_to = list(names) if args.decode in ("rank", "constrained") else None
    with folder.answers([case.id for case in cases], [write_prompts(cases, passages), held_to]) as kept:
        answers = kept.complete(missing)
    return answers, [parse_list(answer) for answer in answers]


def retrieve(args: argparse.Namespace, cases: Sequence[Case]) -> list[list[str]]:
    """The passages of every case; a case is never shown itself."""
    if is_description_folder(args.retrieve):
        collection = read_descriptions(args.retrieve)
    else:
        collection = describe_cases(read_cohort(args.retrieve, args, "train" if args.split else None, draw=False))
    notes = [write_note(case) for case in cases]
    return Retriever(collection).retrieve(notes, args.passages, [case.id for case in cases])


def add_tissue(commands) -> None:
    parser = commands.add_parser("tissue", help="tissues of microscope tiles (MINT's second task)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="DIR|ID", help="a vision-language model")
    what.add_argument("--ranker-only", action="store_true", help="score the upstream ranking alone, without a model")
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter to put on the model")
    parser.add_argument("--name", help="of the row in tables (default: the model and adapter)")
    add_tile_options(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="the first N tiles only")
    parser.add_argument(
        "--teacher", required=True, metavar="DIR|ID", help="the upstream CLIP, to which C, A and CAR refer"
    )
    parser.add_argument(
        "--templates", metavar="FILE", help="descriptions of a tissue, one a line, with {} for its name"
    )
    parser.add_argument(
        "--top-k", type=int, help="tissues to ask for, and the upstream's best (default 5, or half of few)"
    )
    parser.add_argument("--bottom-q", type=int, help="length of the upstream's worst list (default the same)")
    add_decoding_options(parser, temperature=0.7, top_p=0.6, top_k=10, max_new_tokens=100, batch_size=32)
    add_image_options(parser)
    add_folder_options(parser, "tissue-MODEL-ADAPTER-DECODE")
    parser.set_defaults(run=run_tissue)


def run_tissue(args: argparse.Namespace) -> None:
    """Decodes, scores, prints and saves; the upstream ranking stands in the table as a row of its own."""
    if args.adapter and not args.model:
        raise InputError("--adapter goes with --model")
    for flag in ("max_pixels", "resume"):
        if getattr(args, flag) and not args.model:
            raise InputError(f"--{flag.replace('_', '-')} goes with --model")
    settle_decoding(args)
    model = ["upstream", args.teacher] if args.ranker_only else [args.model, args.adapter, args.decode]
    folder = EvaluationFolder(args, "tissue", *model)
    check_paths(args)
    tiles, tissues = read_tile_options(args)
    tiles = take_first(tiles, args.limit)
    templates = read_lines(args.templates) if args.templates else TEMPLATES
    ranker = load_zero_shot(args.teacher, tissues, templates, choose_device(args.device, args.dtype)[0])
    top_k, bottom_q = list_lengths(tissues, args.top_k, args.bottom_q)
    upstream = tissue.rank_tissues(tiles, ranker, top_k, bottom_q)
    upstream_name = f"upstream ({ranker.name})"
    if args.ranker_only:
        name, lists = args.name or upstream_name, upstream.top
        answers = [format_list(names, HEADER) for names in lists]
    else:
        name = args.name or " + ".join(filter(None, (args.model, args.adapter)))
        prompts = [tissue_messages(tissues, top_k), [str(tile.image) for tile in tiles]]
        with folder.answers([tile.id for tile in tiles], prompts) as kept:
            answers = kept.complete(
                lambda **state: tissue.list_tissues(
                    *load_vision_model(args), tiles, tissues, top_k, **sampling(args), **state
                )[0]
            )
        lists = [parse_list(answer, HEADER) for answer in answers]
    scores, row = tissue.score_lists(tiles, lists, tissues, upstream)
    rows = {upstream_name: tissue.score_lists(tiles, upstream.top, tissues, upstream)[1], name: row}
    settings = {key: value for key, value in vars(args).items() if key != "run"}
    save_tissues(folder.path, rows, tiles, answers, lists, scores, tissues, upstream, settings)
    print(format_table(rows, tissue.COLUMNS))
    shown = ("top_1", "top_5", "macro_f1", "car")
    folder.finish(f"{len(tiles)} tiles, {_list_summary(rows[name], tissue.COLUMNS, shown)}")


def add_compare(commands) -> None:
    parser = commands.add_parser("compare", help="saved evaluations of the same cases, in tables and a page")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders of evaluate.py; NAME=RUN,RUN for seeds of one system"
    )
    parser.add_argument("--baseline", metavar="NAME", help="system that differences refer to (default: the first)")
    parser.add_argument("--case-pages", type=int, default=60, help="cases shown one by one (default 60)")
    parser.add_argument("--out", default="runs/comparison", metavar="DIR", help="default runs/comparison")
    parser.set_defaults(run=run_compare)


def run_compare(args: argparse.Namespace) -> None:
    """Writes comparison.md, .csv, .json and .html, and prints the first."""
    check_paths(args)
    print(save_comparison(args.runs, Path(args.out), args.baseline, args.case_pages))
    print(f"saved in {args.out}: comparison.md, .csv, .json and .html")


def main(argv: Sequence[str] | None = None) -> int:
    commands = [add_disease, add_tissue, add_vqa, add_report, add_sensitivity, add_attention, add_inspect, add_compare]
    return run_command(__doc__.splitlines()[0], commands, argv)


if __name__ == "__main__":
    sys.exit(main())

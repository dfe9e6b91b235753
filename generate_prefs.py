"""Make preference files from teachers, from a model's own answers, or from published pairs.

python generate_prefs.py mml --cases PATH --ranker naive-bayes --out prefs.jsonl
python generate_prefs.py mml --cases PATH --fit TEACHER --folds 5 --out prefs.jsonl
python generate_prefs.py mml --cases PATH --teacher TEACHER --out prefs.jsonl
python generate_prefs.py clip --cases PATH --teacher vinid/plip --out prefs.jsonl
python generate_prefs.py questions --lesions TABLE --out DIR
python generate_prefs.py questions --vqa FILE --images DIR --out DIR
python generate_prefs.py edit --questions FILE.jsonl --model DIR --out prefs.jsonl
python generate_prefs.py mmedpo --pairs FILE.json --images DIR --out prefs.jsonl
python generate_prefs.py corrupt --data prefs.jsonl --out corrupted.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mint.cli import choose_device, run_command
from mint.data.cases import Case
from mint.data.preferences import Preference, read_preferences, write_jsonl
from mint.data.questions import read_mmedpo, read_questions
from mint.data.record_images import find_images
from mint.data.views import draw_views
from mint.data.vqa_files import SPLITS
from mint.errors import InputError
from mint.files import check_paths, check_unused, read_lines, write_aside
from mint.prefs.corrupt import MODES, CorruptReport, check_places, contact_sheet, corrupt_records
from mint.prefs.edit_command import add_edit
from mint.prefs.lesion_questions import write_lesion_questions
from mint.prefs.pairs import ANSWERS, PairReport, PairSettings, make_pairs
from mint.prefs.question_files import FILES, ask_again
from mint.prefs.saliency import ClipSaliency
from mint.prefs.tissue_pairs import make_tissue_pairs
from mint.progress import Progress
from mint.synthetic.faces import fit_faces
from mint.tasks.cohorts import add_cohort_options, read_cohort
from mint.tasks.tiles import add_tile_options, read_tile_options
from mint.teachers import clip_training
from mint.teachers.clip_teacher import TEMPLATES, load_zero_shot
from mint.teachers.clip_training import ClipSettings, fit_clip
from mint.teachers.naive_bayes import NaiveBayesRanker
from mint.teachers.ranking import Ranker
from mint.teachers.vilt_teacher import load_teachers
from mint.teachers.vilt_training import FusionSettings, check_folder, count, fit_folds, fit_teacher


def add_mml(commands) -> None:
    parser = commands.add_parser("mml", help="rank the diseases of cases: the top is chosen, the bottom rejected")
    add_cohort_options(parser)
    parser.add_argument("--out", metavar="FILE.jsonl", help="the pairs; without it, --fit only trains a teacher")

    upstream = parser.add_argument_group("upstream").add_mutually_exclusive_group()
    upstream.add_argument(
        "--ranker", choices=("naive-bayes",), help="a statistical ranking of the findings (the default)"
    )
    upstream.add_argument("--fit", metavar="DIR", help="train a multimodal teacher, save it there, and rank with it")
    upstream.add_argument(
        "--teacher", nargs="+", metavar="DIR", help="rank with a saved teacher or another ViLT; several: their mean"
    )
    parser.add_argument("--fit-cases", metavar="PATH", help="cases to fit the ranking on (default: --cases themselves)")
    parser.add_argument(
        "--folds",
        type=int,
        default=0,
        metavar="N",
        help="--fit: cross-fit, so that no case is ranked by what has seen it",
    )
    parser.add_argument(
        "--base", metavar="DIR|ID", help="--fit: a ViLT to start from (default: a small one from scratch)"
    )
    parser.add_argument(
        "--faces",
        type=int,
        default=0,
        metavar="N",
        help="--fit from scratch: train on N drawn faces first (at least 100)",
    )
    parser.add_argument("--teacher-epochs", type=int, help="--fit: epochs at most (default 10; from scratch 25)")
    parser.add_argument("--teacher-lr", type=float, help="--fit: learning rate (default 5e-5; from scratch 3e-3)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")

    defaults = PairSettings()
    parser.add_argument("--top-k", type=int, default=defaults.top_k, help="diseases of the chosen list (default 10)")
    parser.add_argument("--bottom-q", type=int, default=defaults.bottom_q, help="of the rejected list (default 15)")
    parser.add_argument(
        "--label-first", action="store_true", help="move the true disease to the front of the chosen list"
    )
    parser.add_argument(
        "--variants", type=int, default=1, help="notes per case, all but the first shuffled and thinned"
    )
    parser.add_argument("--drop-terms", type=float, default=defaults.drop_terms, help="mean share of findings left out")
    parser.add_argument(
        "--rejected-samples", type=int, default=1, help="records per note, each with another rejected list"
    )
    parser.add_argument(
        "--answer", choices=ANSWERS, default="ranking", help="disease: chosen names the true disease alone"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run_mml)


def run_mml(args: argparse.Namespace) -> None:
    """Reads, fits, ranks and writes; prints the counts and how the true diseases rank, and saves a report."""
    if not args.out and not args.fit:
        raise InputError("nothing to do: give --out for pairs, or --fit for a teacher")
    if args.folds and not args.fit:
        raise InputError("--folds goes with --fit")
    if args.faces and (not args.fit or args.base):
        raise InputError("--faces goes with --fit, and not with --base")
    if args.folds and args.fit_cases:
        raise InputError("--folds cross-fits --cases themselves: it does not go with --fit-cases")
    check_paths(args)
    if args.out:
        check_unused(args.out)
    if args.fit:
        check_folder(args.fit)
    cases = read_cohort(args.cases, args)
    fit_cases = read_cohort(args.fit_cases, args) if args.fit_cases else cases
    ranker = make_ranker(args, fit_cases)
    if args.fit:
        print(f"{args.fit}: teacher of {len(ranker.diseases)} diseases saved; rank with it by --teacher {args.fit}")
    if not args.out:
        return
    settings = PairSettings(
        args.top_k,
        args.bottom_q,
        args.label_first,
        args.variants,
        args.drop_terms,
        args.rejected_samples,
        args.answer,
        args.seed,
    )
    report = PairReport()
    records = make_pairs(cases, ranker, settings, report, held_out=bool(args.fit_cases))
    total = len(cases) * args.variants * args.rejected_samples
    write_jsonl(args.out, Progress(records, total=total, desc="ranking", unit="pair"))
    print(f"{args.out}: {report}")
    save_report(Path(f"{args.out}.report.json"), args, count(cases), report)


def make_ranker(args: argparse.Namespace, cases: Sequence[Case]) -> Ranker:
    """The ranker that the flags name, fitted on ``cases`` or loaded."""
    device, _ = choose_device(args.device, "auto")
    if args.teacher:
        return load_teachers(args.teacher, device)
    if not args.fit:
        return NaiveBayesRanker(cases)
    counts = count(cases)
    print(", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items()))
    changes = {"epochs": args.teacher_epochs, "lr": args.teacher_lr, "seed": args.seed}
    changes = {name: value for name, value in changes.items() if value is not None}
    settings = FusionSettings(**changes) if args.base else FusionSettings.from_scratch(**changes)
    with tempfile.TemporaryDirectory() as place:
        base = args.base
        if args.faces:
            base = f"{place}/faces"
            fit_faces(cases, base, args.faces, seed=args.seed, device=device)
        if args.folds:
            return fit_folds(cases, args.fit, args.folds, settings, base=base, device=device)
        return fit_teacher(cases, args.fit, settings, base=base, device=device)


def add_clip(commands) -> None:
    parser = commands.add_parser(
        "clip", help="rank the tissues of tiles by a CLIP: the top is chosen, the bottom rejected"
    )
    add_tile_options(parser)
    upstream = parser.add_mutually_exclusive_group(required=True)
    upstream.add_argument("--teacher", metavar="DIR|ID", help="rank with a CLIP, as vinid/plip")
    upstream.add_argument(
        "--fit", metavar="DIR", help="train a small CLIP on the tiles, save it there, and rank with it"
    )
    parser.add_argument("--fit-cases", metavar="PATH", help="tiles to train it on (default: --cases themselves)")
    parser.add_argument("--teacher-epochs", type=int, default=ClipSettings.epochs, help="of --fit (default 15)")
    parser.add_argument("--seed", type=int, default=0, help="of --fit and --views")
    parser.add_argument(
        "--views", type=int, default=1, help="pairs of every tile: itself, then turned parts of it (default 1)"
    )
    parser.add_argument(
        "--templates", metavar="FILE", help="descriptions of a tissue, one a line, with {} for its name"
    )
    parser.add_argument("--out", required=True, metavar="FILE.jsonl")
    parser.add_argument("--top-k", type=int, help="tissues of the chosen list (default 5, or half of fewer than ten)")
    parser.add_argument("--bottom-q", type=int, help="of the rejected list (default the same)")
    parser.add_argument(
        "--label-first", action="store_true", help="move the true tissue to the front of the chosen list"
    )
    parser.add_argument(
        "--answer", choices=ANSWERS, default="ranking", help="disease: chosen names the true tissue alone"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.set_defaults(run=run_clip)


def run_clip(args: argparse.Namespace) -> None:
    """Reads the tiles, ranks their tissues, and writes the pairs with a report beside them."""
    check_paths(args)
    check_unused(args.out)
    if not args.teacher:
        clip_training.check_folder(args.fit)
    tiles, tissues = read_tile_options(args)
    templates = read_lines(args.templates) if args.templates else TEMPLATES
    device, _ = choose_device(args.device, "auto")
    if args.fit:
        settings = ClipSettings(epochs=args.teacher_epochs, seed=args.seed)
        shown = read_tile_options(args, args.fit_cases)[0] if args.fit_cases else tiles
        ranker = fit_clip(shown, args.fit, settings, tissues, templates, device)
    else:
        ranker = load_zero_shot(args.teacher, tissues, templates, device)
    report, out = PairReport(what="tissue"), Path(args.out)
    tiles = draw_views(tiles, args.views, out.with_name(f"{out.stem}.views"), args.seed)
    records = make_tissue_pairs(
        tiles, ranker, out.parent, report, args.top_k, args.bottom_q, args.label_first, args.answer
    )
    write_jsonl(out, Progress(records, total=len(tiles), desc="ranking", unit="tile"))
    print(f"{out}: {report}")
    say_if_outside([tile.image for tile in tiles], out)
    save_report(Path(f"{out}.report.json"), args, {"tiles": len(tiles), "tissues": list(tissues)}, report)


def add_questions(commands) -> None:
    parser = commands.add_parser(
        "questions", help="questions with answers and truths, from labels and masks or a VQA set"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--lesions", metavar="TABLE", help="a .csv or .tsv of image, mask and label")
    what.add_argument(
        "--vqa", metavar="FILE", help="of VQA-RAD, SLAKE, PathVQA or IU-Xray: the questions that are answered"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where the files are written (default: the folder of what is read)"
    )
    parser.add_argument(
        "--views", type=int, default=1, help="of every image but the unseen: parts of it, mirrored (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split of the images, and the views")
    parser.add_argument("--images", metavar="DIR", help="of --vqa: where the images lie (default: beside the file)")
    parser.add_argument("--language", default="en", help="of --vqa with SLAKE (default en)")
    parser.add_argument("--split", default="train", choices=SPLITS, help="of --vqa with IU-Xray (default train)")
    parser.set_defaults(run=run_questions)


def run_questions(args: argparse.Namespace) -> None:
    """Writes lessons, questions, test questions and contrasts; of a VQA set the questions."""
    check_paths(args)
    folder = Path(args.out or Path(args.lesions or args.vqa).parent)
    check_unused(*(folder / name for name in (FILES if args.lesions else ["questions.jsonl"])))
    if args.lesions:
        counts = write_lesion_questions(args.lesions, folder, args.seed, args.views)
    else:
        if args.views != 1:
            raise InputError("--views is of --lesions: an answer of a VQA set may not hold for a part of its image")
        questions, report = read_questions(args.vqa, args.images, args.language, args.split)
        print(f"{args.vqa}: {report}")
        counts = {"questions.jsonl": write_jsonl(folder / "questions.jsonl", ask_again(questions, folder))}
    print(f"{folder}: " + ", ".join(f"{count} in {name}" for name, count in counts.items()))


def add_mmedpo(commands) -> None:
    parser = commands.add_parser("mmedpo", help="the pairs of MMedPO's files in this project's form")
    parser.add_argument("--pairs", required=True, metavar="FILE.json")
    parser.add_argument("--images", required=True, metavar="DIR")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl")
    parser.set_defaults(run=run_mmedpo)


def run_mmedpo(args: argparse.Namespace) -> None:
    """Reads the pairs, checks their images, and writes them."""
    check_paths(args)
    check_unused(args.out)
    rows, out = read_mmedpo(args.pairs, args.images), Path(args.out)
    images = [Path(name) for row in rows for name in row["images"]]
    folder = out.resolve().parent
    for row in rows:
        near = [Path(name).is_relative_to(folder) for name in row["images"]]
        row["images"] = [os.path.relpath(n, folder) if here else n for n, here in zip(row["images"], near, strict=True)]
    write_jsonl(out, rows)
    print(f"{out}: {len(rows)} pairs on {len(set(images))} images")
    say_if_outside(images, out)


def say_if_outside(images: Sequence[Path], out: Path) -> None:
    if not all(image.resolve().is_relative_to(out.parent.resolve()) for image in images):
        print("some images lie outside the folder of the pairs: train.py needs --images-anywhere for them")


def add_corrupt(commands) -> None:
    parser = commands.add_parser(
        "corrupt", help="beside the images of pairs, the same with the evidence made unreadable"
    )
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="pairs with images; mask, boxes or polygons tell where"
    )
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="the pairs with corrupted_images")
    parser.add_argument(
        "--mode", choices=MODES, default="noise", help="inside the mask (default noise; without one: global)"
    )
    parser.add_argument(
        "--clip", metavar="DIR|ID", help="where nothing tells the place: where this CLIP finds the phrase"
    )
    parser.add_argument("--placed-only", action="store_true", help="no corrupted image where nothing tells the place")
    parser.add_argument(
        "--images-anywhere", action="store_true", help="let the records name images outside their folder"
    )
    parser.add_argument("--sheet", type=int, default=20, help="records on the contact sheet (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.set_defaults(run=run_corrupt)


def run_corrupt(args: argparse.Namespace) -> None:
    """Reads the pairs, writes the corrupted images, the pairs that name both, and a contact sheet."""
    check_paths(args)
    file, out = Path(args.data), Path(args.out)
    check_unused(out)
    preferences = find_images(read_preferences(file, require_rejected=False), file, args.images_anywhere)
    if args.clip:
        check_places(preferences, file)  # before the CLIP is loaded
    saliency = ClipSaliency(args.clip, choose_device(args.device, "auto")[0]) if args.clip else None
    pictured = [preference.id for preference in preferences if preference.images]
    shown = (
        {name: [] for name in pictured[:: max(1, len(pictured) // args.sheet)][: args.sheet]} if args.sheet > 0 else {}
    )
    report = CorruptReport()
    changed = corrupt_records(preferences, file, out, args.mode, report, args.seed, saliency, shown, args.placed_only)
    bar = Progress(changed, total=len(preferences), desc="corrupting", unit="record")
    write_jsonl(
        out, (as_record(preference, names, file.resolve().parent, out.resolve().parent) for preference, names in bar)
    )
    if shown:
        contact_sheet(shown, args.mode).save(f"{out}.sheet.png")
    print(f"{out}: {report}")
    say_if_outside([Path(name) for preference in preferences for name in preference.images], out)


def as_record(preference: Preference, corrupted: list[str], source: Path, folder: Path) -> dict:
    """A record of the file in ``source`` as it is written in ``folder``, its files named from there."""

    def name(path: Path) -> str:
        return os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)

    record = {
        "id": preference.id,
        "prompt": preference.prompt,
        "images": [name(Path(image)) for image in preference.images],
    }
    record |= {"corrupted_images": corrupted, "chosen": preference.chosen.tagged}
    record |= {"rejected": preference.rejected.tagged} if preference.rejected else {}
    record |= preference.extra
    if isinstance(record.get("mask"), str):
        record["mask"] = name((source / record["mask"]).resolve())
    return {key: value for key, value in record.items() if value not in (None, [])}


def save_report(path: Path, args: argparse.Namespace, cohort: dict, report: PairReport) -> None:
    settings = {name: value for name, value in vars(args).items() if name != "run"}
    record = {"settings": settings, "cohort": cohort, "pairs": dataclasses.asdict(report)}
    write_aside(path, json.dumps(record, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    commands = [add_mml, add_clip, add_questions, add_edit, add_mmedpo, add_corrupt]
    return run_command(__doc__.splitlines()[0], commands, argv)


if __name__ == "__main__":
    sys.exit(main())

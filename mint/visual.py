"""The commands on answers about images: ``evaluate.py vqa``, ``report``, ``sensitivity``, ``attention`` and ``inspect``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from mint.command import choose_device
from mint.data.chat import load_tokenizer
from mint.data.pair_images import ImageReader, find_images
from mint.data.preferences import read_preferences
from mint.data.spans import mark_changes
from mint.data.vqa import read_questions
from mint.data.vqa_files import SPLITS
from mint.decoding import add_decoding_options, add_image_options, add_loading_options, load_with_eyes, sampling
from mint.errors import InputError
from mint.evaluation import inspection, looking, reports, sensitivity, vqa
from mint.files import write_aside
from mint.image_features import processor_of
from mint.models import load_language_model
from mint.models.lora import load_adapter
from mint.prefs.corrupt import INSIDE
from mint.prefs.instructed_editor import ChatEndpoint


def _add_policy(parser: argparse.ArgumentParser, what: str = "a vision-language model") -> None:
    """The flags that tell which model is scored."""
    parser.add_argument("--model", required=True, metavar="DIR|ID", help=what)
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter to put on the model")
    parser.add_argument("--name", help="of the row in tables (default: the model and adapter)")
    add_image_options(parser)


def _row(args: argparse.Namespace) -> tuple[str, dict]:
    """(the name of the row, the settings as they are saved)."""
    name = args.name or " + ".join(filter(None, (args.model, args.adapter)))
    return name, {key: value for key, value in vars(args).items() if key != "run"}


def add_vqa(commands) -> None:
    parser = commands.add_parser("vqa", help="answers to questions about medical images")
    _add_policy(parser)
    parser.add_argument("--questions", required=True, metavar="FILE", help="of VQA-RAD, SLAKE or PathVQA, or JSON Lines")
    parser.add_argument("--images", metavar="DIR", help="where the images lie (default: beside the questions)")
    parser.add_argument("--language", default="en", help="of SLAKE's questions (default en)")
    parser.add_argument("--instruction", default="", help="a line below every question")
    add_decoding_options(parser, temperature=0.7, top_p=0.6, top_k=10, max_new_tokens=64, batch_size=16)
    parser.add_argument("--judge", metavar="MODEL", help="a chat model that says whether answers agree with the references")
    parser.add_argument("--url", help="of --judge: an OpenAI-compatible address, as https://api.openai.com/v1")
    parser.add_argument("--key-name", default="OPENAI_API_KEY", help="of --judge: the variable that holds the key")
    parser.add_argument("--per-minute", type=float, default=60, help="of --judge: requests a minute (default 60)")
    parser.add_argument("--out", default="runs/vqa", metavar="DIR", help="default runs/vqa")
    parser.set_defaults(run=run_vqa)


def run_vqa(args: argparse.Namespace) -> None:
    """Decodes, scores, prints and saves."""
    questions, report = read_questions(args.questions, args.images, args.language)
    print(f"{args.questions}: {report}")
    vqa.check_truths(questions)
    if args.judge and not args.url:
        raise InputError("--judge needs --url")
    replies = Path(args.out) / "replies"
    judge = ChatEndpoint(args.url, args.judge, replies, args.per_minute, args.key_name) if args.judge else None
    model, tokenizer, reader = load_with_eyes(args)
    name, settings = _row(args)
    answers = vqa.answer_questions(model, tokenizer, reader, questions, args.instruction, **sampling(args))
    scores = [vqa.score_answer(answer, question) for answer, question in zip(answers, questions, strict=True)]
    if judge:
        verdicts = vqa.judge_answers(questions, answers, judge)
        scores = [dataclasses.replace(score, judged=verdict) for score, verdict in zip(scores, verdicts, strict=True)]
    means = vqa.summarize(scores, questions)
    vqa.save_answers(Path(args.out), name, questions, answers, scores, means, settings)
    print(vqa.format_means(name, means, vqa.yes_no_scores(answers, questions)))
    print(f"{len(questions)} questions; saved in {args.out}")


def add_report(commands) -> None:
    parser = commands.add_parser("report", help="written reports: BLEU, ROUGE-L, METEOR, and the findings they state")
    _add_policy(parser)
    parser.add_argument("--reports", required=True, metavar="FILE", help="IU-Xray's annotation.json, or JSON Lines")
    parser.add_argument("--images", metavar="DIR", help="where the images lie (default: beside the reports)")
    parser.add_argument("--split", default="test", choices=SPLITS, help="of annotation.json (default test)")
    parser.add_argument("--findings", metavar="FILE.tsv", help="a finding a line, its names by tabs (default: of the chest)")
    parser.add_argument("--instruction", default="", help="a line below every request")
    add_decoding_options(parser, temperature=0.7, top_p=0.6, top_k=10, max_new_tokens=256, batch_size=16)
    parser.add_argument("--out", default="runs/report", metavar="DIR", help="default runs/report")
    parser.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> None:
    """Decodes, scores, prints and saves."""
    findings = reports.read_findings(args.findings) if args.findings else reports.read_findings()
    questions, read = read_questions(args.reports, args.images, split=args.split)
    print(f"{args.reports}: {read}")
    model, tokenizer, reader = load_with_eyes(args)
    name, settings = _row(args)
    told = vqa.answer_questions(model, tokenizer, reader, questions, args.instruction, **sampling(args))
    scores = [reports.score_report(text, question.answer, findings) for text, question in zip(told, questions, strict=True)]
    means = reports.summarize(scores)
    reports.save_reports(Path(args.out), name, questions, told, scores, means, findings, settings)
    print(reports.format_means(name, means))
    print(f"{len(questions)} reports; saved in {args.out}")


def add_sensitivity(commands) -> None:
    parser = commands.add_parser("sensitivity", help="whether answers rest on the evidence: corrupted there, and elsewhere")
    _add_policy(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="pairs with images, and mask, boxes or polygons")
    parser.add_argument("--mode", choices=INSIDE, default="noise", help="what is done inside the mask (default noise)")
    parser.add_argument("--images-anywhere", action="store_true", help="let the records name images outside their folder")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs at a time (default 8)")
    add_loading_options(parser)
    parser.add_argument("--out", default="runs/sensitivity", metavar="DIR", help="default runs/sensitivity")
    parser.set_defaults(run=run_sensitivity)


def run_sensitivity(args: argparse.Namespace) -> None:
    """Corrupts, scores both answers under three images, prints and saves."""
    file, out = Path(args.data), Path(args.out)
    preferences = find_images(read_preferences(file), file, args.images_anywhere)
    model, tokenizer, reader = load_with_eyes(args)
    records = sensitivity.corrupt_both(preferences, file, out / "images", args.mode)
    pairs = sensitivity.measure(model, tokenizer, reader, records, batch_size=args.batch_size)
    means = sensitivity.summarize(pairs, {record.id: record.images[0] for record in records["lesion"]})
    name, settings = _row(args)
    sensitivity.save(out, name, pairs, means, settings)
    print(sensitivity.format_means(name, means))
    print(f"{len(pairs)} pairs of {len(preferences)}; saved in {out}")


def add_attention(commands) -> None:
    parser = commands.add_parser("attention", help="where a model looks while it answers, against where the lesion is")
    _add_policy(parser, "whose images stand among its tokens")
    parser.add_argument("--data", required=True, metavar="FILE", help="pairs with images, and mask, boxes or polygons")
    parser.add_argument("--images-anywhere", action="store_true", help="let the records name images outside their folder")
    add_loading_options(parser)
    parser.add_argument("--out", default="runs/attention", metavar="DIR", help="default runs/attention")
    parser.set_defaults(run=run_attention)


def run_attention(args: argparse.Namespace) -> None:
    """Measures, prints and saves."""
    file = Path(args.data)
    preferences = find_images(read_preferences(file), file, args.images_anywhere)
    model, tokenizer, reader = load_with_eyes(args)
    looks = looking.look(model, tokenizer, reader, preferences, file)
    means = looking.summarize(looks, {preference.id: preference.images[0] for preference in preferences if preference.images})
    name, settings = _row(args)
    looking.save(Path(args.out), name, looks, means, settings)
    print(looking.format_means(name, means))
    print(f"{len(looks)} records of {len(preferences)}; saved in {args.out}")


def add_inspect(commands) -> None:
    parser = commands.add_parser("inspect", help="a page on one pair: its answers by token, images, the terms of the loss")
    parser.add_argument("--model", required=True, metavar="DIR|ID")
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter, against which the model alone is the reference")
    parser.add_argument("--data", required=True, metavar="FILE", help="pairs as for train.py")
    parser.add_argument("--row", type=int, default=1, help="which record of the file, from 1 (default 1)")
    for name, value in (("beta", 0.1), ("alpha", 0.01), ("gamma", 0.1), ("lam", 0.5)):
        parser.add_argument(f"--{name}", type=float, default=value, help=f"of the loss (default {value})")
    parser.add_argument("--spans", choices=("tags", "changes"), default="tags", help="as for train.py")
    parser.add_argument("--images-anywhere", action="store_true", help="let the records name images outside their folder")
    add_loading_options(parser)
    add_image_options(parser)
    parser.add_argument("--out", default="pair.html", metavar="FILE.html", help="default pair.html")
    parser.set_defaults(run=run_inspect)


def run_inspect(args: argparse.Namespace) -> None:
    """Computes the pair's numbers and writes the page."""
    preferences = read_preferences(args.data)
    if not 1 <= args.row <= len(preferences):
        raise InputError(f"--row {args.row}: {args.data} has {len(preferences)} records")
    preference = preferences[args.row - 1]
    if args.spans == "changes":
        chosen, rejected = mark_changes(preference.chosen, preference.rejected)
        preference = dataclasses.replace(preference, chosen=chosen, rejected=rejected)
    (preference,) = find_images([preference], args.data, args.images_anywhere, corrupted=True)
    device, dtype = choose_device(args.device, args.dtype)
    model = load_language_model(args.model, dtype=dtype, device=device)
    if args.adapter:
        load_adapter(model, args.adapter)
    tokenizer = load_tokenizer(model.source_dir, chat_date=args.chat_date)
    processor = processor_of(model, args.max_pixels)
    reader = ImageReader(processor) if processor else None
    options = {name: getattr(args, name) for name in ("beta", "alpha", "gamma", "lam")}
    found = inspection.inspect(model, tokenizer, reader, preference, options)
    write_aside(args.out, inspection.page(found))
    print(", ".join(f"{name} {value:.5f}" for name, value in found.terms.items()))
    print(args.out)

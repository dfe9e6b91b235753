"""Commands on answers about images: ``evaluate.py vqa``, ``report``, ``sensitivity``, ``attention``, ``inspect``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mint.cli import choose_device
from mint.data.chat import load_tokenizer
from mint.data.image_features import ImageReader
from mint.data.images import processor_of
from mint.data.preferences import Preference, read_preferences
from mint.data.questions import Question, read_questions
from mint.data.record_images import find_images
from mint.data.spans import mark_changes
from mint.data.vqa_files import SPLITS
from mint.errors import InputError
from mint.evaluation.decoding import (
    add_decoding_options,
    add_image_options,
    add_loading_options,
    load_vision_model,
    sampling,
    settle_decoding,
)
from mint.evaluation.folder import EvaluationFolder, add_folder_options, default_folder, take_first
from mint.evaluation.scores import summary
from mint.files import check_paths, check_unused, make_folder, write_aside
from mint.models import load_language_model
from mint.models.lora import load_adapter
from mint.prefs.corrupt import INSIDE
from mint.prefs.instructed_editor import ChatEndpoint
from mint.tasks import attention_on_lesion, inspect_pair, report_generation, sensitivity, vqa

LOSS_FLAGS = ("beta", "alpha", "gamma", "lam")  # of inspect


def _add_policy(parser: argparse.ArgumentParser, what: str = "a vision-language model") -> None:
    """The model that is scored, and on how many cases."""
    parser.add_argument("--model", required=True, metavar="DIR|ID", help=what)
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter to put on the model")
    parser.add_argument("--name", help="of the row in tables (default: the model and adapter)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N cases only")
    add_image_options(parser)


def _row(args: argparse.Namespace) -> tuple[str, dict]:
    """(the name of the row, the settings as they are saved)."""
    name = args.name or " + ".join(filter(None, (args.model, args.adapter)))
    return name, {key: value for key, value in vars(args).items() if key != "run"}


def add_vqa(commands) -> None:
    parser = commands.add_parser("vqa", help="answers to questions about medical images")
    _add_policy(parser)
    parser.add_argument(
        "--questions", required=True, metavar="FILE", help="of VQA-RAD, SLAKE or PathVQA, or JSON Lines"
    )
    parser.add_argument("--images", metavar="DIR", help="where the images lie (default: beside the questions)")
    parser.add_argument("--language", default="en", help="of SLAKE's questions (default en)")
    parser.add_argument("--instruction", default="", help="a line below every question")
    add_decoding_options(parser, temperature=0.7, top_p=0.6, top_k=10, max_new_tokens=64, batch_size=16)
    parser.add_argument(
        "--judge", metavar="MODEL", help="a chat model that says whether answers agree with the references"
    )
    parser.add_argument("--url", help="of --judge: an OpenAI-compatible address, as https://api.openai.com/v1")
    parser.add_argument("--key-name", default="OPENAI_API_KEY", help="of --judge: the variable that holds the key")
    parser.add_argument("--per-minute", type=float, default=60, help="of --judge: requests a minute (default 60)")
    add_folder_options(parser, "vqa-MODEL-ADAPTER-DECODE")
    parser.set_defaults(run=run_vqa)


def run_vqa(args: argparse.Namespace) -> None:
    """Decodes, scores, prints and saves."""
    if args.judge and not args.url:
        raise InputError("--judge needs --url")
    settle_decoding(args)
    folder = EvaluationFolder(args, "vqa", args.model, args.adapter, args.decode)
    check_paths(args)
    questions, report = read_questions(args.questions, args.images, args.language)
    print(f"{args.questions}: {report}")
    questions = take_first(questions, args.limit)
    vqa.check_truths(questions)
    replies = folder.path / "replies"
    judge = ChatEndpoint(args.url, args.judge, replies, args.per_minute, args.key_name) if args.judge else None
    answers = _decode(args, folder, questions)
    scores = [vqa.score_answer(answer, question) for answer, question in zip(answers, questions, strict=True)]
    if judge:
        verdicts = vqa.judge_answers(questions, answers, judge)
        scores = [dataclasses.replace(score, judged=verdict) for score, verdict in zip(scores, verdicts, strict=True)]
    name, settings = _row(args)
    means = vqa.summarize(scores, questions)
    vqa.save_answers(folder.path, name, questions, answers, scores, means, settings)
    print(vqa.format_means(name, means, vqa.yes_no_scores(answers, questions)))
    folder.finish(f"{len(questions)} questions: {summary(means, vqa.COLUMNS)}")


def _decode(args: argparse.Namespace, folder: EvaluationFolder, questions: Sequence[Question]) -> list[str]:
    """The model's answers to questions about images; those that the folder keeps are not decoded again."""
    prompts = [[vqa.question_messages(question, args.instruction), question.images] for question in questions]
    with folder.answers([question.id for question in questions], prompts) as kept:
        return kept.complete(
            lambda **state: vqa.answer_questions(
                *load_vision_model(args), questions, args.instruction, **sampling(args), **state
            )
        )


def add_report(commands) -> None:
    parser = commands.add_parser("report", help="written reports: BLEU, ROUGE-L, METEOR, and the findings they state")
    _add_policy(parser)
    parser.add_argument("--reports", required=True, metavar="FILE", help="IU-Xray's annotation.json, or JSON Lines")
    parser.add_argument("--images", metavar="DIR", help="where the images lie (default: beside the reports)")
    parser.add_argument("--split", default="test", choices=SPLITS, help="of annotation.json (default test)")
    parser.add_argument(
        "--findings", metavar="FILE.tsv", help="a finding a line, its names by tabs (default: of the chest)"
    )
    parser.add_argument("--instruction", default="", help="a line below every request")
    add_decoding_options(parser, temperature=0.7, top_p=0.6, top_k=10, max_new_tokens=256, batch_size=16)
    add_folder_options(parser, "report-MODEL-ADAPTER-DECODE")
    parser.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> None:
    """Decodes, scores, prints and saves."""
    settle_decoding(args)
    folder = EvaluationFolder(args, "report", args.model, args.adapter, args.decode)
    check_paths(args)
    findings = report_generation.read_findings(args.findings) if args.findings else report_generation.read_findings()
    questions, read = read_questions(args.reports, args.images, split=args.split)
    print(f"{args.reports}: {read}")
    questions = take_first(questions, args.limit)
    texts = _decode(args, folder, questions)
    scores = [
        report_generation.score_report(text, question.answer, findings)
        for text, question in zip(texts, questions, strict=True)
    ]
    name, settings = _row(args)
    means = report_generation.summarize(scores)
    report_generation.save_reports(folder.path, name, questions, texts, scores, means, findings, settings)
    print(report_generation.format_means(name, means))
    folder.finish(f"{len(questions)} reports: {summary(means, report_generation.COLUMNS)}")


def add_sensitivity(commands) -> None:
    parser = commands.add_parser(
        "sensitivity", help="whether answers rest on the evidence: corrupted there, and elsewhere"
    )
    _add_policy(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="pairs with images, and mask, boxes or polygons")
    parser.add_argument("--mode", choices=INSIDE, default="noise", help="what is done inside the mask (default noise)")
    parser.add_argument(
        "--images-anywhere", action="store_true", help="let the records name images outside their folder"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="pairs at a time (default 8)")
    add_loading_options(parser)
    add_folder_options(parser, "sensitivity-MODEL-ADAPTER-MODE")
    parser.set_defaults(run=run_sensitivity)


def run_sensitivity(args: argparse.Namespace) -> None:
    """Corrupts, scores both answers under three images, prints and saves."""
    folder = EvaluationFolder(args, "sensitivity", args.model, args.adapter, args.mode)
    check_paths(args)
    file = Path(args.data)
    preferences = find_images(take_first(read_preferences(file), args.limit), file, args.images_anywhere)
    loaded = load_vision_model(args)
    records = sensitivity.corrupt_both(preferences, file, folder.path / "images", args.mode)
    measured = records["lesion"]
    places = [{"place": place} for place in sensitivity.PLACES]
    with folder.answers([record.id for record in measured], _contents(measured), "scores", places) as kept:
        pairs = sensitivity.measure(*loaded, records, batch_size=args.batch_size, known=kept.known, save=kept.save)
    name, settings = _row(args)
    images = {record.id: record.images[0] for record in measured}
    means = sensitivity.summarize(pairs, images)
    sensitivity.save(folder.path, name, pairs, means, settings, images)
    print(sensitivity.format_means(name, means))
    folder.finish(f"{len(pairs)} pairs of {len(preferences)}: {summary(means, sensitivity.COLUMNS)}")


def _contents(preferences: Sequence[Preference]) -> list:
    """What tells records from others with the same ids."""
    answers = [[answer and answer.tagged for answer in (one.chosen, one.rejected)] for one in preferences]
    return [[one.prompt, *sides, one.images, one.extra] for one, sides in zip(preferences, answers, strict=True)]


def add_attention(commands) -> None:
    parser = commands.add_parser("attention", help="where a model looks while it answers, against where the lesion is")
    _add_policy(parser, "whose images stand among its tokens")
    parser.add_argument("--data", required=True, metavar="FILE", help="pairs with images, and mask, boxes or polygons")
    parser.add_argument(
        "--images-anywhere", action="store_true", help="let the records name images outside their folder"
    )
    add_loading_options(parser)
    add_folder_options(parser, "attention-MODEL-ADAPTER")
    parser.set_defaults(run=run_attention)


def run_attention(args: argparse.Namespace) -> None:
    """Measures, prints and saves."""
    folder = EvaluationFolder(args, "attention", args.model, args.adapter)
    check_paths(args)
    file = Path(args.data)
    preferences = find_images(take_first(read_preferences(file), args.limit), file, args.images_anywhere)
    loaded = load_vision_model(args)
    with folder.answers([record.id for record in preferences], _contents(preferences), "scores") as kept:
        looks = attention_on_lesion.look(*loaded, preferences, file, known=kept.known, save=kept.save)
    name, settings = _row(args)
    images = {record.id: record.images[0] for record in preferences if record.images}
    means = attention_on_lesion.summarize(looks, images)
    attention_on_lesion.save(folder.path, name, looks, means, settings, images)
    print(attention_on_lesion.format_means(name, means))
    folder.finish(f"{len(looks)} records of {len(preferences)}: {summary(means, attention_on_lesion.COLUMNS)}")


def add_inspect(commands) -> None:
    parser = commands.add_parser(
        "inspect", help="a page on one pair: its answers by token, images, the terms of the loss"
    )
    parser.add_argument("--model", required=True, metavar="DIR|ID")
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter, against which the model alone is the reference")
    parser.add_argument("--data", required=True, metavar="FILE", help="pairs as for train.py")
    parser.add_argument("--row", type=int, default=1, help="which record of the file, from 1 (default 1)")
    for name in LOSS_FLAGS:
        parser.add_argument(f"--{name}", type=float, help="of the loss (default: of the adapter's run, or fire's)")
    parser.add_argument(
        "--spans", choices=("tags", "changes"), help="as for train.py (default: as in the run, or tags)"
    )
    parser.add_argument(
        "--images-anywhere", action="store_true", help="let the records name images outside their folder"
    )
    add_loading_options(parser)
    add_image_options(parser)
    parser.add_argument("--out", metavar="FILE.html", help="default runs/eval/inspect-MODEL-ADAPTER-DATA-ROW.html")
    parser.set_defaults(run=run_inspect)


def run_inspect(args: argparse.Namespace) -> None:
    """Computes the pair's numbers and writes the page."""
    check_paths(args)
    out = Path(args.out or f"{default_folder('inspect', args.model, args.adapter, args.data, str(args.row))}.html")
    check_unused(out)
    preferences = read_preferences(args.data)
    if not 1 <= args.row <= len(preferences):
        raise InputError(f"--row {args.row}: {args.data} has {len(preferences)} records")
    preference = preferences[args.row - 1]
    given = {name: getattr(args, name) for name in LOSS_FLAGS if getattr(args, name) is not None}
    loss, spans = inspect_pair.loss_of_run(args.adapter, given)
    if (args.spans or spans) == "changes":
        chosen, rejected = mark_changes(preference.chosen.text, preference.rejected.text)
        preference = dataclasses.replace(preference, chosen=chosen, rejected=rejected)
    (preference,) = find_images([preference], args.data, args.images_anywhere, corrupted=True)
    device, dtype = choose_device(args.device, args.dtype)
    model = load_language_model(args.model, dtype=dtype, device=device)
    if args.adapter:
        load_adapter(model, args.adapter)
    tokenizer = load_tokenizer(model.source_dir, chat_date=args.chat_date)
    processor = processor_of(model, args.max_pixels)
    reader = ImageReader(processor) if processor else None
    found = inspect_pair.inspect(model, tokenizer, reader, preference, loss, Path(args.data).resolve().parent)
    make_folder(out.parent)
    write_aside(out, inspect_pair.page(found))
    print(", ".join(f"{name} {value:.5f}" for name, value in found.terms.items()))
    print(f"saved in {out}")

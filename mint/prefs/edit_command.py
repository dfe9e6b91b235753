"""``generate_prefs.py edit``: its flags, and the way from questions to on-policy pairs."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mint.data.preferences import Preference, write_jsonl
from mint.data.record_images import ImageSlots, encode_with_images, find_images
from mint.data.spans import Answer
from mint.errors import InputError
from mint.evaluation.answers import Answers, stamp
from mint.evaluation.decoding import add_image_options, add_loading_options, load_merged, load_vision_model
from mint.files import check_paths, check_unused, write_aside
from mint.models.generate import generate
from mint.prefs.edit_pairs import Editor, EditReport, QuestionRecord, edit_pairs, read_asked, rules_editor
from mint.prefs.instructed_editor import ChatEndpoint, instructed_editor

EDITORS = ("rules", "model", "chat")


def add_edit(commands) -> None:
    parser = commands.add_parser("edit", help="a model's own answers beside their minimal edits: on-policy pairs")
    parser.add_argument("--questions", required=True, metavar="FILE.jsonl", help="images, question and truth of each")
    parser.add_argument("--model", required=True, metavar="DIR|ID", help="the policy, a vision-language model")
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter to put on it")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl")
    parser.add_argument("--editor", choices=EDITORS, default="rules")
    parser.add_argument("--editor-model", metavar="DIR|ID", help="of --editor model and chat: an instruct model")
    parser.add_argument("--url", help="of --editor chat: an OpenAI-compatible address, as https://api.openai.com/v1")
    parser.add_argument(
        "--key-name", default="OPENAI_API_KEY", help="of --editor chat: the variable that holds the key"
    )
    parser.add_argument("--per-minute", type=float, default=60, help="of --editor chat: requests a minute (default 60)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="of the policy's answers (default 0: the likeliest)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    add_loading_options(parser)
    add_image_options(parser)
    parser.set_defaults(run=run_edit)


def run_edit(args: argparse.Namespace) -> None:
    """Answers, edits, verifies; writes the pairs, the answers (reused by the next run), the rejects and a report."""
    source, out = Path(args.questions), Path(args.out)
    check_paths(args)
    check_unused(out)
    asked = read_asked(source)
    places = find_pictures(asked, source)
    editor, name = choose_editor(args)
    settings = [args.temperature, args.max_new_tokens, args.seed, args.chat_date, args.max_pixels, args.dtype]
    key = json.dumps([stamp(args.model), stamp(args.adapter), *settings])
    images = {one.id: [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in places[one.id]] for one in asked}
    identities = [{"id": one.id, "question": one.question, "images": images[one.id], "key": key} for one in asked]
    with Answers(f"{out}.answers.jsonl", identities) as kept:
        answers = kept.complete(lambda **state: answer_questions(args, asked, places, **state))
    report, rejects = EditReport(), []
    folder = out.resolve().parent
    records = edit_pairs(asked, answers, editor, name, report, rejects)
    count = write_jsonl(out, (_from_here(record, source.resolve().parent, folder) for record in records))
    write_jsonl(f"{out}.rejected.jsonl", rejects)
    flags = {name: value for name, value in vars(args).items() if name != "run"}
    record = {"settings": flags, "outcomes": report.outcomes, "words": report.words, "kept_words": report.kept_words}
    write_aside(f"{out}.report.json", json.dumps(record, indent=2) + "\n")
    print(f"{out}: {report}")
    if not count:
        out.unlink()
        raise InputError(f"no answer gave a pair; {out}.rejected.jsonl says why")


def find_pictures(asked: Sequence[QuestionRecord], source: Path) -> dict[str, tuple[str, ...]]:
    """The whole paths of every record's images, each opened once. Raises FileProblems naming every bad one."""
    records = [Preference(one.id, one.line, one.question, Answer(""), None, one.images) for one in asked]
    return {record.id: record.images for record in find_images(records, source)}


def choose_editor(args: argparse.Namespace) -> tuple[Editor, str]:
    """(the editor, its name in the records). Raises InputError for flags that do not fit it."""
    if args.editor == "rules":
        return rules_editor, "rules"
    if not args.editor_model:
        raise InputError(f"--editor {args.editor} needs --editor-model")
    if args.editor == "chat":
        if not args.url:
            raise InputError("--editor chat needs --url")
        endpoint = ChatEndpoint(args.url, args.editor_model, f"{args.out}.replies", args.per_minute, args.key_name)
        return instructed_editor(endpoint), args.editor_model
    model, tokenizer = load_merged(args, args.editor_model)

    def complete(requests: Sequence[list[dict]]):
        yield from generate(
            model, tokenizer, list(requests), max_new_tokens=512, batch_size=args.batch_size, progress=True
        )

    return instructed_editor(complete), args.editor_model


def answer_questions(
    args: argparse.Namespace, asked: Sequence[QuestionRecord], places: dict[str, tuple[str, ...]], **state
) -> list[str]:
    """The policy's answers. places: id -> the paths of its images. state: ``known`` and ``save`` of ``generate``."""
    model, tokenizer, reader = load_vision_model(args)
    slots = ImageSlots(*model.image_slots, reader.processor)
    prompts = [
        encode_with_images(tokenizer, [{"role": "user", "content": one.question}], places[one.id], slots)
        for one in asked
    ]
    return generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        batch_size=args.batch_size,
        images=lambda rows: reader([file for row in rows for file in places[asked[row].id]]),
        progress=True,
        **state,
    )


def _from_here(record: dict, source: Path, folder: Path) -> dict:
    """The record with its files named from the folder that it is written to."""

    def name(file: str) -> str:
        path = (source / file).resolve()
        return os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)

    record = {**record, "images": [name(file) for file in record["images"]]}
    return {**record, "mask": name(record["mask"])} if isinstance(record.get("mask"), str) else record

"""On-policy pairs: a model's own answers beside their minimal edits, with the changed words marked (arXiv 2606.12590).

An editor that knows the truth judges every answer. A correct answer is chosen over its edit into something wrong; a
wrong one is rejected for its edit into the truth. A verifier rejects edits that change nothing or too much, or that
do not have the intended effect.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mint import parallel
from mint.data.preferences import Preference, write_jsonl
from mint.data.record_images import find_images
from mint.data.spans import Answer, mark_changes
from mint.errors import InputError
from mint.evaluation.answers import Answers, stamp
from mint.evaluation.decoding import (
    add_image_options,
    add_loading_options,
    answer_prompts,
    load_adapted,
    load_vision_model,
)
from mint.files import check_paths, check_unused, write_aside
from mint.models.generate import generate
from mint.prefs.chat_endpoint import ChatEndpoint, add_chat_options
from mint.prefs.claims import Truth
from mint.prefs.file_names import move_record
from mint.prefs.instructed_editor import instructed_editor
from mint.prefs.question_files import QuestionRecord, read_asked
from mint.prefs.rules_editor import Edit, contradictions, edit_answer, share_kept

EDITORS = ("rules", "model", "chat")
LEAST_KEPT = 0.5  # share of an answer's words that an edit must keep; of short ones all but SHORT may change
SHORT = 2
CARRIED = ("mask", "boxes", "polygons", "phrase")  # fields that tell where the evidence is


# (question, answer) pairs -> an edit for each, in order
Editor = Callable[[Sequence[tuple[QuestionRecord, str]]], Iterator["Edit | None"]]


@dataclass
class EditReport:
    """What became of the answers. words, kept_words: of those that gave a pair."""

    outcomes: Counter = field(default_factory=Counter)
    words: int = 0
    kept_words: float = 0.0

    def __str__(self) -> str:
        kept = self.outcomes["right"] + self.outcomes["wrong"]
        right, words = 100 * self.outcomes["right"] / max(1, kept), 100 * self.kept_words / max(1, self.words)
        share = f" ({right:.1f} % right as they stood; {words:.1f} % of their words kept)" if kept else ""
        others = (f"; {n} {name}" for name, n in self.outcomes.most_common() if name not in ("right", "wrong"))
        return f"{kept} pairs{share}" + "".join(others)


def rules_editor(pairs: Sequence[tuple[QuestionRecord, str]]) -> Iterator[Edit | None]:
    """The editor that needs no model; see :mod:`mint.prefs.rules_editor`."""
    for asked, answer in pairs:
        yield edit_answer(answer, asked.truth, asked.id)


def verify(edit: Edit, truth: Truth) -> str | None:
    """What is wrong with an edit, None if nothing."""
    if not edit.edited.strip() or edit.edited.split() == edit.answer.split():
        return "change nothing"
    words = len(edit.answer.split())
    if words * (1 - share_kept(edit.answer, edit.edited)) > max(SHORT, (1 - LEAST_KEPT) * words) + 1e-9:
        return "change too much"
    chosen, rejected = (edit.answer, edit.edited) if edit.right else (edit.edited, edit.answer)
    if contradictions(chosen, truth):
        return "still contradict the truth"
    if truth.findings or truth.terms or truth.answer:
        return None if contradictions(rejected, truth) else "agree with the truth on both sides"
    return None


def edit_pairs(
    asked: Sequence[QuestionRecord],
    answers: Sequence[str],
    editor: Editor,
    name: str,
    report: EditReport,
    rejects: list[dict],
) -> Iterator[dict]:
    """Preference records with ``<mask>`` around the changed words, and of each how it came about.

    name: of the editor. ``report`` counts; ``rejects`` takes the answers without a pair, and why.
    """
    pairs = list(zip(asked, answers, strict=True))
    for (question, answer), edit in zip(pairs, editor(pairs), strict=True):
        problem = "are not judged by the editor" if edit is None else verify(edit, question.truth)
        if edit is None or problem:
            report.outcomes[f"answers whose edits {problem}" if edit else f"answers that {problem}"] += 1
            rejects.append({"id": question.id, "answer": answer, "edited": edit and edit.edited, "why": problem})
            continue
        report.outcomes["right" if edit.right else "wrong"] += 1
        stays = share_kept(edit.answer, edit.edited)
        report.words += len(edit.answer.split())
        report.kept_words += stays * len(edit.answer.split())
        sides = (edit.answer, edit.edited) if edit.right else (edit.edited, edit.answer)
        chosen, rejected = mark_changes(*sides)
        how = {"answer": edit.answer, "edited": edit.edited, "editor": name, "right": edit.right}
        yield {
            "id": question.id,
            "prompt": [{"role": "user", "content": question.question}],
            "images": list(question.images),
            "chosen": chosen.tagged,
            "rejected": rejected.tagged,
            **{key: question.raw[key] for key in CARRIED if question.raw.get(key)},
            "edit": how | {"kept": round(stays, 4)},
        }


def add_edit(parser: argparse.ArgumentParser) -> None:
    """The flags of ``generate_prefs.py edit``."""
    add = parser.add_argument
    add("--questions", required=True, metavar="FILE.jsonl", help="images, question and truth of each")
    add("--model", required=True, metavar="DIR|ID", help="the policy, a vision-language model")
    add("--adapter", metavar="DIR", help="PEFT adapter to put on it")
    add("--out", required=True, metavar="FILE.jsonl")
    add("--editor", choices=EDITORS, default="rules")
    add("--editor-model", metavar="DIR|ID", help="of --editor model and chat: an instruct model")
    add_chat_options(parser, "--editor chat")
    add("--temperature", type=float, default=0.0, help="of the policy's answers (default 0: the likeliest)")
    add("--max-new-tokens", type=int, default=128)
    add("--batch-size", type=int, default=16)
    add("--seed", type=int, default=0)
    add_loading_options(parser)
    add_image_options(parser)
    parser.set_defaults(run=parallel.in_several(run_edit))


def run_edit(args: argparse.Namespace) -> None:
    """Answers, edits, verifies; writes the pairs, the answers (reused by the next run), the rejects and a report."""
    source, out = Path(args.questions), Path(args.out)
    check_paths(args)
    parallel.on_main(lambda: check_unused(out))
    asked = read_asked(source)
    files = find_pictures(asked, source)
    editor, name = choose_editor(args)
    settings = [args.temperature, args.max_new_tokens, args.seed, args.chat_date, args.max_pixels, args.dtype]
    key = json.dumps([stamp(args.model), stamp(args.adapter), *settings])
    images = [[hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in some] for some in files]
    identities = [
        {"id": one.id, "question": one.question, "images": digests, "key": key}
        for one, digests in zip(asked, images, strict=True)
    ]
    with Answers(f"{out}.answers.jsonl", identities) as kept:
        answers = kept.complete(lambda **state: answer_questions(args, asked, files, **state))
    if not parallel.is_main():
        return
    report = EditReport()
    rejects: list[dict] = []
    records = edit_pairs(asked, answers, editor, name, report, rejects)
    count = write_jsonl(out, (move_record(record, source.parent, out.parent) for record in records))
    write_jsonl(f"{out}.rejected.jsonl", rejects)
    flags = {name: value for name, value in vars(args).items() if name != "run"}
    record = {"settings": flags, "outcomes": report.outcomes, "words": report.words, "kept_words": report.kept_words}
    write_aside(f"{out}.report.json", json.dumps(record, indent=2) + "\n")
    print(f"{out}: {report}")
    if not count:
        out.unlink()
        raise InputError(f"no answer gave a pair; {out}.rejected.jsonl says why")


def find_pictures(asked: Sequence[QuestionRecord], source: Path) -> list[tuple[str, ...]]:
    """The whole paths of every record's images, each opened once. Raises FileProblems naming every bad one."""
    records = [Preference(one.id, one.line, one.question, Answer(""), None, one.images) for one in asked]
    return [record.images for record in find_images(records, source)]


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
    model, tokenizer = load_adapted(args, args.editor_model)

    def complete(requests: Sequence[list[dict]]):
        yield from generate(
            model, tokenizer, list(requests), max_new_tokens=512, batch_size=args.batch_size, progress=True
        )

    return instructed_editor(complete), args.editor_model


def answer_questions(
    args: argparse.Namespace, asked: Sequence[QuestionRecord], files: Sequence[Sequence[str]], **state
) -> list[str]:
    """The policy's answers. files: the images of each question. state: ``known`` and ``save`` of ``generate``."""
    prompts = [[{"role": "user", "content": one.question}] for one in asked]
    decoding = {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "seed", "batch_size")}
    return answer_prompts(load_vision_model(args), prompts, files, **decoding, **state)

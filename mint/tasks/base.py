"""The interface of a task, and what all tasks share: reading, decoding, scoring, saving and printing.

A task is a subclass of :class:`Task`: one file, and one line of ``mint.tasks.TASKS``. A task outside the package is
named by its file: ``evaluate.py FILE.py:CLASS``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mint import parallel
from mint.data.preferences import image_names, write_jsonl
from mint.errors import InputError
from mint.evaluation.decoding import (
    add_decoding_options,
    add_image_options,
    add_loading_options,
    answer_prompts,
    load,
    load_vision_model,
    sampling,
    settle_decoding,
)
from mint.evaluation.folder import EvaluationFolder, add_folder_options, take_first
from mint.evaluation.metrics import worst_ranks
from mint.evaluation.predictions import read_predictions
from mint.evaluation.scores import Score, estimate, means_table, save_scores, summary
from mint.evaluation.statistics import Estimate
from mint.files import check_paths, check_unused
from mint.progress import Progress
from mint.tasks import load_task

Record = Mapping  # of one case, as the evaluation saved it
KEEP_HELP = "save the texts of the cases with the answers, so that pages can show them (notes, questions, references)"


@dataclass(frozen=True)
class Lists:
    """Of evaluations whose answers are ranked lists of names.

    truth: the field of the true name. length: places shown. same: whether a listed name is another one.
    true: whether a listed name is the truth of a record (default: the same as its name).
    """

    truth: str
    length: int
    same: Callable[[str, str], bool]
    true: Callable[[str, Record], bool] | None = None

    def is_true(self, name: str, record: Record) -> bool:
        """Whether a listed name is the record's truth."""
        return self.true(name, record) if self.true else self.same(name, record[self.truth])

    def place(self, names: Sequence[str], record: Record, scores: Sequence[float] | None = None) -> int:
        """The place of the record's truth among the listed names, from 1; 0 if it is not among those shown.

        scores: of the names; equal ones share the worst of their places.
        """
        places = worst_ranks(scores) if scores else range(1, len(names) + 1)
        found = (place for place, name in zip(places, names, strict=True) if self.is_true(name, record))
        place = next(found, 0)
        return place if place <= self.length else 0


@dataclass(frozen=True)
class Result:
    """The scores of one system. records: of each case, as they are saved; means: score -> its mean and interval."""

    name: str
    examples: Sequence
    answers: Sequence
    records: list[dict]
    means: dict[str, Estimate]


class Task:
    """What a model is asked, and how its answers are read, scored and shown.

    A task defines ``read``, ``messages`` and ``score``, mostly ``parse``, and these attributes; an example is any
    object with an ``id``.

    name: what is evaluated, as comparisons call it. noun: what is counted. field: the attribute of an example that is
    its truth, saved under this name; no other task's records have it. columns: score -> how it is averaged and shown.
    tested: scores of the paired tests (default: all). texts: fields that a comparison shows of a case, with titles.
    private: further fields with texts of a case. Without ``--keep-notes`` neither are saved, except ``field``. answer:
    the field of the answer; None for tasks that measure, and decode nothing. file: where the records are saved.
    vision: the model reads images. decoding: defaults of the decoding flags. lists: of tasks whose answers are lists.
    """

    name: str
    field: str
    columns: Mapping[str, Score]
    noun = "cases"
    tested: tuple[str, ...] = ()
    texts: Mapping[str, str] = {}
    private: tuple[str, ...] = ()
    answer: str | None = "answer"
    file = "predictions.jsonl"
    vision = False
    decoding: Mapping = {"temperature": 0.7, "top_p": 0.6, "top_k": 10, "max_new_tokens": 64, "batch_size": 16}
    lists: Lists | None = None
    held_to: Sequence[str] | None = None  # names that decoding is restricted to
    out_required = True  # whether generate_prefs.py needs --out

    def __init_subclass__(cls) -> None:
        cls.tested = cls.tested or tuple(getattr(cls, "columns", ()))

    def read(self, args: argparse.Namespace) -> list:
        """The examples that the flags name. Raises InputError for files that cannot be used."""
        raise NotImplementedError

    def messages(self, example) -> list[dict]:
        """The prompt of an example, without its images."""
        raise NotImplementedError

    def parse(self, answer: str):
        """An answer in the form that :meth:`score` takes (default: the text)."""
        return answer

    def score(self, parsed, example) -> dict:
        """The scores of an answer by the keys of ``columns``; None for one that the example does not have."""
        raise NotImplementedError

    def images(self, example) -> list[str]:
        """The files of the images of an example."""
        return []

    def record(self, example, folder: Path) -> dict:
        """What is saved of an example beside answer and scores, files named relative to ``folder``."""
        fields = {"id": example.id, self.field: getattr(example, self.field)}
        files = [os.path.relpath(file, folder) for file in self.images(example)]
        return fields | ({"images": files} if files else {})

    def group(self, record: Record) -> str | None:
        """The patient or slide of a record, whose cases are drawn together; None: the case stands alone."""
        return record.get("subject")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Flags of the evaluation beside those that all tasks have."""

    def prepare(self, args: argparse.Namespace, examples: Sequence) -> None:
        """Called before anything is decoded."""

    def check(self, args: argparse.Namespace) -> None:
        """Raises InputError for flags that do not fit together."""
        given = [flag for flag in ("adapter", "resume", "max_pixels", "retrieve") if getattr(args, flag, None)]
        given += ["decode"] if getattr(args, "decode", "greedy") != "greedy" else []
        if not args.model and given:
            raise InputError(f"--{given[0].replace('_', '-')} goes with --model")

    def folder_parts(self, args: argparse.Namespace) -> list[str | None]:
        """What the default folder is named after, beside the task."""
        if args.model:
            return [args.model, args.adapter, getattr(args, "decode", None)]
        return ["predictions", args.predictions]

    def row_name(self, args: argparse.Namespace) -> str:
        """The name of the evaluated system."""
        return " + ".join(filter(None, (args.model, args.adapter))) or args.predictions

    def answers(self, args: argparse.Namespace, folder: EvaluationFolder, examples: Sequence) -> list:
        """An answer to every example, None for one that is left out; what ``folder`` keeps is not decoded again."""
        ids = [example.id for example in examples]
        if not args.model:
            return read_predictions(args.predictions, ids)
        prompts = [[self.messages(example), self.images(example)] for example in examples]
        with folder.answers(ids, [prompts, self.held_to]) as kept:
            return kept.complete(lambda **state: self.decode(args, examples, **state))

    def decode(self, args: argparse.Namespace, examples: Sequence, **state) -> list[str]:
        """The model's answers. state: ``known`` and ``save`` of ``generate``."""
        loaded = load_vision_model(args) if self.vision else load(args)
        return self.ask(loaded, examples, **sampling(args), **state)

    def ask(self, loaded: tuple, examples: Sequence, **decoding) -> list[str]:
        """A model's answers. loaded: model, tokenizer and, with ``vision``, the reader of images."""
        prompts = [self.messages(example) for example in examples]
        return answer_prompts(loaded, prompts, [self.images(example) for example in examples], **decoding)

    def baselines(self, examples: Sequence, folder: Path) -> list[Result]:
        """Systems that stand above the evaluated one in its table."""
        return []

    def save_more(self, folder: Path, results: Sequence[Result], settings: dict) -> dict:
        """Writes files of the task's own; returns further entries of metrics.json. The last result is the saved one."""
        return {}

    def text(self, results: Sequence[Result]) -> str:
        """The printed table. Per cent, or the unit of the heading."""
        return means_table({result.name: result.means for result in results}, self.columns)

    def summary(self, result: Result, read: int) -> str:
        """The evaluation in a line. read: examples, of which some may have been left out."""
        some = "" if self.answer else f" of {read}"
        return f"{len(result.records)} {self.noun}{some}: {summary(result.means, self.columns)}"

    def add_pair_options(self, parser: argparse.ArgumentParser) -> None:
        """Flags of ``generate_prefs.py TASK`` beside ``--out``."""
        raise InputError(f"there is no way to make pairs of {self.name}")

    def pairs(self, args: argparse.Namespace) -> Iterable[dict]:
        """Preference records, in the form that ``mint.data.preferences`` reads."""
        raise NotImplementedError

    def write_pairs(self, args: argparse.Namespace) -> None:
        """Writes the pairs and prints their number."""
        if parallel.size() > 1:
            raise InputError(f"pairs of {self.name} are made in one process: start it without torchrun")
        check_paths(args)
        check_unused(args.out)
        count = write_jsonl(args.out, Progress(self.pairs(args), desc="pairs", unit="pair"))
        print(f"{args.out}: {count} pairs")


def first_image(record: Record) -> str | None:
    """The record's first image, or a patient's portrait, as the record names it."""
    return next(iter(image_names(record)), None) or record.get("portrait")


def groups_of(task: Task, records: Sequence[Record]) -> list[str] | None:
    """What each case belongs to (a patient, a slide, an image); None where all cases stand alone."""
    named = [task.group(record) for record in records]
    if not any(named):
        return None
    return [f"group {name}" if name else f"case {record['id']}" for name, record in zip(named, records, strict=True)]


def score_answers(
    task: Task, name: str, examples: Sequence, answers: Sequence, folder: Path = Path(), keep_notes: bool = False
) -> Result:
    """The scores of a system called ``name``. folder: where the records will be saved. keep_notes: with their texts.

    Raises InputError for no examples.
    """
    if not examples:
        raise InputError(f"there are no {task.noun} to score")
    records = [
        task.record(example, folder)
        | ({task.answer: answer} if task.answer else {})
        | task.score(task.parse(answer), example)
        for example, answer in zip(examples, answers, strict=True)
    ]
    if not keep_notes:
        hidden = {*task.texts, *task.private} - {task.field}
        records = [{key: value for key, value in record.items() if key not in hidden} for record in records]
    return Result(name, examples, answers, records, estimate(task.columns, [records], groups_of(task, records)))


def save_results(task: Task, folder: Path, results: Sequence[Result], settings: dict) -> None:
    """Saves the last of ``results``: its records, the task's own files, and metrics.json last.

    Raises InputError if the folder cannot be written.
    """
    *_, result = results
    more = task.save_more(folder, results, settings)
    save_scores(folder, task.file, result.records, result.name, result.means, settings, **more)


def evaluate(command: str, task: Task, args: argparse.Namespace) -> None:
    """Reads, decodes or measures, scores, saves and prints. Several processes share what a model decodes."""
    task.check(args)
    if parallel.size() > 1 and not (task.answer and args.model):
        raise InputError("of an evaluation only decoding is shared by processes: start this one without torchrun")
    if task.decoding:
        settle_decoding(args)
    folder = EvaluationFolder(args, command, *task.folder_parts(args))
    check_paths(args)
    read = take_first(task.read(args), args.limit)
    task.prepare(args, read)
    pairs = zip(read, task.answers(args, folder, read), strict=True)
    if not parallel.is_main():
        return
    kept = [(example, answer) for example, answer in pairs if answer is not None]
    examples, answers = ([pair[place] for pair in kept] for place in (0, 1))
    name, keep_notes = args.name or task.row_name(args), getattr(args, "keep_notes", False)
    result = score_answers(task, name, examples, answers, folder.path, keep_notes)
    results = [one for one in task.baselines(examples, folder.path) if one.name != result.name] + [result]
    settings = {key: value for key, value in vars(args).items() if key != "run"}
    save_results(task, folder.path, results, settings)
    print(task.text(results))
    folder.finish(task.summary(result, len(read)))


def _load(command: str) -> Task:
    task = load_task(command)
    if not isinstance(task, Task):
        raise InputError(f"{command} is no subclass of mint.tasks.base.Task")
    return task


def add_evaluation(parser: argparse.ArgumentParser, command: str) -> None:
    """The flags of ``evaluate.py TASK``."""
    add = parser.add_argument
    task = _load(command)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="DIR|ID", help=f"a {'vision-' * task.vision}language model")
    if task.lists:
        what.add_argument(
            "--teacher-only", "--ranker-only", action="store_true", help="score the teacher's ranking, without a model"
        )
    if task.answer:
        help = 'answers of another system: {"id": ..., "answer": ...} for every case'
        what.add_argument("--predictions", metavar="FILE.jsonl", help=help)
    add("--adapter", metavar="DIR", help="PEFT adapter to put on the model")
    add("--name", help="name of the system in tables (default: the model and adapter)")
    add("--limit", type=int, metavar="N", help=f"the first N {task.noun} only")
    if {*task.texts, *task.private} - {task.field}:
        add("--keep-notes", action="store_true", help=KEEP_HELP)
    task.add_options(parser)
    if task.decoding:
        add_decoding_options(parser.add_argument_group("decoding"), **task.decoding)
    else:
        add_loading_options(parser)
    if task.vision:
        add_image_options(parser)
    add_folder_options(parser, f"{command}-MODEL-ADAPTER{'-DECODE' * bool(task.decoding)}")
    parser.set_defaults(run=parallel.in_several(lambda args: evaluate(command, task, args)))


def add_pairs(parser: argparse.ArgumentParser, command: str) -> None:
    """The flags of ``generate_prefs.py TASK``."""
    task = _load(command)
    task.add_pair_options(parser)
    parser.add_argument("--out", required=task.out_required, metavar="FILE.jsonl", help="the pairs")
    parser.set_defaults(run=parallel.in_several(lambda args: task.write_pairs(args)))

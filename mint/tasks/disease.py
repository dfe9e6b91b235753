"""MINT's first task: ranked lists of rare diseases from clinical notes (arXiv 2505.05736)."""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from mint.cli import choose_device
from mint.data.cases import HEADER, Case, diagnosis_messages, write_note
from mint.data.prompts import Prompt
from mint.errors import InputError
from mint.evaluation.constrained import LENGTH, ListGrammar
from mint.evaluation.decoding import Loaded, load
from mint.evaluation.disease_ids import DiseaseIds, read_mondo
from mint.evaluation.folder import EvaluationFolder
from mint.evaluation.metrics import KnownDiseases, normalize
from mint.evaluation.name_scores import rank_names
from mint.evaluation.pheval import FORMS, check_pheval, file_stems, write_pheval
from mint.files import read_lines
from mint.prefs.pairs import RANKED_BY, PairSettings
from mint.tasks.base import Lists, Result
from mint.tasks.cohorts import add_cohort_options, add_prompt_options, read_cohort, read_with_prompt
from mint.tasks.disease_scores import COLUMNS, is_true, pheval_case, score_diseases
from mint.tasks.passages import Passages, add_retrieval_options, retrieval_name
from mint.tasks.ranked import RankedTask, rank_lists
from mint.teachers.findings_teacher import FindingsTeacher, is_face_reader, load_reader
from mint.teachers.fitting import check_folder
from mint.teachers.loading import load_teachers
from mint.teachers.naive_bayes import NaiveBayesTeacher
from mint.teachers.neighbours import NeighbourTeacher
from mint.teachers.ranking import Teacher
from mint.teachers.vilt_teacher import VIEWS
from mint.teachers.vilt_training import FusionSettings, count, fit_folds, fit_teacher

RANKERS: Mapping[str, Callable[[Sequence[Case]], Teacher]] = {  # teachers that are fitted in a moment
    "naive-bayes": NaiveBayesTeacher,
    "neighbours": NeighbourTeacher,
}
BASE_HELP = "--fit: a ViLT (default: a small new one), or a face reader: naive Bayes over what it sees and the note"
RANKER_HELP = "without --teacher: naive Bayes over the findings (default), or the most similar note by BM25"


class Disease(RankedTask):
    """Disease lists for cases. The prompt is the note, and passages where some were retrieved."""

    name, noun, field = "diseases", "cases", "disease"
    columns = COLUMNS
    tested = ("top_1_id", "top_10_id", "mrr", "top_1", "top_10", "car", "car_listed")
    shown = ("top_1_id", "top_10_id", "mrr", "car")
    texts = {"note": "Note"}
    lists = Lists("disease", LENGTH, lambda a, b: normalize(a) == normalize(b), is_true)
    decoding = {
        "temperature": 0.8, "top_p": 0.8, "top_k": 10, "max_new_tokens": 512, "batch_size": 64,
        "ways": ("greedy", "sample", "constrained", "rank"),
        "ways_help": "constrained: known names only, each once; rank: score every known name as the first, and sort",
    }  # fmt: skip
    out_required = False
    prompt: Prompt | None = None  # another wording than that of ``diagnosis_messages``

    def __init__(self, names: Sequence[str] = (), training: Sequence[Case] = ()):
        """names: of the known diseases. training: cases that say how common each disease is."""
        super().__init__()
        self.known, self.training, self.ids = KnownDiseases(names), training, DiseaseIds(training)
        self.passages: Mapping[Case, Sequence[str]] | Passages = {}
        self._pool: list[Case] = []  # the cases that were read, also those beyond --limit
        self._unknown = 0  # cases whose disease the teacher does not know

    def messages(self, case: Case, rng: random.Random | None = None) -> list[dict]:
        return diagnosis_messages(write_note(case, rng), self.passages.get(case, ()), case.genes, self.prompt)

    def read_asked(self, args: argparse.Namespace) -> list[Case]:
        """The cases of ``--cases``; takes the wording of ``--prompt``."""
        self.prompt, cases = read_with_prompt(args)
        self.header = self.prompt.header if self.prompt else HEADER
        return cases

    def score(self, listed: Sequence[str], case: Case) -> dict:
        given, lists = self.given_scores(case, listed), self.teacher_lists(case)
        return score_diseases(listed, case, self.ids, self.known, lists, given, self.car_weight)

    def record(self, case: Case, folder: Path) -> dict:
        record = super().record(case, folder) | {"note": write_note(case)}
        record |= {"disease_id": case.disease_id} if case.disease_id else {}
        if case.image is not None:
            record["portrait"] = os.path.relpath(case.image, folder)
        if self.training:
            record["disease_count"] = self._counts[case.disease]
        return record

    @cached_property
    def _counts(self) -> Counter:
        return Counter(case.disease for case in self.training)

    # Evaluation

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        add_cohort_options(parser)
        add_prompt_options(parser)
        parser.add_argument("--known-diseases", metavar="FILE", help="known names, one a line (default: the cases')")
        parser.add_argument("--mondo", metavar="FILE.tsv", help="SSSOM table: ids with one Mondo id are one disease")
        parser.add_argument("--pheval", choices=FORMS, help="write the lists as PhEval reads them (parquet: from 0.5)")
        group = parser.add_argument_group("teacher")
        add = group.add_mutually_exclusive_group().add_argument
        add("--teacher", nargs="+", metavar="DIR", help="a multimodal one; several: their mean (default: --ranker)")
        add("--ranker", choices=RANKERS, default="naive-bayes", help=RANKER_HELP)
        add = group.add_argument
        add("--view", choices=VIEWS, default="both", help="--teacher-only: what the teacher sees (default both)")
        add("--teacher-cases", metavar="PATH", help="cases it was fitted on (default: --cases, each without itself)")
        add("--top-k", type=int, default=10, help="length of the teacher's best list (default 10)")
        add("--bottom-q", type=int, default=15, help="length of its worst list (default 15)")
        self.add_car_weight(parser)
        add_retrieval_options(parser)

    def check(self, args: argparse.Namespace) -> None:
        if min(args.top_k, args.bottom_q) < 1:
            raise InputError("--top-k and --bottom-q must be at least 1")
        check_pheval(args.pheval)
        super().check(args)
        if args.view != "both" and not (args.teacher and args.teacher_only):
            raise InputError("--view goes with --teacher and --teacher-only")

    def teacher_parts(self, args: argparse.Namespace) -> list[str | None]:
        return ["teacher", *(args.teacher or [args.ranker]), args.view]

    def folder_parts(self, args: argparse.Namespace) -> list[str | None]:
        return [*super().folder_parts(args), retrieval_name(args)]

    def row_name(self, args: argparse.Namespace) -> str:
        if args.view != "both":
            return f"{self.teacher_name.removesuffix(')')}, {args.view} only)"
        return " + ".join(filter(None, (super().row_name(args), retrieval_name(args))))

    def read(self, args: argparse.Namespace) -> list[Case]:
        self._pool = self.read_asked(args)
        return self._pool

    def prepare(self, args: argparse.Namespace, cases: Sequence[Case]) -> None:
        """Ranks the cases by the teacher; sets the known names and ids, and the passages."""
        part = "train" if args.split else None
        self.training = read_cohort(args.teacher_cases, args, part, draw=False) if args.teacher_cases else []
        device = choose_device(args.device, "auto")[0]
        teacher = (
            load_teachers(args.teacher, device) if args.teacher else RANKERS[args.ranker](self.training or self._pool)
        )
        held_out = bool(self.training) and not args.teacher
        lengths = args.top_k, args.bottom_q
        if sum(lengths) > len(teacher.classes):
            raise InputError(
                f"{args.top_k} best and {args.bottom_q} worst of {len(teacher.classes)} diseases overlap: "
                "give --teacher-cases with more, or lower --top-k and --bottom-q"
            )
        self.refer_to(f"teacher ({teacher.name})", cases, rank_lists(cases, teacher, *lengths, held_out))
        self._unknown = sum(case.disease not in teacher.classes for case in cases)
        found = {case.disease for case in [*cases, *self.training]} | set(teacher.classes)
        names = read_lines(args.known_diseases) if args.known_diseases else sorted(found)
        self.known = KnownDiseases(names)
        self.ids = DiseaseIds([*self._pool, *self.training], read_mondo(args.mondo) if args.mondo else None)
        if args.pheval:
            file_stems([case.id for case in cases])
        self.held_to = names if args.decode in ("constrained", "rank") else None
        if args.retrieve:
            self.passages = Passages(args)

    def answers(self, args: argparse.Namespace, folder: EvaluationFolder, cases: Sequence[Case]) -> list[str]:
        if args.view == "both":
            return super().answers(args, folder, cases)
        teacher = load_teachers(args.teacher, choose_device(args.device, "auto")[0], args.view)
        lists = rank_lists(cases, teacher, args.top_k, args.bottom_q, held_out=False)
        return [self.format(names) for names in lists.top]

    def decode(self, args: argparse.Namespace, examples: Sequence[Case], **state) -> list[str]:
        if args.decode != "rank" or self.held_to is None:
            return super().decode(args, examples, **state)
        return self.rank_names(load(args), examples, self.held_to, **state)

    def ask(self, loaded: tuple, examples: Sequence[Case], **decoding) -> list[str]:
        grammar = ListGrammar(loaded[1], self.held_to, header=self.header) if self.held_to else None
        return super().ask(loaded, examples, grammar=grammar, **decoding)

    def rank_names(
        self,
        loaded: Loaded,
        cases: Sequence[Case],
        names: Sequence[str],
        known: Mapping[int, str] | None = None,
        save: Callable[[dict[int, str]], None] = lambda _: None,
    ) -> list[str]:
        """Answers with the ten names that the model finds likeliest as the first of its list, for every case.

        known, save: as for ``mint.models.generate.generate``.
        """
        answers = dict(known or {})
        left = [place for place in range(len(cases)) if place not in answers]

        def keep(row: int, scores: Tensor) -> None:
            best = [names[i] for i in scores.argsort(descending=True, stable=True)[:LENGTH]]
            answers[left[row]] = self.format(best)
            save({left[row]: answers[left[row]]})

        prompts = [self.messages(cases[place]) for place in left]
        rank_names(*loaded, prompts, names, top=LENGTH, progress=True, done=keep, header=self.header)
        return [answers[place] for place in range(len(cases))]

    def save_more(self, folder: Path, results: Sequence[Result], settings: dict) -> dict:
        settings["unknown_to_teacher"] = self._unknown
        if form := settings.get("pheval"):
            write_pheval(folder, [pheval_case(record, self.ids) for record in results[-1].records], form)
        return super().save_more(folder, results, settings)

    def text(self, results: Sequence[Result]) -> str:
        unknown = f"\nthe teacher does not know the disease of {self._unknown} cases" if self._unknown else ""
        return super().text(results) + unknown

    # Pairs

    def pair_fields(self, case: Case) -> dict:
        return {"disease_id": case.disease_id}

    def describe(self, cases: Sequence[Case]) -> dict:
        return count(cases)

    def add_pair_options(self, parser: argparse.ArgumentParser) -> None:
        add_cohort_options(parser)
        add_prompt_options(parser)
        add = parser.add_argument_group("teacher").add_mutually_exclusive_group().add_argument
        add("--ranker", choices=RANKERS, default="naive-bayes", help=RANKER_HELP)
        add("--fit", metavar="DIR", help="train a multimodal teacher, save it there, and rank with it")
        add("--teacher", nargs="+", metavar="DIR", help="a saved teacher or another ViLT; several: their mean")
        add = parser.add_argument
        for flag, kind, default, text in (
            ("--folds", int, 0, "--fit: cross-fit in N folds, so that no case is ranked by what has seen it"),
            ("--faces", int, 0, "--fit from scratch: train on N drawn faces first (at least 100)"),
            ("--teacher-epochs", int, None, "--fit: epochs at most (default 10; from scratch 25)"),
            ("--teacher-lr", float, None, "--fit: learning rate (default 5e-5; from scratch 3e-3)"),
        ):
            add(flag, type=kind, default=default, metavar="N" if kind is int else "X", help=text)
        add("--fit-cases", metavar="PATH", help="cases to fit the teacher on (default: --cases)")
        add("--base", metavar="DIR|ID", help=BASE_HELP)
        add("--view", choices=VIEWS, default="both", help="--fit, --teacher: what the teacher sees (default both)")
        add("--summaries", metavar="FILE", help="the teacher's text of cases without findings; gives the disease away")
        add_retrieval_options(parser)
        self.add_pair_flags(parser, top_k=PairSettings.top_k, bottom_q=PairSettings.bottom_q)
        for flag, kind, value, text in (
            ("--variants", int, 1, "notes per case, all but the first shuffled and thinned"),
            ("--drop-terms", float, PairSettings.drop_terms, "mean share of findings left out of these"),
            ("--rejected-samples", int, 1, "records per note, each with another rejected list"),
            ("--seed", int, 0, "of variants, samples, --reject and --fit"),
        ):
            add(flag, type=kind, default=value, help=f"{text} (default {value})")
        by = "what the teacher ranks: the findings left in each note (default), or the whole case"
        add("--rank-by", choices=RANKED_BY, default=PairSettings.rank_by, help=f"--variants: {by}")

    def check_pairs(self, args: argparse.Namespace) -> None:
        super().check_pairs(args)
        if args.view != "both" and not (args.teacher or args.fit):
            raise InputError("--view goes with --teacher or --fit")
        if not args.out and not args.fit:
            raise InputError("nothing to do: give --out for pairs, or --fit for a teacher")
        if args.folds and not args.fit:
            raise InputError("--folds goes with --fit")
        if args.faces and (not args.fit or args.base):
            raise InputError("--faces goes with --fit, and not with --base")
        if args.base and not args.fit:
            raise InputError("--base goes with --fit")
        if args.base and is_face_reader(args.base) and not args.fit_cases:
            raise InputError(f"--base {args.base} is a face reader: give --fit-cases, so that no case ranks itself")
        if args.summaries and not (args.fit or args.teacher):
            raise InputError("--summaries goes with --fit or --teacher: naive Bayes reads no text")
        if args.folds and args.fit_cases:
            raise InputError("--folds cross-fits --cases themselves: it does not go with --fit-cases")

    def rank_examples(self, args: argparse.Namespace) -> tuple[list[Case], Teacher, PairSettings, bool]:
        if args.fit:
            check_folder(args.fit)
        cases = self.read_asked(args)
        if args.retrieve:
            self.passages = Passages(args)
        teacher = make_teacher(args, read_cohort(args.fit_cases, args) if args.fit_cases else cases)
        if args.fit:
            known = len(teacher.classes)
            print(f"{args.fit}: teacher of {known} diseases saved; rank with it by --teacher {args.fit}")
        settings = {field.name: getattr(args, field.name) for field in dataclasses.fields(PairSettings)}
        return cases, teacher, PairSettings(**settings), bool(args.fit_cases)


def make_teacher(args: argparse.Namespace, cases: Sequence[Case]) -> Teacher:
    """The teacher that the flags name, fitted on ``cases`` or loaded."""
    device, _ = choose_device(args.device, "auto")
    if args.teacher:
        return load_teachers(args.teacher, device, args.view)
    if not args.fit:
        return RANKERS[args.ranker](cases)
    print(", ".join(f"{value} {name.replace('_', ' ')}" for name, value in count(cases).items()))
    if args.base and is_face_reader(args.base):
        if args.folds or args.teacher_epochs or args.teacher_lr:
            raise InputError(f"--base {args.base} is a face reader: no --folds, --teacher-epochs or --teacher-lr")
        FindingsTeacher.fit(load_reader(args.base, device), cases).save(args.fit)
        return load_teachers([args.fit], device, args.view)
    changes = {"epochs": args.teacher_epochs, "lr": args.teacher_lr, "seed": args.seed}
    changes = {name: value for name, value in changes.items() if value is not None}
    settings = FusionSettings(**changes) if args.base else FusionSettings.from_scratch(**changes)
    with tempfile.TemporaryDirectory() as place:
        base = args.base
        if args.faces:
            from mint.synthetic.faces import fit_faces  # drawing code

            base = f"{place}/faces"
            fit_faces(cases, base, args.faces, seed=args.seed, device=device)
        if args.folds:
            fit_folds(cases, args.fit, args.folds, settings, base=base, device=device)
        else:
            fit_teacher(cases, args.fit, settings, base=base, device=device)
    return load_teachers([args.fit], device, args.view)

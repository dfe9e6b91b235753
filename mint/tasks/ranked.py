"""Tasks whose answers are ranked lists of names, with a teacher that ranks the same names.

The teacher gives the preference pairs (its best names are chosen, its worst rejected) and the lists that coverage,
avoidance and CAR refer to.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from mint import parallel
from mint.data.cases import HEADER, format_list, parse_list
from mint.data.preferences import write_jsonl
from mint.errors import InputError
from mint.evaluation.folder import EvaluationFolder
from mint.evaluation.predictions import read_rankings
from mint.evaluation.scores import means_table
from mint.files import check_paths, check_unused, write_aside
from mint.prefs.file_names import say_if_outside
from mint.prefs.pairs import ANSWERS, REJECTED, PairReport, PairSettings, make_pairs
from mint.prefs.policy_lists import ON_POLICY, Policy, add_policy_options, check_policy
from mint.progress import Progress
from mint.tasks.base import Result, Task, score_answers
from mint.teachers.ranking import Teacher, rank

REJECT_HELP = (
    "bottom: the ranking's last names (default); random: names drawn from those not chosen; policy: of sampled answers "
    "of --policy the one that the teacher scores lowest; edit: the policy's own list, for its minimal edit, with spans"
)


@dataclasses.dataclass(frozen=True)
class TeacherLists:
    """For every case, the teacher's best and worst names."""

    top: list[list[str]]
    bottom: list[list[str]]


def rank_lists(examples: Sequence, teacher: Teacher, top_k: int, bottom_q: int, held_out: bool = True) -> TeacherLists:
    """The best ``top_k`` and worst ``bottom_q`` names; ``held_out`` as for :func:`mint.prefs.pairs.make_pairs`."""
    rankings = [[name for name, _ in ranking] for ranking in rank(teacher, examples, None if held_out else examples)]
    return TeacherLists([names[:top_k] for names in rankings], [names[-bottom_q:] for names in rankings])


class RankedTask(Task):
    """header: the first line of an answer. shown: scores of the summary line. car_weight: L of CAR."""

    header = HEADER
    shown: tuple[str, ...] = ()
    car_weight = 1.0

    def __init__(self) -> None:
        self.teacher_name = ""
        self._given: dict[tuple, tuple[float, ...] | None] = {}  # (id, names of a file's answer) -> their scores
        self._lists: dict = {}  # example -> (best, worst) names

    def refer_to(self, name: str, examples: Sequence, lists: TeacherLists) -> None:
        """Sets the teacher's lists, which scores refer to. name: of the teacher, in tables."""
        self.teacher_name = name
        self._lists = dict(zip(examples, zip(lists.top, lists.bottom, strict=True), strict=True))

    def teacher_lists(self, example) -> tuple[list[str], list[str]]:
        """(best, worst) names of the teacher; empty without a teacher."""
        return self._lists.get(example, ([], []))

    def teacher_answers(self, examples: Sequence) -> list[str]:
        """The teacher's best names as answers."""
        return [self.format(self.teacher_lists(example)[0]) for example in examples]

    def messages(self, example, rng: random.Random | None = None) -> list[dict]:
        """The prompt of an example, without its images. rng: may vary its wording, for pairs."""
        raise NotImplementedError

    def truth(self, example) -> str:
        """The true name."""
        return getattr(example, self.field)

    def format(self, names: Sequence[str]) -> str:
        """The answer that lists ``names``."""
        return format_list(names, self.header)

    def parse(self, answer: str) -> list[str]:
        return parse_list(answer, self.header)

    def record(self, example, folder: Path) -> dict:
        best = self.teacher_lists(example)[0]
        return super().record(example, folder) | ({"teacher": best} if best else {})

    def add_car_weight(self, parser: argparse._ActionsContainer) -> None:
        """``--car-weight``; read by :meth:`check`."""
        text = f"L of CAR = (1 + L) C A / (L C + A) (default {self.car_weight:g})"
        parser.add_argument("--car-weight", type=float, default=self.car_weight, metavar="L", help=text)

    def check(self, args: argparse.Namespace) -> None:
        self.car_weight = getattr(args, "car_weight", self.car_weight)
        if not 0 < self.car_weight < math.inf:
            raise InputError(f"--car-weight must be a positive number, not {self.car_weight}")
        super().check(args)

    def given_answers(self, file: str, examples: Sequence) -> list[str]:
        """The answers of another system, from its file; takes their scores, if any. Raises as ``read_rankings``."""
        found = read_rankings(file, [example.id for example in examples], self.header)
        self._given = {(name, *self.parse(one.answer)): one.scores for name, one in found.items()}
        return [found[example.id].answer for example in examples]

    def given_scores(self, example, listed: Sequence[str]) -> Sequence[float] | None:
        """The scores that ``--predictions`` gives the names of an answer, the highest first; None without any."""
        return self._given.get((example.id, *listed))

    def folder_parts(self, args: argparse.Namespace) -> list[str | None]:
        return self.teacher_parts(args) if args.teacher_only else super().folder_parts(args)

    def teacher_parts(self, args: argparse.Namespace) -> list[str | None]:
        """What the default folder of the teacher's scores is named after."""
        return ["teacher", args.teacher]

    def row_name(self, args: argparse.Namespace) -> str:
        return self.teacher_name if args.teacher_only else super().row_name(args)

    def answers(self, args: argparse.Namespace, folder: EvaluationFolder, examples: Sequence) -> list[str]:
        if args.teacher_only:
            return self.teacher_answers(examples)
        if args.predictions:
            return self.given_answers(args.predictions, examples)
        return super().answers(args, folder, examples)

    def baselines(self, examples: Sequence, folder: Path) -> list[Result]:
        return [score_answers(self, self.teacher_name, examples, self.teacher_answers(examples), folder)]

    def save_more(self, folder: Path, results: Sequence[Result], settings: dict) -> dict:
        return {"rows": {result.name: self.row(result) for result in results}}

    def row(self, result: Result) -> dict[str, float]:
        """The means of a system as metrics.json has them, and how many answers held no list."""
        means = {name: estimate.value for name, estimate in result.means.items()}
        lengths = [len(record["listed"]) for record in result.records]
        means["listed"] = sum(lengths) / len(lengths)
        return means | {self.noun: len(lengths), "without_list": lengths.count(0)}

    def text(self, results: Sequence[Result]) -> str:
        return means_table({result.name: result.means for result in results}, self.columns, intervals=False)

    def summary(self, result: Result, read: int) -> str:
        row = self.row(result)
        scores = ", ".join(f"{self.columns[name].heading} {100 * row[name]:.1f} %" for name in self.shown)
        return f"{read} {self.noun}, {row['without_list']} answers without a list: {scores}"

    # Pairs

    def add_pair_flags(self, parser: argparse.ArgumentParser, top_k: int | None, bottom_q: int | None) -> None:
        """The flags of a pair's two lists. top_k, bottom_q: their default lengths; None: :meth:`list_lengths`."""
        add = parser.add_argument
        default = [
            f"default {value}" if value else "default 5, or half of fewer than ten" for value in (top_k, bottom_q)
        ]
        add("--top-k", type=int, default=top_k, help=f"names of the chosen list ({default[0]})")
        add("--bottom-q", type=int, default=bottom_q, help=f"names of the rejected list ({default[1]})")
        add("--label-first", action="store_true", help=f"move the true {self.field} to the front of the chosen list")
        add("--answer", choices=ANSWERS, default="ranking", help=f"disease: chosen names the true {self.field} alone")
        add("--device", choices=("auto", "cpu", "cuda"), default="auto")
        add("--reject", choices=REJECTED, default="bottom", help=REJECT_HELP)
        add_policy_options(parser, self.decoding["max_new_tokens"])

    def rank_examples(self, args: argparse.Namespace) -> tuple[list, Teacher, PairSettings, bool]:
        """(the examples, the teacher, the settings of pairs, whether the teacher has not seen the examples)."""
        raise NotImplementedError

    def pair_fields(self, example) -> dict:
        """Further fields of a preference record."""
        return {}

    def describe(self, examples: Sequence) -> dict:
        """What the report says of the examples."""
        return {self.noun: len(examples)}

    def write_pairs(self, args: argparse.Namespace) -> None:
        """Ranks and writes; prints the counts and how the true names rank, and saves a report."""
        self.check_pairs(args)
        check_paths(args)
        if args.out:
            parallel.on_main(lambda: check_unused(args.out))
        examples, teacher, settings, held_out = self.rank_examples(args)
        if not args.out:
            return
        report, out = PairReport(), Path(args.out)
        policy = Policy.load(args, self.vision) if args.reject in ON_POLICY else None
        records = make_pairs(self, examples, teacher, settings, report, held_out, out.parent, policy)
        if not parallel.is_main():
            next(iter(records), None)  # before the first record the policy answers all notes
            return
        total = len(examples) * settings.variants * settings.rejected_samples
        if not write_jsonl(out, Progress(records, total=total, desc="ranking", unit="pair")):
            out.unlink()
            raise InputError(f"no note gave a pair: {report}")
        print(f"{out}: {report}")
        say_if_outside([Path(file) for example in examples for file in self.images(example)], out)
        flags = {name: value for name, value in vars(args).items() if name != "run"}
        record = {"settings": flags, "cohort": self.describe(examples), "pairs": dataclasses.asdict(report)}
        write_aside(f"{out}.report.json", json.dumps(record, indent=2) + "\n")

    def check_pairs(self, args: argparse.Namespace) -> None:
        """Raises InputError for flags that do not fit together."""
        check_policy(args)

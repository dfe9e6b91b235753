"""A pretrained Llama on published case reports, asked about publications that it has not seen.

    python -m benchmarks.case_reports --train CASES/train.tar.xz --dev CASES/dev.tar.xz --model DIR --out DIR

The teacher is naive Bayes over all findings, with the true disease moved to the front. Every row sees the same cases
in as many steps; DPO goes on from SFT on the teacher's lists. Each is asked to write a list, and to rank the names.
Beside them: both rankings without a network (naive Bayes, the nearest report by BM25), the model as it is, with
passages, and trained with passages; other systems from files (``--external``).

A command that was stopped goes on where it was. ``unseen``, ``seen`` and ``free-text`` hold the comparisons,
``measures.csv`` what was measured on held-out pairs and general prompts, ``rejected.png`` the rejected answers over
training.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.command import make_parser, run
from benchmarks.report_cohort import Cohort, read_reports
from benchmarks.report_measures import answer_general, draw_log_probabilities, measure, measures_file, write_measures
from mint.data.cases import HEADER, RETRIEVED, Case, write_note
from mint.data.preferences import write_jsonl
from mint.data.prompts import Prompt
from mint.data.retrieval import Index, Passage, Retriever, describe_cases
from mint.demo.arms import Arm, Exam, Job, arm_jobs, logged, run_arm, side_by_side
from mint.demo.stages import Hardware
from mint.errors import InputError
from mint.evaluation.dense_retrieval import DenseRetriever, SentenceEncoder
from mint.evaluation.scores import means_table
from mint.files import read_json, write_aside
from mint.prefs.pairs import PairReport, PairSettings, make_pairs
from mint.tasks.base import save_results, score_answers
from mint.tasks.compare import load_systems
from mint.tasks.compare_page import save_comparison
from mint.tasks.disease import Disease
from mint.tasks.ranked import rank_lists
from mint.teachers.naive_bayes import NaiveBayesTeacher
from mint.teachers.neighbours import NeighbourTeacher
from mint.teachers.ranking import Teacher

WORDING = Prompt(
    "{note}\n\nName the five rare diseases that fit best, the most likely first.",
    HEADER,
    "You are a genetic counselor.",
)
WITH_PASSAGES = replace(WORDING, user=WORDING.user.replace("{note}\n", f"{{note}}\n\n{RETRIEVED}\n{{passages}}\n"))
LISTS = PairSettings(top_k=5, bottom_q=5, label_first=True)
LENGTHS = 10, 15  # of the teacher's lists that coverage and avoidance refer to
PASSAGES, CHUNK, OVERLAP, CUT_OFF = 3, 256, 20, 0.7  # tokens of a chunk, and that two share; least cosine
HELD_OUT = 48  # pairs to measure on
STEPS, DPO_STEPS = 150, 50
RECIPE = {
    **{"batch_size": 8, "lr": 1e-3, "lora_rank": 64, "lora_alpha": 64.0, "warmup": 0.05},
    **{"eval_every": 15, "save_every": 75, "compile": False},
}
ROWS = {  # row -> loss, pairs
    "SFT, true disease": ("sft", "diseases"),
    "SFT, teacher's lists": ("sft", "lists"),
    "ORPO": ("orpo", "lists"),
    "DPO after SFT": ("dpo", "lists"),
    "SFT with passages": ("sft", "passages"),
}
BASE, ONCE = "base", "SFT with passages"  # the model as it is; trained with one seed alone


class SeeingBayes(NaiveBayesTeacher):
    """Naive Bayes that counts what the face shows as well, which notes leave out."""

    name = "naive Bayes, all findings"

    def __init__(self, cases: Sequence[Case]):
        super().__init__(list(map(show_face, cases)))

    def scores(self, cases: Sequence[Case], own: Sequence[Case] | None = None) -> np.ndarray:
        return super().scores(list(map(show_face, cases)), own and list(map(show_face, own)))


def show_face(case: Case) -> Case:
    return replace(case, observed=case.observed + case.facial)


@dataclass(frozen=True)
class Study:
    """The experiment in ``root``: its cohort, arms and exams.

    model: a directory. encoder: of dense retrieval, if any. steps: of every row but DPO's.
    """

    root: Path
    cohort: Cohort
    model: Path
    encoder: str | None = None
    steps: int = STEPS
    seeds: int = 3
    device: str = "cpu"

    def arm(self, row: str, seed: int) -> Arm:
        loss, data = ROWS[row]
        folder = self.root / f"seed-{seed}" / f"{loss}-{data}"
        files = {"data": str(self.root / f"{data}.jsonl"), "eval_data": str(self.root / "held-out.jsonl")}
        settings = {**RECIPE, **files, "loss": loss, "steps": self.steps, "seed": seed}
        if data == "passages":
            settings["eval_data"] = str(self.root / "held-out-passages.jsonl")
        if loss == "dpo":
            start = self.arm("SFT, teacher's lists", seed)
            settings |= {"adapter": str(start.folder / "run" / "adapter"), "lr": RECIPE["lr"] / 50}
            settings["steps"] = max(1, self.steps * DPO_STEPS // STEPS)
            settings = {name: value for name, value in settings.items() if not name.startswith("lora")}
        return Arm(row, folder, self.model, settings, Hardware(self.device))

    def arms(self, row: str) -> list[Arm]:
        """The arms of a row, one for each seed."""
        if row == BASE:
            return [Arm(BASE, self.root / "base", self.model, hardware=Hardware(self.device))]
        return [self.arm(row, seed) for seed in range(1 if row == ONCE else self.seeds)]

    @cached_property
    def exams(self) -> list[Exam]:
        """Unseen publications first, in both ways; the others by written lists."""
        cases = {"unseen": self.cohort.unseen, "seen": self.cohort.seen, "free-text": self.cohort.free_text}
        ways = {"unseen": ("greedy", "rank")}
        names = self.cohort.names
        return [
            Exam(some, names, ways.get(name, ("greedy",)), WORDING, {}, name) for name, some in cases.items() if some
        ]

    def exam_with(self, name: str, make_index: Callable[[], Index]) -> Exam:
        """The first, by written lists, with passages. What was found is kept: embedding takes minutes."""
        file, cases = self.root / f"passages-{name}.json", self.cohort.unseen
        if not file.is_file():
            write_aside(file, json.dumps(list(find_passages(make_index(), cases).values())))
        passages = dict(zip(cases, read_json(file, kind=list), strict=True))
        return Exam(cases, self.cohort.names, ("greedy",), WITH_PASSAGES, passages, name)

    @cached_property
    def passages(self) -> list[Passage]:
        """The reports in training; the id of each is its publication, so that no case is shown its own."""
        cases = self.cohort.training
        described = zip(cases, describe_cases(cases), strict=True)
        return [Passage(case.subject, passage.text) for case, passage in described]

    @cached_property
    def exams_with_passages(self) -> list[Exam]:
        """By BM25, and by meaning where there is an encoder."""
        found = [self.exam_with("bm25", lambda: Retriever(self.passages))]
        return [*found, self.exam_with("dense", self._dense)] if self.encoder else found

    def _dense(self) -> Index:
        assert self.encoder is not None
        return DenseRetriever(self.passages, SentenceEncoder(self.encoder), CHUNK, OVERLAP, CUT_OFF)

    def teachers(self) -> list[Teacher]:
        training = self.cohort.training
        return [SeeingBayes(training), NaiveBayesTeacher(training), NeighbourTeacher(training)]


class Reports(Disease):
    """Diseases; cases of one publication are drawn together for the intervals."""

    def record(self, case: Case, folder: Path) -> dict:
        return super().record(case, folder) | {"subject": case.subject}


def find_passages(index: Index, cases: Sequence[Case]) -> dict[Case, list[str]]:
    """The best passages of other publications for every case's note; "none" where none is near enough."""
    found = index.retrieve(list(map(write_note, cases)), PASSAGES, [case.subject for case in cases])
    return {case: texts or ["none"] for case, texts in zip(cases, found, strict=True)}


def run_study(args: argparse.Namespace) -> str:
    """Trains, asks and measures what is missing; writes comparisons, measures and curves, and returns the tables.

    Raises InputError for files that cannot be read, numbers out of range, or a folder that cannot be written.
    """
    external = dict(part.split("=", 1) if "=" in part else (Path(part).stem, part) for part in args.external)
    study = make_study(args)
    print(study.cohort, flush=True)
    write_pairs(study)
    if not (general := study.root / "general.jsonl").is_file():
        answer_general(study.model, general)
    side_by_side(jobs_of(study))
    tables = [compare_exam(study, exam, external if exam.name == "unseen" else {}) for exam in study.exams]
    draw_log_probabilities(study.root / "rejected.png", study.arms("ORPO"))
    measured = {row: study.arms(row) for row in (BASE, *ROWS) if row != ONCE}
    return "\n\n".join([*tables, write_measures(study.root / "measures.csv", measured)])


def make_study(args: argparse.Namespace) -> Study:
    """The experiment that the flags describe. Raises as :func:`run_study`."""
    if min(args.seeds, args.steps) < 1:
        raise InputError("--seeds and --steps must be at least 1")
    cohort = read_reports(args.train, args.dev, args.face_terms, args.notes)
    return Study(Path(args.out), cohort, Path(args.model), args.encoder, args.steps, args.seeds, args.device)


def write_pairs(study: Study) -> None:
    """The pairs of all arms, those to measure on, and the ids of the unseen cases, unless they are there."""
    teacher, cohort = study.teachers()[0], study.cohort
    some = cohort.unseen[:: max(1, len(cohort.unseen) // HELD_OUT)][:HELD_OUT]
    index = Retriever(study.passages)
    for name, cases, prompt, held_out in (
        ("lists", cohort.training, WORDING, False),
        ("diseases", cohort.training, WORDING, False),
        ("passages", cohort.training, WITH_PASSAGES, False),
        ("held-out", some, WORDING, True),
        ("held-out-passages", some, WITH_PASSAGES, True),
    ):
        file = study.root / f"{name}.jsonl"
        if file.is_file():
            continue
        settings = replace(LISTS, answer="disease" if name == "diseases" else "ranking")
        report, task = PairReport(), Disease()
        task.prompt = prompt
        if prompt is WITH_PASSAGES:
            task.passages = find_passages(index, cases)
        write_jsonl(file, make_pairs(task, cases, teacher, settings, report, held_out))
        print(f"{name}: {report}", flush=True)
    write_jsonl(study.root / "unseen.jsonl", [{"id": case.id, "note": write_note(case)} for case in cohort.unseen])


def jobs_of(study: Study) -> list[Job]:
    """What is not finished, seed by seed. DPO follows the arm that it starts from, in one job."""
    chains = [["ORPO"], ["SFT, teacher's lists", "DPO after SFT"], ["SFT, true disease"]]
    jobs: list[Job] = []
    for seed in range(study.seeds):
        jobs += [
            job_of(study, f"{' and '.join(rows)}, seed {seed}", [study.arm(row, seed) for row in rows])
            for rows in chains
        ]
        if seed == 0:
            jobs.append(job_of(study, BASE, study.arms(BASE)))
    jobs.append(job_of(study, ONCE, study.arms(ONCE)))
    return [job for job in jobs if job[2][1]]


def job_of(study: Study, name: str, arms: Sequence[Arm]) -> Job:
    left = [(arm, exams_of(study, arm)) for arm in arms]
    left = [(arm, exams) for arm, exams in left if arm_jobs([arm], *exams) or not measures_file(arm).is_file()]
    return name, run_arms, (study, left)


def exams_of(study: Study, arm: Arm) -> list[Exam]:
    if arm.name == ONCE:
        return study.exams_with_passages[:1]
    return [*study.exams, *study.exams_with_passages] if arm.name == BASE else study.exams


def run_arms(study: Study, arms: Sequence[tuple[Arm, Sequence[Exam]]]) -> None:
    """A job: trains, asks and measures some arms, one after the other."""
    for arm, exams in arms:
        run_arm(arm, *exams)
        if not measures_file(arm).is_file():
            with logged(arm.folder / "measures.log"):
                found = measure(arm, study.root / "held-out.jsonl", study.root / "general.jsonl")
                write_aside(measures_file(arm), json.dumps(found) + "\n")


def compare_exam(study: Study, exam: Exam, external: Mapping[str, str]) -> str:
    """Scores all rows of an exam; writes the comparison over the seeds, and returns its table."""
    task = Reports(exam.names, training=study.cohort.training)
    teacher, *others = study.teachers()
    task.refer_to(teacher.name, exam.cases, rank_lists(exam.cases, teacher, *LENGTHS))
    answers: dict[str, list[list[str]]] = {teacher.name: [task.teacher_answers(exam.cases)]}
    for other in others:
        answers[other.name] = [list(map(task.format, rank_lists(exam.cases, other, LENGTHS[0], 1).top))]
    for way in exam.ways:
        ranked = ", names ranked" * (way == "rank")
        answers |= {
            row + ranked: [arm.answers(exam, way) for arm in study.arms(row)] for row in (BASE, *ROWS) if row != ONCE
        }
    if exam.name == "unseen":
        for given in study.exams_with_passages:
            answers[f"{BASE}, passages by {given.name}"] = [arm.answers(given, "greedy") for arm in study.arms(BASE)]
        answers[ONCE] = [arm.answers(study.exams_with_passages[0], "greedy") for arm in study.arms(ONCE)]
    answers |= {name: [task.given_answers(file, exam.cases)] for name, file in external.items()}
    folder, runs = study.root / exam.name, []
    for name, some in answers.items():
        stem = re.sub(r"\W+", "-", name)
        places = [folder / "scores" / f"{stem}-{seed}" for seed in range(len(some))]
        for place, one in zip(places, some, strict=True):
            save_results(task, place, [score_answers(task, name, exam.cases, one, place)], {"exam": exam.name})
        runs.append(f"{name}={','.join(map(str, places))}")
    save_comparison(runs, folder, baseline="naive Bayes")
    found = {system.name: system.estimates for system in load_systems(runs)}
    return f"{exam.name}: {len(exam.cases)} cases\n\n{means_table(found, Disease.columns)}"


def main() -> int:
    parser = make_parser(__doc__, seeds=3)
    add = parser.add_argument
    add("--train", required=True, metavar="PATH", help="phenopackets to train on")
    add("--dev", required=True, metavar="PATH", help="phenopackets of the same split by case, to ask about")
    add("--model", required=True, metavar="DIR", help="an instruction-tuned Llama")
    add("--face-terms", metavar="FILE", help="HPO ids (first column) of what the face shows, left out of notes")
    add("--notes", nargs="*", default=[], metavar="FILE", help="notes in prose: JSON Lines (.gz) with id and note")
    add("--encoder", metavar="DIR|ID", help="a BERT for dense retrieval")
    add("--external", nargs="*", default=[], metavar="NAME=FILE", help="answers of another system to unseen.jsonl")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="of training and answers (default: auto)")
    add("--steps", type=int, default=STEPS, help=f"of 8 pairs (default {STEPS}); DPO a third of it")
    return run(parser, run_study)


if __name__ == "__main__":
    sys.exit(main())

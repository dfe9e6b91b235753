"""Arms of an experiment: one model trained in several ways, each asked about the same unseen cases.

Arms run side by side, a process and a thread each. One that is finished is not run again, so an experiment that was
stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path

from mint.config import TrainConfig
from mint.data.cases import Case
from mint.data.chat import load_tokenizer
from mint.data.preferences import write_jsonl
from mint.data.prompts import Prompt
from mint.demo.stages import CPU, Hardware, Train, aligned, load_student
from mint.errors import InputError
from mint.evaluation.predictions import read_predictions
from mint.files import read_json, write_aside
from mint.processes import cores, worker_processes
from mint.progress import duration
from mint.scripts import command_file
from mint.tasks.disease import Disease

MOVABLE = dict.fromkeys(("data", "eval_data", "adapter"), "")  # settings that name files; their folder may be moved
TOKENS = 160  # of an answer at most
SAMPLING = {"temperature": 0.8, "top_p": 0.8, "top_k": 10}  # the paper's


@dataclass(frozen=True)
class Exam:
    """What every arm is asked: cases, unseen patients; names, of all diseases.

    ways: of decoding: ``rank`` ranks the names, ``greedy`` and ``sample`` write lists, the latter as in the paper.
    prompt: another wording. passages: in the prompt of each case. name: where an arm is asked in several exams.
    """

    cases: Sequence[Case]
    names: Sequence[str]
    ways: tuple[str, ...] = ("rank",)
    prompt: Prompt | None = None
    passages: Mapping[Case, Sequence[str]] = field(default_factory=dict)
    name: str = ""

    def task(self) -> Disease:
        """What asks, and reads the answers."""
        task = Disease(self.names)
        task.prompt, task.passages = self.prompt, self.passages
        return task

    def ask(self, way: str, model_dir: str, adapter: Path | None, seed: int = 0, hardware: Hardware = CPU) -> list[str]:
        """The answers of a model to all cases."""
        model = load_student(model_dir, adapter, hardware)
        task, loaded = self.task(), (model, load_tokenizer(model_dir))
        if way == "rank":
            return task.rank_names(loaded, self.cases, self.names)
        sampling = {**SAMPLING, "seed": seed} if way == "sample" else {}
        return task.ask(loaded, self.cases, max_new_tokens=TOKENS, batch_size=64, **sampling)


@dataclass(frozen=True)
class Arm:
    """A row of the experiment's table.

    name: the row. folder: of its run and answers. model: the directory that it starts from. settings: of
    ``TrainConfig`` beside model and folder; empty for a model that is asked as it is.
    """

    name: str
    folder: Path
    model: Path
    settings: Mapping = field(default_factory=dict)
    hardware: Hardware = CPU

    @property
    def config(self) -> TrainConfig:
        paths = {"out": str(self.folder / "run"), "model": str(self.model)}
        common = {**self.hardware._asdict(), "compile": False}  # too short for it
        return TrainConfig(**{**common, **paths, **self.settings})

    @property
    def trained(self) -> tuple[str, Path | None]:
        """(model, adapter) of the finished arm."""
        return aligned(self.config, self.folder / "run") if self.settings else (str(self.model), None)

    def file(self, exam: Exam, way: str) -> Path:
        """Where the answers of a way of decoding are."""
        return self.folder / f"{exam.name}{'-' * bool(exam.name)}{way}.jsonl"

    def answers(self, exam: Exam, way: str = "rank") -> list[str]:
        """The answers of a finished arm. Raises InputError for answers to other cases."""
        return read_predictions(self.file(exam, way), [case.id for case in exam.cases])

    def check(self) -> None:
        """Raises InputError if the arm was trained with other settings."""
        known = read_json(self.folder / "trained.json", optional=True)
        if known and {**known, **MOVABLE} != {**self.settings, **MOVABLE}:
            raise InputError(f"{self.folder} was trained with other settings: delete it, or give another folder")

    def is_finished(self, *exams: Exam) -> bool:
        return all(self.file(exam, way).is_file() for exam in exams for way in exam.ways)


Job = tuple[str, Callable[..., object], tuple]  # name, function, its arguments


def arm_jobs(arms: Sequence[Arm], *exams: Exam) -> list[Job]:
    """The jobs of the arms that are not finished. Raises InputError for one that was trained with other settings."""
    for arm in arms:
        arm.check()
    return [(arm.name, run_arm, (arm, *exams)) for arm in arms if not arm.is_finished(*exams)]


def side_by_side(jobs: Sequence[Job], workers: int | None = None) -> None:
    """Runs jobs in as many processes as there are cores (``workers``), and prints each when it is finished.

    The first exception of a job ends all of them and is raised. Raises InputError if a process ends by itself.
    """
    if not jobs:
        return
    with worker_processes(min(len(jobs), workers or cores()), _one_thread) as pool:
        start = time.monotonic()
        futures = {pool.submit(_run, function, *arguments): name for name, function, arguments in jobs}
        for number, future in enumerate(as_completed(futures), 1):
            try:
                future.result()
            except BrokenProcessPool:
                raise InputError("a process ended before its job: start the command again, it goes on there") from None
            print(f"{number}/{len(jobs)} {futures[future]}, after {duration(time.monotonic() - start)}", flush=True)


def _run(function: Callable[..., object], *arguments) -> None:
    """A job in its process, which a signal ends once the job has stopped: it would take the next job."""
    try:
        function(*arguments)
    except KeyboardInterrupt:
        os._exit(1)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def run_arm(arm: Arm, *exams: Exam) -> None:
    """Trains one arm and asks it; what it prints goes to ``log.txt``. A run with checkpoints goes on from the last."""
    with logged(arm.folder / "log.txt"):
        done, run = arm.folder / "trained.json", arm.folder / "run"
        if arm.settings and not done.is_file():
            if not any((run / "checkpoints").glob("step-*")):
                shutil.rmtree(run, ignore_errors=True)
            load_train()(replace(arm.config, resume="auto"))
            write_aside(done, json.dumps(dict(arm.settings)) + "\n")
        for exam in exams:
            for way in exam.ways:
                if not (file := arm.file(exam, way)).is_file():
                    answers = exam.ask(way, *arm.trained, arm.config.seed, arm.hardware)
                    named = zip(exam.cases, answers, strict=True)
                    write_jsonl(file, [{"id": case.id, "answer": answer} for case, answer in named])


@contextlib.contextmanager
def logged(file: Path) -> Iterator[None]:
    """Standard output and error go to ``file`` in the block."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8", buffering=1) as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield


def load_train() -> Train:
    """``train`` of ``train.py``: the package imports no command, and finds it beside itself."""
    return runpy.run_path(str(command_file("train")))["train"]

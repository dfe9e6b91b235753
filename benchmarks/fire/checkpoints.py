"""What a row answers during training: the answers of its checkpoints, their length, repetition and scores."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks.fire.divergence import divergences
from benchmarks.fire.methods import Scores, cell, scale
from benchmarks.fire.ward import read_rows, sample
from mint.data.preferences import write_jsonl
from mint.data.questions import Question
from mint.demo.arms import Arm, Job, logged, run_arm
from mint.demo.radiograph_demo import load
from mint.demo.stages import Hardware
from mint.evaluation.statistics import bootstrap
from mint.prefs.claims import Truth
from mint.prefs.rules_editor import says_truth
from mint.tasks.facts import facts_f1
from mint.tasks.vqa import Vqa, words

GRAM = 4  # words
TOKENS = 128  # of an answer: a report has some 40, one that runs away many
PARTS = 32
ANSWERED = 600  # questions at most, at each checkpoint


def saving(steps: int) -> dict[str, int]:
    """Settings of a run of ``steps`` that keeps a checkpoint for each 32nd part of it."""
    every = max(1, steps // PARTS)
    return {"steps": steps, "save_every": every, "keep": steps // every + 1}


def steps_of(arm: Arm) -> list[int]:
    """When an arm is asked: at the first checkpoint, each time twice as far, at the end; 0: the policy as it is."""
    if not arm.settings:
        return [0]
    last, every = arm.settings["steps"], arm.settings["save_every"]
    return sorted({*(every << doubled for doubled in range((last // every).bit_length())), last})


def repetition(answer: str) -> float:
    """The share, in 0 to 1, of an answer's runs of four words that it has written before; 0 for a shorter one."""
    found = words(answer)
    grams = [tuple(found[i : i + GRAM]) for i in range(len(found) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def answers_file(arm: Arm, step: int) -> Path:
    return arm.folder / "answers" / f"{step}.jsonl"


def checkpoint_jobs(
    arms: Sequence[Arm], questions: Sequence[Question], first: Path, read: Callable[[str, Question], str]
) -> list[Job]:
    """The arms of which answers are missing. Raises InputError for one that was trained with other settings.

    questions: of which ANSWERED are asked. first: the policy's own answers as records, which the divergence is measured
    on. read: what an answer is scored as.
    """
    for arm in arms:
        arm.check()
    left = [arm for arm in arms if not all(answers_file(arm, step).is_file() for step in steps_of(arm))]
    some = sample(questions, ANSWERED)
    return [(f"{arm.name}, {arm.folder}", ask_checkpoints, (arm, some, first, read)) for arm in left]


def ask_checkpoints(arm: Arm, questions: Sequence[Question], first: Path, read: Callable[[str, Question], str]) -> None:
    """A job: trains an arm, writes the answers at each of its steps, and removes its checkpoints."""
    run_arm(arm)
    with logged(arm.folder / "answers.log"):
        model, _ = arm.trained
        for step in steps_of(arm):
            adapter = arm.folder / "run" / "checkpoints" / f"step-{step}" / "adapter" if step else None
            if not answers_file(arm, step).is_file():
                rows = answer_rows(model, adapter, questions, first, read, arm.hardware)
                answers_file(arm, step).parent.mkdir(exist_ok=True)
                write_jsonl(answers_file(arm, step), rows)
        shutil.rmtree(arm.folder / "run" / "checkpoints", ignore_errors=True)


def answer_rows(
    model: str,
    adapter: Path | None,
    questions: Sequence[Question],
    first: Path,
    read: Callable[[str, Question], str],
    hardware: Hardware,
) -> list[dict]:
    """A record for each question: the answer, its number of words, ``repetition``, ``clinical``, ``facts``, ``kl``."""
    answers = Vqa().ask(load(model, adapter, hardware), questions, max_new_tokens=TOKENS, batch_size=64)
    kl = {row["id"]: row["kl"] for row in divergences(model, adapter, first, hardware)}
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        truth, text = Truth.from_dict(question.truth), read(answer, question)
        rows.append(
            {"id": question.id, "images": question.images, "answer": answer, "words": len(words(answer))}
            | {"repetition": repetition(answer), "clinical": float(says_truth(text, truth))}
            | {"facts": facts_f1(text, truth), "kl": kl.get(question.id)}
        )
    return rows


def answers_table(arms: Mapping[str, Sequence[Arm]], shown: Mapping[str, str]) -> str:
    """The answers after the last step: means with 95 % intervals over images and seeds. shown: score -> heading."""
    lines = [f"| | runs | {' | '.join(shown.values())} |", "|---" * (len(shown) + 2) + "|"]
    lines += [
        f"| {row} | {len(some)} | {' | '.join(_cell(some, name) for name in shown)} |" for row, some in arms.items()
    ]
    return "\n".join(lines)


def last_scores(arms: Sequence[Arm], name: str) -> Scores:
    """A score of the answers after the last step, of those that have it in every run."""
    runs = [read_rows(answers_file(arm, steps_of(arm)[-1])) for arm in arms]
    had = [i for i in range(len(runs[0])) if all(run[i][name] is not None for run in runs)]
    return np.array([[run[i][name] for i in had] for run in runs]), [runs[0][i]["images"][0] for i in had]


def _cell(arms: Sequence[Arm], name: str) -> str:
    values, images = last_scores(arms, name)
    return cell(bootstrap(values, groups=images), name)


def plot_answers(axes: Axes, row: str, base: Arm, arms: Sequence[Arm], name: str, **style) -> None:
    """A line: the mean of a score over the steps, and the range over the seeds.

    base: the policy at step 0. style: of the line, as ``Axes.plot`` takes it.
    """
    steps, factor = [0, *steps_of(arms[0])], scale(name)
    values = np.array([[factor * _mean(arm if step else base, step, name) for step in steps] for arm in arms])
    (line,) = axes.plot(steps, values.mean(0), marker="o", markersize=4, label=row, **style)
    axes.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)


def _mean(arm: Arm, step: int, name: str) -> float:
    return float(np.mean([row[name] for row in read_rows(answers_file(arm, step)) if row[name] is not None]))

"""The disease demo: ``python train.py --loss orpo``, from drawn patients to a table of scores in minutes.

1. A cohort of patients is drawn from a table of real syndromes (``cohort``): notes, and portraits of what their faces
   show. A multimodal teacher sees drawn faces (``faces``), then the notes and portraits of its own patients.
2. The teacher ranks the diseases of other patients: ten likely ones are chosen, fifteen unlikely ones rejected.
3. A tokenizer and a tiny Llama are made (``base``), and the Llama is taught the note and answer format by next-token
   training on a small cohort of its own. All of this is cached.
4. The chosen loss aligns that Llama on the pairs. It reads the notes alone, and is scored on unseen patients before and
   after, beside the teacher with and without the portraits.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mint.config import TrainConfig
from mint.data.cases import Case, diagnosis_messages, format_list, write_note
from mint.data.chat import load_tokenizer
from mint.data.preferences import write_jsonl
from mint.demo.cache import cached
from mint.demo.stages import Train, align, aligned, compare_systems, load_student, teach
from mint.demo.tiny_model import write_base
from mint.prefs.pairs import PairReport, PairSettings, make_pairs
from mint.synthetic.cohort import load_syndromes, sample_cohort
from mint.synthetic.cohort_folder import draw_cohort
from mint.synthetic.faces import fit_faces
from mint.tasks.disease import Disease
from mint.tasks.ranked import rank_lists
from mint.teachers.naive_bayes import NaiveBayesTeacher
from mint.teachers.vilt_teacher import load_teacher
from mint.teachers.vilt_training import FusionSettings, fit_teacher

# patients and seed of the cohorts: the teacher's, the base's, the one that is ranked, the unseen one
SHOWN, TAUGHT, RANKED, UNSEEN = (1200, 10), (400, 11), (1200, 12), (300, 13)
FACES: dict[str, Any] = {"count": 5000, "epochs": 6}
TEACHER = FusionSettings.from_scratch(epochs=8, batch_size=16, lr=1.5e-3, warmup=0.05, held_out=0.05)
TEACH: dict[str, Any] = {"steps": 300, "batch_size": 32, "lr": 3e-3, "weight_decay": 0.1, "adam_beta2": 0.95}
ALIGN: dict[str, Any] = {"steps": 300, "batch_size": 16, "lr": 2e-3, "lora_rank": 128, "lora_alpha": 256.0}
SHAPE, VOCABULARY, VISION = "demo", 3000, None
TIME = "a few minutes"
SOURCES = (
    "demo/disease_demo.py",
    "demo/stages.py",
    "demo/tiny_model.py",
    "synthetic/canvas.py",
    "synthetic/cohort.py",
    "synthetic/cohort_folder.py",
    "synthetic/face.py",
    "synthetic/faces.py",
    "synthetic/facial_terms.tsv",
    "synthetic/features.py",
    "synthetic/head.py",
    "synthetic/portrait.py",
    "synthetic/sketch.py",
    "synthetic/syndromes.tsv",
    "synthetic/package_tables.py",
)


def run(config: TrainConfig, train: Train) -> None:
    """Builds or finds the cache, trains with ``config`` (its settings win over ``ALIGN``), prints the table."""
    folder = prepare(train)
    unseen = config.eval_data or str(folder / "unseen.jsonl")
    align(dataclasses.replace(config, eval_data=unseen), train, ALIGN, folder, compare)


def prepare(train: Train) -> Path:
    """The cache, built if it is not there."""
    return cached("demo", SOURCES, lambda folder: build(folder, train), TIME)


def build(folder: Path, train: Train) -> None:
    """Teacher, pairs, tokenizer and taught model."""
    patients = sum(count for count, _ in (SHOWN, RANKED, UNSEEN))
    print(f"1/4 portraits of {patients} patients")
    shown, ranked, unseen = (draw_cohort(*cohort, folder / "portraits") for cohort in (SHOWN, RANKED, UNSEEN))
    print(f"2/4 the teacher: {FACES['count']} drawn faces, then {SHOWN[0]} patients")
    fit_faces(shown, folder / "faces", **FACES)
    teacher = fit_teacher(shown, folder / "teacher", TEACHER, base=str(folder / "faces"))
    print("3/4 the teacher ranks the diseases of other patients")
    for name, cases in (("pairs", ranked), ("unseen", unseen)):
        report = PairReport()
        write_jsonl(folder / f"{name}.jsonl", make_pairs(Disease(), cases, teacher, PairSettings(), report))
        print(f"{name}: {report}")
    print(f"4/4 a tiny Llama learns the form of notes and answers on {TAUGHT[0]} patients")
    build_base(folder, train)
    shutil.rmtree(folder / "faces")


def build_base(folder: Path, train: Train) -> None:
    """A tiny Llama taught the form of notes and answers, in ``folder/model``."""
    taught = sample_cohort(*TAUGHT)
    lessons = PairSettings(label_first=True, variants=4)
    pairs = make_pairs(Disease(), taught, NaiveBayesTeacher(taught), lessons, PairReport(), held_out=False)
    write_jsonl(folder / "lessons.jsonl", pairs)
    write_base(folder / "blank", texts(taught), SHAPE, VOCABULARY)
    teach(folder / "blank", folder / "lessons.jsonl", TEACH, train, folder / "model")


def texts(cases: Sequence[Case]) -> list[str]:
    """What the tokenizer is trained on: prompts, and every syndrome as a list would name it."""
    notes = [message["content"] for case in cases for message in diagnosis_messages(write_note(case))]
    names = [syndrome.name for syndrome in load_syndromes()]
    roles = ["system", "user", "assistant"]
    return notes + [format_list(names)] * 50 + roles * len(notes)


def compare(config: TrainConfig, folder: Path, cache: Path) -> None:
    """Scores teacher and student on unseen patients; prints the table, saves it and a page with the run."""
    cases = draw_cohort(*UNSEEN, folder / "portraits")
    task = Disease([syndrome.name for syndrome in load_syndromes()], training=sample_cohort(*RANKED))
    both, text = (
        rank_lists(cases, load_teacher(cache / "teacher", view=view), 10, 15, held_out=True)
        for view in ("both", "text")
    )
    task.refer_to("teacher", cases, both)
    assert config.model is not None  # ``align`` sets it
    answers = {  # system -> (its folder, answers)
        "teacher, image + text": (folder / "teacher-both", list(map(task.format, both.top))),
        "teacher, text only": (folder / "teacher-text", list(map(task.format, text.top))),
        "student before (text only)": (folder / "before", decode(task, config.model, None, cases)),
        "student after (text only)": (folder, decode(task, *aligned(config, folder), cases)),
    }
    compare_systems(task, cases, answers, folder, config.loss)


def decode(task: Disease, model_dir: str, adapter: Path | None, cases: Sequence[Case]) -> list[str]:
    """The answers of a model to every case."""
    loaded = load_student(model_dir, adapter), load_tokenizer(model_dir)
    return task.ask(loaded, cases, max_new_tokens=160, batch_size=64)

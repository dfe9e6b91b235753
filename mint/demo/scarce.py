"""Scarce diagnoses: what a student learns from a teacher that sees more than the student's own data contain.

T patients have a portrait, a note and a diagnosis; 1,200 others have a portrait and a note. A teacher is fitted on the
T and ranks the diseases of the 1,200. The student reads notes alone. All arms start from one base, which can list the
findings of a note and knows the form of an answer (random diseases). They are scored on the same 600 unseen patients:

    SFT on the T diagnoses
    SFT and ORPO on the lists of a teacher that reads the notes alone (naive Bayes)
    SFT and ORPO on the lists of the teacher that sees the portraits as well
    SFT on the true diagnoses of all 1,200: what more labels would give
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from mint.data.cases import SYSTEM, Case, Term, diagnosis_messages, format_list, in_prose, write_note
from mint.data.preferences import write_jsonl
from mint.demo.arms import Arm, Exam
from mint.demo.stages import Train, teach
from mint.demo.tiny_model import write_base
from mint.models import save_model
from mint.models.face_reader import FaceReader
from mint.prefs.pairs import PairReport, PairSettings, make_pairs
from mint.synthetic.cohort import load_syndromes, sample_cohort
from mint.synthetic.cohort_folder import draw_portraits, place_cohort
from mint.synthetic.faces import draw_faces
from mint.tasks.disease import Disease
from mint.teachers.findings_teacher import READING, FindingsTeacher, fit_reader, load_reader
from mint.teachers.naive_bayes import NaiveBayesTeacher
from mint.teachers.ranking import Teacher

UNDIAGNOSED, READ, UNSEEN = 1200, (3000, 11), 17  # patients, and seeds of those that all draws share
FINDINGS = (12, 4)  # of a drawn face, mean and deviation
PAIRS = PairSettings(top_k=3, bottom_q=3, variants=12, drop_terms=0.5, rank_by="case")
BASE = {"nll_over": "sequence", "steps": 300, "batch_size": 32, "lr": 2e-3, "weight_decay": 0.1, "adam_beta2": 0.95}
ALIGN = {"steps": 330, "batch_size": 48, "lr": 3e-3, "full": True, "weight_decay": 0.01, "adam_beta2": 0.95}
LENGTHS = 10, 15  # of the teacher's best and worst lists, to which coverage and avoidance refer
SHAPE, VOCABULARY = "shallow", 3000
LIST_FINDINGS, FINDINGS_HEADER = "List the findings of this patient.", "FINDINGS:"
TEXT, BOTH = "text-only teacher", "image + text teacher"
ROWS = {  # row -> loss, pairs
    "SFT on the T diagnoses": ("sft", "diagnoses"),
    f"SFT, lists of the {TEXT}": ("sft", "text"),
    f"ORPO, lists of the {TEXT}": ("orpo", "text"),
    f"SFT, lists of the {BOTH}": ("sft", "both"),
    f"ORPO, lists of the {BOTH}": ("orpo", "both"),
    "SFT on all diagnoses": ("sft", "all"),
}


def random_faces(count: int, folder: Path, seed: int = 0) -> list[Case]:
    """Drawn faces with findings at random, whatever diseases have them together, and the labels of these findings."""
    labels = {f.id: f.label for syndrome in load_syndromes() for f in syndrome.features if f.facial}
    rng, ids = random.Random(f"findings {seed}"), sorted(labels)
    sets = [rng.sample(ids, max(1, min(len(ids), round(rng.gauss(*FINDINGS))))) for _ in range(count)]
    faces = draw_faces(count, folder, sets, seed)
    return [replace(f, facial=tuple(Term(term.id, labels[term.id]) for term in f.facial)) for f in faces]


def find_reader(root: Path, count: int = 0) -> FaceReader:
    """The network that names findings of faces, in ``root/reader``; trained on ``count`` faces unless it is there."""
    if not (root / "reader").is_dir():
        write_reader(root / "reader", count)
    return load_reader(root / "reader")


def write_reader(folder: Path, count: int, seed: int = 0) -> None:
    """Draws ``count`` faces, and trains a network to name their findings."""
    with TemporaryDirectory() as faces:
        save_model(fit_reader(random_faces(count, Path(faces), seed), replace(READING, seed=seed)), folder)


def teach_reading(folder: Path, train: Train, k: int = PAIRS.top_k) -> Path:
    """A tiny Llama that can read notes and knows the form of an answer, in ``folder/model``.

    Half of its lessons ask for a note's findings, half for ``k`` diseases, which are answered at random. The loss is
    that of every token, so that it learns the notes as well: a stand-in for the pretraining of a large model.
    """
    names, rng = [syndrome.name for syndrome in load_syndromes()], random.Random(0)
    lessons = []
    for place, case in enumerate(sample_cohort(*READ)):
        note = write_note(case, rng)
        if place % 2:
            findings = [in_prose(term.label) for term in rng.sample(case.observed, len(case.observed))]
            messages, answer = ask_for_findings(note), format_list(findings, FINDINGS_HEADER)
        else:
            messages, answer = diagnosis_messages(note), format_list(rng.sample(names, k))
        lessons.append({"id": case.id, "prompt": messages, "chosen": answer})
    write_jsonl(folder / "lessons.jsonl", lessons)
    write_base(folder / "blank", texts(lessons, names), SHAPE, VOCABULARY)
    return teach(folder / "blank", folder / "lessons.jsonl", BASE, train, folder / "model")


def ask_for_findings(note: str) -> list[dict]:
    """The prompt of the other half of the lessons."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{note}\n\n{LIST_FINDINGS}"}]


def texts(lessons: Sequence[Mapping], names: Sequence[str]) -> list[str]:
    """What the tokenizer is trained on: prompts and answers, every syndrome as a list would name it, and roles."""
    found = [message["content"] for lesson in lessons for message in lesson["prompt"]]
    found += [lesson["chosen"] for lesson in lessons]
    return found + [format_list(names)] * 50 + ["system", "user", "assistant"] * len(lessons)


@dataclass(frozen=True)
class Study:
    """One draw of the experiment: the patients of a seed, T = ``diagnosed`` of them with a diagnosis.

    root: the folder of the whole experiment; portraits and what is made already are found there. unseen: patients that
    the arms are scored on, the same for all seeds.
    """

    root: Path
    diagnosed: int
    seed: int = 0
    unseen: int = 600

    @property
    def folder(self) -> Path:
        return self.root / f"seed-{self.seed}" / f"diagnosed-{self.diagnosed}"

    @cached_property
    def known(self) -> list[Case]:
        """The patients with a diagnosis."""
        return place_cohort(self.diagnosed, 100 + 2 * self.seed, self.root / "portraits")

    @cached_property
    def others(self) -> list[Case]:
        """Those without: their ``disease`` is read for the upper bound alone."""
        return place_cohort(UNDIAGNOSED, 101 + 2 * self.seed, self.root / "portraits")

    @cached_property
    def exam(self) -> Exam:
        return Exam(place_cohort(self.unseen, UNSEEN, self.root / "portraits"), [s.name for s in load_syndromes()])

    def draw(self) -> None:
        """Draws the portraits that are not there."""
        draw_portraits([*self.known, *self.others, *self.exam.cases])

    def teachers(self) -> dict[str, Teacher]:
        """What ranks: row -> teacher, fitted on the diagnosed patients."""
        self.draw()
        return {TEXT: NaiveBayesTeacher(self.known), BOTH: FindingsTeacher.fit(find_reader(self.root), self.known)}

    def arms(self, *rows: str) -> list[Arm]:
        """The arms of ``ROWS`` with these names, by default all; their pairs are written unless they are there.

        Raises InputError if the folder cannot be written.
        """
        made = []
        for row in rows or ROWS:
            loss, data = ROWS[row]
            folder = self.folder.parent if data == "all" else self.folder  # which is the same for every T
            pairs = folder / f"{data}.jsonl"
            if not pairs.is_file():
                self._write_pairs(data, pairs)
            settings = {"loss": loss, "data": str(pairs), "seed": self.seed, **ALIGN}
            made.append(Arm(row, folder / f"{loss}-{data}", self.root / "model", settings))
        return made

    def _write_pairs(self, data: str, file: Path) -> None:
        cases, form = self.others, PAIRS
        if data in ("diagnoses", "all"):
            cases, form = self.known if data == "diagnoses" else self.others, replace(PAIRS, answer="disease")
            teacher: Teacher = NaiveBayesTeacher(cases)  # of the rejected names
        else:
            teacher = NaiveBayesTeacher(self.known) if data == "text" else self.teachers()[BOTH]
        records = make_pairs(Disease(), cases, teacher, form, PairReport(), held_out=cases is not self.known)
        write_jsonl(file, records)

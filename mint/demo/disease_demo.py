"""The disease demo: ``python train.py --loss orpo``, MINT with few diagnosed patients (:mod:`mint.demo.scarce`).

1. A network learns to name the findings of drawn faces. With it, and the notes and diagnoses of 200 patients, a
   teacher ranks the diseases of 1,200 others from portrait and note. Meanwhile the arms that need no portrait are
   trained: SFT on the 200 diagnoses, and ORPO on the lists of a teacher that reads notes alone. All of this is cached.
2. The chosen loss aligns the base on the lists of the teacher that sees. The student reads the notes alone; all are
   scored on the same unseen patients.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mint.config import TrainConfig
from mint.data.preferences import write_jsonl
from mint.demo.arms import arm_jobs, logged, side_by_side
from mint.demo.cache import cached
from mint.demo.scarce import ALIGN, BOTH, LENGTHS, PAIRS, TEXT, UNDIAGNOSED, Study, find_reader, teach_reading
from mint.demo.stages import Train, align, aligned, compare_systems
from mint.prefs.pairs import PairReport, make_pairs
from mint.tasks.disease import Disease
from mint.tasks.ranked import rank_lists

DIAGNOSED, UNSEEN, FACES = 200, 400, 4500
QUESTION = (
    f"{DIAGNOSED + UNDIAGNOSED:,} patients have a portrait and a note, and {DIAGNOSED} of them a diagnosis. Does a "
    f"model that reads notes\nlearn more from a teacher that sees the other {UNDIAGNOSED:,} portraits than from the "
    f"{DIAGNOSED} diagnoses themselves?\n"
)
COMPARED = ("SFT on the T diagnoses", f"ORPO, lists of the {TEXT}")
VISION, TIME = None, "about seven minutes"
DRAWING = "canvas cohort cohort_folder face faces features head package_tables portrait sketch".split()
SOURCES = (
    *(f"synthetic/{name}.py" for name in DRAWING),
    *("synthetic/facial_terms.tsv", "synthetic/syndromes.tsv", "models/face_reader.py", "prefs/pairs.py"),
    *(f"teachers/{name}.py" for name in ("findings_teacher", "naive_bayes")),
    *(f"demo/{name}.py" for name in ("arms", "disease_demo", "scarce", "stages", "tiny_model")),
)


def run(config: TrainConfig, train: Train) -> None:
    """Builds or finds the cache, trains with ``config`` (its settings win over ``ALIGN``), prints the table."""
    print(QUESTION)
    folder = cached("demo", SOURCES, lambda folder: build(folder, train), TIME)
    unseen = config.eval_data or str(folder / "unseen.jsonl")
    align(dataclasses.replace(config, eval_data=unseen), train, ALIGN, folder, compare)


def build(folder: Path, train: Train) -> None:
    """The base, the teacher, its pairs, and the answers of the arms that the student is compared with."""
    print("1/3 a tiny Llama learns to read notes and to answer, from random lists")
    with logged(folder / "base.log"):
        teach_reading(folder, train)
    print("2/3 a network learns to read faces; beside it, the arms that see none are trained")
    study = Study(folder, DIAGNOSED, unseen=UNSEEN)
    faces = ("a network that names the findings of faces", learn_to_see, (folder,))
    portraits = ("the patients' portraits", draw, (study,))
    side_by_side([faces, *arm_jobs(study.arms(*COMPARED), study.exam), portraits])
    print(f"3/3 the teacher ranks the diseases of {UNDIAGNOSED:,} patients")
    teacher = study.teachers()[BOTH]
    form = dataclasses.replace(PAIRS, variants=1)
    for name, cases, settings in (("pairs", study.others, PAIRS), ("unseen", study.exam.cases, form)):
        report = PairReport()
        write_jsonl(folder / f"{name}.jsonl", make_pairs(Disease(), cases, teacher, settings, report))
        print(f"{name}: {report}")


def learn_to_see(folder: Path) -> None:
    """A job of the build."""
    with logged(folder / "reader.log"):
        find_reader(folder, FACES)


def draw(study: Study) -> None:
    """Another: what the network will read."""
    with logged(study.root / "portraits.log"):
        study.draw()


def compare(config: TrainConfig, folder: Path, cache: Path) -> None:
    """Scores all systems on the unseen patients; prints the table, saves it and a page with the run."""
    study = Study(cache, DIAGNOSED, unseen=UNSEEN)
    exam, task = study.exam, Disease(study.exam.names, training=study.others)
    lists = {name: rank_lists(exam.cases, teacher, *LENGTHS) for name, teacher in study.teachers().items()}
    task.refer_to(BOTH, exam.cases, lists[BOTH])
    assert config.model is not None  # ``align`` sets it
    answers = {  # system -> (its folder, answers)
        name: (folder / name.replace(" ", "-"), list(map(task.format, lists[name].top))) for name in (BOTH, TEXT)
    }
    for arm in study.arms(*COMPARED):
        answers[arm.name] = (folder / arm.folder.name, arm.answers(exam))
    answers["student before"] = (folder / "before", exam.ask("rank", config.model, None))
    answers["student after"] = (folder, exam.ask("rank", *aligned(config, folder)))
    compare_systems(task, exam.cases, answers, folder, config.loss)

"""Preferences beyond imitation: does a rejected list teach more than the chosen one alone, and which one?

    python -m benchmarks.rejected_lists --out DIR [--seeds 3]

DIR is that of ``scarce_diagnoses``, or a new one. All arms start from the student that SFT made of the lists of the
teacher that sees, and train for the same number of steps on the same notes (but those on which the student agrees
with the teacher, for its own lists). Each has the learning rate that does best
on a cohort of its own:

    SFT continued
    ORPO and DPO; the rejected list is the teacher's last names, random names, or the student's own worst sample
    FiRe without image terms (gamma 0): the student's own list, and its minimal edit towards the teacher

The answers are decoded in three ways: names ranked, lists written greedily, lists sampled as in the paper.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.command import make_parser, run
from benchmarks.scarce_diagnoses import FACES, UNSEEN
from mint.data.chat import load_tokenizer
from mint.data.preferences import write_jsonl
from mint.demo.arms import SAMPLING, Arm, Exam, arm_jobs, load_train, logged, side_by_side
from mint.demo.scarce import ALIGN, BOTH, LENGTHS, PAIRS, Study, find_reader, teach_reading
from mint.demo.stages import load_student
from mint.errors import InputError
from mint.evaluation.scores import means_table
from mint.files import write_aside
from mint.prefs.pairs import PairReport, make_pairs
from mint.prefs.policy_lists import ON_POLICY, Policy
from mint.synthetic.cohort_folder import place_cohort
from mint.tasks.base import save_results, score_answers
from mint.tasks.compare import load_systems
from mint.tasks.compare_page import save_comparison
from mint.tasks.disease import Disease
from mint.tasks.ranked import rank_lists

DIAGNOSED, STEPS, RATES, SAMPLES = 200, 100, (1e-4, 3e-4, 1e-3), 4
TUNING = (300, 14)  # patients and seed of the cohort on which the rates are chosen, with seed 0 of the study
WAYS = ("rank", "greedy", "sample")
FORM = replace(PAIRS, variants=3)
START = f"SFT, lists of the {BOTH}"
ROWS = {  # row -> loss, rejected lists
    "SFT continued": ("sft", "bottom"),
    "ORPO, last names rejected": ("orpo", "bottom"),
    "ORPO, random names rejected": ("orpo", "random"),
    "ORPO, own samples rejected": ("orpo", "policy"),
    "DPO, last names rejected": ("dpo", "bottom"),
    "DPO, random names rejected": ("dpo", "random"),
    "DPO, own samples rejected": ("dpo", "policy"),
    "FiRe on edits of own lists": ("fire", "edit"),
}


def run_studies(args: argparse.Namespace) -> str:
    """Draws, trains and asks what is missing; saves the comparison of each way of decoding, and returns the tables.

    Raises InputError for numbers out of range, or a folder that cannot be written.
    """
    if args.seeds < 1:
        raise InputError("--seeds must be at least 1")
    root = Path(args.out)
    find_reader(root, FACES)
    if not (root / "model").is_dir():
        teach_reading(root, load_train())
    studies = [Study(root, DIAGNOSED, seed, UNSEEN) for seed in range(args.seeds)]
    side_by_side([job for study in studies for job in arm_jobs([start(study)], study.exam)])
    side_by_side([(f"pairs of seed {study.seed}", write_pairs, (study, model_of(study))) for study in studies])
    tuning = Exam(place_cohort(*TUNING, root / "portraits"), studies[0].exam.names)
    side_by_side(arm_jobs([arm for row in ROWS for arm in tried(studies[0], row)], tuning))
    rates = {row: best_rate(tried(studies[0], row), tuning) for row in ROWS}
    write_aside(root / "preferences" / "rates.json", json.dumps(rates, indent=2) + "\n")
    arms = {study: [arm_of(study, row, rates[row]) for row in ROWS] for study in studies}
    exam = replace(studies[0].exam, ways=WAYS)
    side_by_side([job for study, some in arms.items() for job in arm_jobs([before(study), *some], exam)])
    asked = {study: [before(study), *some] for study, some in arms.items()}
    return "\n\n".join(f"{way}\n\n{compare_way(root / 'preferences' / way, way, asked)}" for way in WAYS)


def start(study: Study) -> Arm:
    """The arm whose student all others start from."""
    return study.arms(START)[0]


def model_of(study: Study) -> Path:
    return start(study).folder / "run" / "model"


def before(study: Study) -> Arm:
    """That student as it is, decoded in all ways."""
    return Arm("SFT, the start", study.folder / "preferences" / "start", model_of(study))


def arm_of(study: Study, row: str, rate: float, place: str = "") -> Arm:
    loss, rejected = ROWS[row]
    folder = study.folder / "preferences" / f"{place}{loss}-{rejected}"
    data = study.folder / "preferences" / f"{rejected}.jsonl"
    settings = {**ALIGN, "loss": loss, "data": str(data), "steps": STEPS, "lr": rate, "seed": study.seed}
    if loss == "fire":
        settings["gamma"] = 0.0
    return Arm(row, folder, model_of(study), settings)


def tried(study: Study, row: str) -> list[Arm]:
    """The arm with each of the learning rates."""
    return [arm_of(study, row, rate, f"tuning/{rate:g}-") for rate in RATES]


def best_rate(arms: Sequence[Arm], exam: Exam) -> float:
    """The learning rate of the arm with the most true diseases ranked first."""
    task = Disease(exam.names)
    scores = [score_answers(task, arm.name, exam.cases, arm.answers(exam)).means["top_1_id"].value for arm in arms]
    return float(arms[scores.index(max(scores))].settings["lr"])


def write_pairs(study: Study, model: Path) -> None:
    """A job: the pairs of every kind of rejected list, unless they are there."""
    folder = study.folder / "preferences"
    with logged(folder / "pairs.log"):
        teacher = study.teachers()[BOTH]
        for reject in sorted({rejected for _, rejected in ROWS.values()}):
            file = folder / f"{reject}.jsonl"
            if file.is_file():
                continue
            report, form = PairReport(), replace(FORM, reject=reject)
            policy = policy_of(model, reject, study.seed)
            write_jsonl(file, make_pairs(Disease(), study.others, teacher, form, report, policy=policy))
            print(f"{reject}: {report}")


def policy_of(model: Path, reject: str, seed: int) -> Policy | None:
    """The student that writes rejected lists, by samples as in the paper, or greedily to be edited; None without."""
    if reject not in ON_POLICY:
        return None
    loaded = load_student(str(model), None), load_tokenizer(str(model))
    decoding = {"max_new_tokens": 60, "batch_size": 64, "seed": seed}
    return Policy(loaded, **decoding) if reject == "edit" else Policy(loaded, SAMPLES, **decoding, **SAMPLING)


def compare_way(folder: Path, way: str, arms: dict[Study, list[Arm]]) -> str:
    """Scores all arms by one way of decoding; writes the comparison over the seeds, and returns its table."""
    rows: dict[str, list[Path]] = {}
    for study, some in arms.items():
        task, cases = Disease(study.exam.names, training=study.others), study.exam.cases
        task.refer_to(BOTH, cases, rank_lists(cases, study.teachers()[BOTH], *LENGTHS))
        for arm in some:
            place = arm.folder / f"scores-{way}"
            result = score_answers(task, arm.name, cases, arm.answers(study.exam, way), place)
            save_results(task, place, [result], {"decode": way})
            rows.setdefault(arm.name, []).append(place)
    runs = [f"{name}={','.join(map(str, places))}" for name, places in rows.items()]
    save_comparison(runs, folder, baseline="SFT continued")
    systems = load_systems(runs)
    return means_table({system.name: system.estimates for system in systems}, Disease.columns)


def main() -> int:
    return run(make_parser(__doc__, seeds=3), run_studies)


if __name__ == "__main__":
    sys.exit(main())

"""The embedded comparison: alignment methods for the same text-only student, over several seeds.

Every seed samples its own patients, ranks their diseases with the cached teacher, and trains from the cached base: on
the true disease (SFT), on the teacher's list (SFT), from there on the pairs (DPO), and on the pairs (ORPO). Retrieval
adds the seed's patients to the base's prompt. All are scored on the same unseen patients, against the teacher's lists.

    python -m benchmarks.embedded_seeds --out DIR [--seeds 5]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.command import make_parser, run
from mint.config import TrainConfig
from mint.data.cases import Case, write_note
from mint.data.preferences import write_jsonl
from mint.data.retrieval import Retriever, describe_cases
from mint.demo.disease_demo import ALIGN, decode, prepare
from mint.errors import InputError
from mint.prefs.pairs import PairReport, PairSettings, make_pairs
from mint.synthetic.cohort import load_syndromes
from mint.synthetic.cohort_folder import draw_cohort
from mint.tasks.base import save_results, score_answers
from mint.tasks.disease import Disease
from mint.tasks.ranked import rank_lists
from mint.teachers.vilt_teacher import load_teacher
from train import train

TRAINED = 1200  # patients of every seed
UNSEEN = (600, 77)  # patients and their seed; not those of seed 13, on which the settings were chosen
PASSAGES = 3
VIEWS = {"teacher, image + text": "both", "teacher, image only": "image", "teacher, text only": "text"}
METHODS = {  # name of the row -> loss, answers of the pairs, settings beyond ALIGN
    "SFT, true disease": ("sft", "disease", {}),
    "SFT, teacher's list": ("sft", "ranking", {}),
    "DPO from SFT": ("dpo", "ranking", {"lr": 5e-5}),
    "ORPO": ("orpo", "ranking", {}),
}


class Scoring:
    """Scores answers for the unseen patients, and saves them as ``evaluate.py`` does."""

    def __init__(self, cache: Path, out: Path):
        self.out, self.cases = out, draw_cohort(*UNSEEN, out / "portraits")
        self.views = {
            row: rank_lists(self.cases, load_teacher(cache / "teacher", view=view), 10, 15)
            for row, view in VIEWS.items()
        }

    def task(self, training: list[Case]) -> Disease:
        """The task, with the teacher's lists. training: what tells how common a disease is."""
        task = Disease([syndrome.name for syndrome in load_syndromes()], training)
        task.refer_to("teacher", self.cases, self.views["teacher, image + text"])
        return task

    def save(self, place: str, row: str, answers: list[str], training: list[Case]) -> str:
        """The folder the evaluation was written to."""
        folder, task = self.out / place, self.task(training)
        result = score_answers(task, row, self.cases, answers, folder)
        save_results(task, folder, [result], {"cases": len(self.cases), "row": row})
        return str(folder)


def run_seeds(out: str | Path, seeds: int) -> list[str]:
    """Trains and scores all methods for ``seeds`` seeds; returns the arguments for ``evaluate.py compare``.

    Raises InputError for fewer than one seed, or a folder that is in use.
    """
    out = Path(out)
    if seeds < 1:
        raise InputError(f"at least one seed, not {seeds}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; give another folder")
    cache = prepare(train)
    scoring = Scoring(cache, out)
    rows: dict[str, list[str]] = {}
    for seed in range(seeds):
        patients = draw_cohort(TRAINED, 100 + seed, out / f"seed-{seed}" / "portraits")
        if seed == 0:
            task = Disease()
            for row, lists in scoring.views.items():
                answers = list(map(task.format, lists.top))
                rows[row] = [scoring.save(f"teacher-{VIEWS[row]}", row, answers, patients)]
            answers = decode(task, str(cache / "model"), None, scoring.cases)
            rows["base"] = [scoring.save("base", "base", answers, patients)]
        for row, place, answers in run_seed(seed, cache, out, scoring, patients):
            rows.setdefault(row, []).append(scoring.save(place, row, answers, patients))
    return [f"{row}={','.join(places)}" for row, places in rows.items()]


def run_seed(
    seed: int, cache: Path, out: Path, scoring: Scoring, patients: list[Case]
) -> Iterator[tuple[str, str, list[str]]]:
    """(row, place under ``out``, answers) of every method."""
    base, folder = str(cache / "model"), out / f"seed-{seed}"
    teacher, task = load_teacher(cache / "teacher"), Disease()
    for answer in ("disease", "ranking"):
        pairs = make_pairs(task, patients, teacher, PairSettings(answer=answer), PairReport())
        write_jsonl(folder / f"{answer}.jsonl", pairs)
    notes = [write_note(case) for case in scoring.cases]
    passages = Retriever(describe_cases(patients)).retrieve(notes, PASSAGES)
    retrieval = Disease()
    retrieval.passages = dict(zip(scoring.cases, passages, strict=True))
    yield "retrieval (base)", f"seed-{seed}/retrieval/scores", decode(retrieval, base, None, scoring.cases)
    sft = folder / "sft-ranking"
    for row, (loss, answer, settings) in METHODS.items():
        target = folder / f"{loss}-{answer}"
        start = {"adapter": str(sft / "adapter")} if loss == "dpo" else {}
        data = str(folder / f"{answer}.jsonl")
        train(
            TrainConfig(
                loss=loss,
                model=base,
                data=data,
                out=str(target),
                device="cpu",
                seed=seed,
                **{**ALIGN, **settings, **start},
            )
        )
        yield row, f"seed-{seed}/{target.name}/scores", decode(task, base, target / "adapter", scoring.cases)


def main() -> int:
    return run(make_parser(__doc__, seeds=5), lambda args: run_seeds(args.out, args.seeds))


if __name__ == "__main__":
    sys.exit(main())

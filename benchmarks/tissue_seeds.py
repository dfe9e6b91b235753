"""The embedded tissue task over several seeds: methods of alignment compared on the same image-reading student.

Every seed draws its own tiles, has them ranked by the one cached teacher, and trains from the one cached base. All are
scored on the same unseen tiles, against the teacher's lists.

    python -m benchmarks.tissue_seeds --out DIR [--seeds 5]
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.command import make_parser, run
from benchmarks.tissue_methods import Method, align, save
from mint.demo.tissue_demo import ALIGN, TISSUES, decode, prepare
from mint.errors import InputError
from mint.synthetic.tiles_folder import draw_tiles
from mint.tasks.tissue import Tissue
from mint.teachers.clip_teacher import load_zero_shot
from train import train

RANKED = 60  # tiles of every tissue and seed, as in the demo
UNSEEN = (30, 77)  # tiles of every tissue, and their seed; not those of seed 23, on which the settings were chosen
METHODS = {
    "SFT, true tissue": Method("sft", "disease"),
    "SFT, teacher's list": Method("sft"),
    "DPO from SFT": Method("dpo", from_sft=True, settings={"steps": 300, "lr": 2e-6}),
    "ORPO": Method("orpo"),
}


def run_seeds(out: Path, seeds: int) -> list[str]:
    """Trains and scores all methods; returns the arguments for ``evaluate.py compare``.

    Raises InputError for fewer than one seed, or a folder that is in use.
    """
    if seeds < 1:
        raise InputError(f"at least one seed, not {seeds}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; give another folder")
    cache = prepare(train)
    teacher, base = load_zero_shot(cache / "teacher", TISSUES), str(cache / "model")
    unseen = draw_tiles(*UNSEEN, out / "tiles")
    task = Tissue(TISSUES)
    task.rank(unseen, teacher)
    rows = {
        "teacher": [save(out / "teacher", "teacher", unseen, task.teacher_answers(unseen), task)],
        "base": [save(out / "base", "base", unseen, decode(task, base, None, unseen), task)],
    }
    for seed in range(seeds):
        folder = out / f"seed-{seed}"
        tiles = draw_tiles(RANKED, 100 + seed, folder / "tiles")
        for row, model, adapter in align(base, tiles, teacher, folder, METHODS, {**ALIGN, "seed": seed}):
            answers = decode(task, model, adapter, unseen)
            place = adapter.parent / "scores"
            rows.setdefault(row, []).append(save(place, row, unseen, answers, task))
    return [f"{row}={','.join(places)}" for row, places in rows.items()]


def main() -> int:
    return run(make_parser(__doc__, seeds=5), lambda args: run_seeds(Path(args.out), args.seeds))


if __name__ == "__main__":
    sys.exit(main())

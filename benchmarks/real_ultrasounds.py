"""FiRe-MPO on real breast ultrasounds (BUSI): a small policy, its own answers, their edits, scores on unseen images.

    python generate_prefs.py questions --lesions labels.tsv --views 12        # beside the images
    python -m benchmarks.real_ultrasounds --set DIR --out OUT [--seeds 3]

The policy is the embedded default's model for synthetic radiographs, fine-tuned on the lessons of the set
(descriptions, then answers). It answers the questions of the set; its answers are edited and the lesions inpainted
inside their true masks. Every method starts from it with the same pairs. Scored on images that neither lessons nor
questions contain.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from benchmarks import command
from benchmarks.command import make_parser
from benchmarks.fire.methods import METHODS, align, compare
from mint.data.preferences import write_jsonl
from mint.demo.radiograph_demo import DESCRIBING, TEACH, contrast_images, make_pairs, prepare, score
from mint.demo.stages import teach
from mint.errors import InputError
from mint.prefs.lesion_questions import DESCRIBE
from train import train

ROWS = ("SFT", "DPO", "RRPO", "FiRe")


def run(folder: Path, out: Path, seeds: int) -> str:
    """Fine-tunes, samples, aligns and scores; returns the table. Continues a stopped run.

    Raises InputError for no seed, or a folder without the question files.
    """
    if seeds < 1:
        raise InputError(f"at least one seed, not {seeds}")
    missing = [name for name in ("lessons.jsonl", "questions.jsonl", "test.jsonl") if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} has no {missing[0]}: write it with generate_prefs.py questions --lesions TABLE")
    lessons = [json.loads(line) for line in (folder / "lessons.jsonl").read_text(encoding="utf-8").splitlines()]
    descriptions = folder / "descriptions.jsonl"  # beside the lessons, whose images it names
    write_jsonl(descriptions, (lesson for lesson in lessons if lesson["prompt"][0]["content"] == DESCRIBE))
    out.mkdir(parents=True, exist_ok=True)
    model = str(teach_policy(folder, descriptions, out))
    painted = contrast_images(folder, out / "contrasts")
    print(score("base", model, None, out / "base", folder, painted))
    pairs, kept = folder / "pairs.jsonl", out / "pairs.jsonl"  # beside the images, and of which policy they are
    if not (kept.is_file() and pairs.is_file() and kept.read_bytes() == pairs.read_bytes()):
        make_pairs(folder, Path(model))
        shutil.copyfile(pairs, kept)
    rows = {"base": [out / "base"]}
    methods = {row: METHODS[row] for row in ROWS}
    for seed in range(seeds):
        place = out / f"seed-{seed}"
        for row, scores in align(model, pairs, place, methods, {"seed": seed}, folder, painted):
            rows.setdefault(row, []).append(scores)
        print(compare(rows, out), flush=True)
    return compare(rows, out)


def teach_policy(folder: Path, descriptions: Path, out: Path) -> Path:
    """The directory of the taught policy, from ``out`` if it is there."""
    done, described = out / "policy", out / "described"
    if not (done / "config.json").is_file():
        shutil.rmtree(described, ignore_errors=True)
        teach(prepare(train) / "model", descriptions, DESCRIBING, train, described)
        teach(described, folder / "lessons.jsonl", TEACH, train, done)
    return done


def main() -> int:
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--set", required=True, metavar="DIR", help="where the question files and images lie")
    return command.run(parser, lambda args: run(Path(args.set), Path(args.out), args.seeds))


if __name__ == "__main__":
    sys.exit(main())

"""FiRe-MPO on real breast ultrasounds (BUSI): a small policy, its own answers, their edits, scores on unseen images.

    python generate_prefs.py questions --lesions labels.tsv --views 12        # beside the images
    python -m benchmarks.real_ultrasounds --set DIR --out OUT [--seeds 3]

The policy starts from the embedded default's model for synthetic radiographs. Its tower learns to tell the facts of the
lessons' images; what a linear probe reads from it, fitted to the images of the questions and tested on the unseen ones,
is written to ``probes.md``. Then all weights learn the lessons (descriptions, then answers). The policy answers the
questions of the set; its answers are edited and the lesions inpainted inside their true masks. Every method starts from
it with the same pairs. Scored on images that neither lessons nor questions contain.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from benchmarks import command
from benchmarks.command import make_parser
from benchmarks.fire.methods import ON_IMAGES, OURS, align, compare
from benchmarks.fire.probe import tower_features, write_probes
from benchmarks.fire.tower import UNKNOWN, teach_tower
from mint.data.preferences import write_jsonl
from mint.demo.radiograph_demo import ALIGN, DESCRIBING, TEACH, contrast_images, load, make_pairs, prepare, score
from mint.demo.stages import teach
from mint.errors import InputError
from mint.models import save_model
from mint.models.llava import Llava
from mint.prefs.claims import DEGREES
from mint.prefs.lesion_questions import DESCRIBE, ZONES
from mint.synthetic.radiographs import SIDES
from train import train

SLOWER = {row: {"lr": 1e-5} for row in ("DPO", OURS)}  # their sentences break at ALIGN's rate (docs/fire_findings.md)
METHODS = {row: settings | SLOWER.get(row, {"lr": ALIGN["lr"]}) for row, settings in ON_IMAGES.items()}
FACTS = {"present": 2, "side": len(SIDES), "degree": len(DEGREES[0]), "zone": len(ZONES)}  # of a lesion: classes
SIGHT = 3000  # steps of the tower


def run(folder: Path, out: Path, seeds: int) -> str:
    """Fine-tunes, samples, aligns and scores; returns the table. Continues a stopped run.

    Raises InputError for no seed, or a folder without the question files or with those of an earlier version.
    """
    if seeds < 1:
        raise InputError(f"at least one seed, not {seeds}")
    missing = [name for name in ("lessons.jsonl", "questions.jsonl", "test.jsonl") if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} has no {missing[0]}: write it with generate_prefs.py questions --lesions TABLE")
    lessons = [json.loads(line) for line in (folder / "lessons.jsonl").read_text(encoding="utf-8").splitlines()]
    if not all("truth" in lesson for lesson in lessons):
        raise InputError(f"{folder}/lessons.jsonl has no truths: write the question files again")
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
    for seed in range(seeds):
        place = out / f"seed-{seed}"
        for row, scores in align(model, pairs, place, METHODS, {"seed": seed}, folder, painted):
            rows.setdefault(row, []).append(scores)
        print(compare(rows, out), flush=True)
    return compare(rows, out)


def teach_policy(folder: Path, descriptions: Path, out: Path) -> Path:
    """The directory of the taught policy, from ``out`` if it is there."""
    done, sighted, described = out / "policy", out / "sighted", out / "described"
    if not (done / "config.json").is_file():
        if not sighted.is_dir():
            give_sight(prepare(train) / "model", folder, out)
        if not described.is_dir():
            teach(sighted, descriptions, DESCRIBING, train, described)
        teach(described, folder / "lessons.jsonl", TEACH, train, done)
    return done


def give_sight(start: Path, folder: Path, out: Path) -> None:
    """Teaches the tower of the model ``start`` the facts of the lessons; writes ``sighted`` and ``probes.md``."""
    model, _, reader = load(str(start), None)
    files, labels = read_facts(folder / "lessons.jsonl")
    pixels, classes = reader(files)["pixel_values"], FACTS | {"kind": int(labels[..., -1].max()) + 1}
    teach_tower(cast(Llava, model), lambda some: pixels[some], labels, classes, SIGHT)
    parts = [read_facts(folder / name) for name in ("questions.jsonl", "test.jsonl")]
    seen, unseen = ((tower_features(model, reader, some), known) for some, known in parts)
    write_probes(seen, unseen, "lesion", list(classes), out / "probes.md")
    save_model(model, out / "sighted")


def read_facts(file: Path) -> tuple[list[str], Tensor]:
    """(images, labels [N, 1, facts]) of the descriptions among records with a truth."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    asked = [row for row in rows if DESCRIBE in (row.get("question"), row.get("prompt", [{}])[0].get("content"))]
    images = [str(file.parent / row["images"][0]) for row in asked]
    return images, torch.tensor([[facts(row["truth"])] for row in asked])


def facts(truth: dict) -> list[int]:
    """The class of each of FACTS and of the kind, or UNKNOWN."""
    (finding,) = truth["findings"]
    if not finding["present"]:
        return [0, *[UNKNOWN] * len(FACTS)]
    names = (("side", SIDES), ("degree", DEGREES[0]), ("zone", ZONES))
    found = [list(known).index(finding[name]) if name in finding else UNKNOWN for name, known in names]
    return [1, *found, truth["kinds"]["kind"].index(truth["terms"]["kind"])]


def main() -> int:
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--set", required=True, metavar="DIR", help="where the question files and images lie")
    return command.run(parser, lambda args: run(Path(args.set), Path(args.out), args.seeds))


if __name__ == "__main__":
    sys.exit(main())

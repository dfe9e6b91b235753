"""The tissue task on real tiles: every tile is scored once, by models that never saw its patient, slide or cluster.

For each fold a small CLIP is trained on the tiles of the others and their captions, ranks turned parts of them, and a
student that has never seen an image is aligned on the rankings, from one base that was taught the form on random
answers. The lists of all folds together are compared, with what the colours of a tile alone tell.

    python -m benchmarks.real_tiles --cases TABLE.tsv --out DIR [--folds 5]
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.colours import colour_lists
from benchmarks.command import make_parser, run
from benchmarks.tissue_methods import Method, align, save
from mint.config import TrainConfig
from mint.data.cases import format_list
from mint.data.chat import load_tokenizer
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.preferences import write_jsonl
from mint.data.tiles import HEADER, Tile, list_lengths, read_tiles, tissue_messages
from mint.data.views import draw_views
from mint.demo.tiny_model import TOWER, write_base
from mint.errors import InputError
from mint.models import load_model
from mint.tasks.ranked import TeacherLists, rank_lists
from mint.tasks.tissue import Tissue
from mint.teachers.clip_training import ClipSettings, fit_clip
from train import train

TEACHER = {"epochs": 100, "held_out": 0.0}
VIEWS = 8
COMMON = {"full": True, "steps": 400, "batch_size": 16, "lr": 5e-4}
FORM = {"full": True, "steps": 60, "batch_size": 16, "lr": 2e-3}
METHODS = {
    "SFT, true tissue": Method("sft", "disease"),
    "SFT, teacher's list": Method("sft"),
    "DPO from SFT": Method("dpo", from_sft=True, settings={"steps": 100, "lr": 5e-5}),
    "ORPO": Method("orpo"),
}


def split_folds(tiles: Sequence[Tile], folds: int, seed: int = 0) -> list[set[str]]:
    """The ids of each fold's tiles; tiles of one subject stay together, subjects of one tissue are spread evenly."""
    subjects = defaultdict(list)
    for tile in tiles:
        subjects[tile.tissue, tile.subject or tile.id].append(tile.id)
    order = sorted(subjects)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda key: key[0])
    found: list[set[str]] = [set() for _ in range(folds)]
    for place, key in enumerate(order):
        found[place % folds].update(subjects[key])
    return found


def run_fold(
    number: int, train_tiles: list[Tile], unseen: list[Tile], tissues: tuple[str, ...], out: Path
) -> tuple[TeacherLists, dict[str, list[str]]]:
    """(the teacher's lists of the unseen tiles, the answers of every row)."""
    folder = out / f"fold-{number}"
    teacher = fit_clip(train_tiles, folder / "clip", ClipSettings(**TEACHER, seed=number), tissues)
    task = Tissue(tissues)
    lists = rank_lists(unseen, teacher, task.top_k, task.bottom_q)
    base = make_base(train_tiles, tissues, folder, number)
    answers = {"teacher": list(map(task.format, lists.top)), "base": decode(base, unseen, task)}
    colours = colour_lists(train_tiles, unseen, tissues, list_lengths(tissues)[0])
    answers["colours alone"] = list(map(task.format, colours))
    views = draw_views(train_tiles, VIEWS, folder / "views", number)
    for row, model, _ in align(base, views, teacher, folder, METHODS, {**COMMON, "seed": number}):
        answers[row] = decode(model, unseen, task)
    return lists, answers


def make_base(tiles: list[Tile], tissues: tuple[str, ...], folder: Path, seed: int) -> str:
    """A tiny LLaVA taught the form of an answer on lists that have nothing to do with the images."""
    rng, (count, _) = random.Random(seed), list_lengths(tissues)
    messages = tissue_messages(tissues, count)
    lists = [format_list(rng.sample(tissues, count), HEADER) for _ in tiles]
    record = {"prompt": messages}
    lessons = [
        {"id": tile.id, **record, "images": [str(tile.image.resolve())], "chosen": text}
        for tile, text in zip(tiles, lists, strict=True)
    ]
    write_jsonl(folder / "lessons.jsonl", lessons)
    texts = [messages[0]["content"], *lists, "system", "user", "assistant"]
    write_base(folder / "blank", texts * 3, "demo", 600, seed, vision=TOWER)
    data = {"data": str(folder / "lessons.jsonl"), "images_anywhere": True, "device": "cpu", "seed": seed}
    run = train(TrainConfig(loss="sft", model=str(folder / "blank"), out=str(folder / "base"), **FORM, **data))
    return str(run.path / "model")


def decode(folder: str, tiles: list[Tile], task: Tissue) -> list[str]:
    """The answers of a model to every tile."""
    loaded = load_model(folder), load_tokenizer(folder), ImageReader(load_processor(folder))
    return task.ask(loaded, tiles, max_new_tokens=60, batch_size=64)


def run_folds(cases: str, out: Path, folds: int) -> list[str]:
    """Trains and scores all folds; returns the arguments of ``evaluate.py compare``. Raises InputError for bad data."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; give another folder")
    tiles, report = read_tiles(cases)
    print(f"{cases}: {report}")
    tiles = [dataclasses.replace(tile, split="") for tile in tiles]
    tissues = tuple(sorted({tile.tissue for tile in tiles}))
    members = split_folds(tiles, folds)
    together: dict[str, list[str]] = defaultdict(list)
    order, top, bottom = [], [], []
    for number, held_out in enumerate(members):
        unseen = [tile for tile in tiles if tile.id in held_out]
        lists, answers = run_fold(number, [t for t in tiles if t.id not in held_out], unseen, tissues, out)
        order += unseen
        top += lists.top
        bottom += lists.bottom
        for row, some in answers.items():
            together[row].extend(some)
    task, rows = Tissue(tissues), []
    task.refer_to("teacher", order, TeacherLists(top, bottom))
    for row, answers in together.items():
        name = "".join(c if c.isalnum() else "-" for c in row.lower())
        rows.append(f"{row}={save(out / 'scores' / name, row, order, answers, task)}")
    return rows


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--cases", required=True, metavar="PATH", help="as for generate_prefs.py tissue")
    parser.add_argument("--folds", type=int, default=5)
    return run(parser, lambda args: run_folds(args.cases, Path(args.out), args.folds))


if __name__ == "__main__":
    sys.exit(main())

"""The tissue demo: ``python train.py --loss orpo --demo tissue``.

1. Tiles of 19 tissues are drawn (``tissue_tiles``). A small CLIP learns tiles and captions: the teacher.
2. The teacher ranks the tissues of other tiles: five likely ones are chosen, five unlikely ones rejected.
3. A tokenizer and a tiny LLaVA are made (``base``), and it is taught the form of an answer on a few tiles of its own:
   the true tissue first, then four at random. All of this is cached.
4. The chosen loss aligns that LLaVA on the pairs: image tower, projector and decoder. It is scored on unseen tiles,
   before and after, beside the teacher.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mint.config import TrainConfig
from mint.data.cases import format_list
from mint.data.chat import load_tokenizer
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.preferences import write_jsonl
from mint.data.tiles import HEADER, LISTED, Tile, tissue_messages
from mint.demo.cache import cached
from mint.demo.stages import Train, align, aligned, compare_systems, load_student, teach
from mint.demo.tiny_model import TOWER, write_base
from mint.prefs.pairs import PairReport, PairSettings, make_pairs
from mint.synthetic.tiles_folder import draw_tiles
from mint.synthetic.tissue_tiles import load_tissues
from mint.tasks.tissue import Tissue
from mint.teachers.clip_teacher import load_zero_shot
from mint.teachers.clip_training import ClipSettings, fit_clip

# tiles of every tissue, and seed: the teacher's, the base's, those that are ranked, the unseen ones
SHOWN, TAUGHT, RANKED, UNSEEN = (60, 20), (10, 21), (60, 22), (15, 23)
TEACHER = ClipSettings(epochs=15)
TEACH: dict[str, Any] = {"steps": 120, "batch_size": 16, "lr": 2e-3, "weight_decay": 0.1, "adam_beta2": 0.95}
ALIGN: dict[str, Any] = {"steps": 1000, "batch_size": 16, "lr": 2e-3, "lora_rank": 64, "lora_alpha": 128.0}
ALIGN["lora_targets"] = "language_model,vision_tower,multi_modal_projector"
VISION = TOWER
TIME = "about 5 minutes"
SOURCES = (
    "demo/stages.py",
    "demo/tiny_model.py",
    "demo/tissue_demo.py",
    "synthetic/package_tables.py",
    "synthetic/tiles_folder.py",
    "synthetic/tissue_tiles.py",
    "synthetic/tissues.tsv",
)
TISSUES = tuple(line.tissue for line in load_tissues())


def run(config: TrainConfig, train: Train) -> None:
    """Builds or finds the cache, trains with ``config`` (its settings win over ``ALIGN``), prints the table."""
    align(config, train, ALIGN, prepare(train), compare)


def prepare(train: Train) -> Path:
    """The cache, built if it is not there."""
    return cached("tissue", SOURCES, lambda folder: build(folder, train), TIME)


def build(folder: Path, train: Train) -> None:
    """Teacher, pairs, tokenizer and taught model."""
    tiles = sum(count for count, _ in (SHOWN, TAUGHT, RANKED))
    print(f"1/4 {tiles * len(TISSUES)} tiles of {len(TISSUES)} tissues", flush=True)
    shown, taught, ranked = (draw_tiles(*tiles, folder / "tiles") for tiles in (SHOWN, TAUGHT, RANKED))
    print(f"2/4 the teacher: a small CLIP learns {len(shown)} tiles and captions", flush=True)
    teacher = fit_clip(shown, folder / "teacher", TEACHER, TISSUES)
    print(f"3/4 the teacher ranks the tissues of {len(ranked)} other tiles", flush=True)
    report, settings = PairReport(), PairSettings(LISTED, LISTED)
    pairs = make_pairs(Tissue(TISSUES), ranked, teacher, settings, report, folder=folder)
    write_jsonl(folder / "pairs.jsonl", pairs)
    print(f"pairs: {report}")
    print(f"4/4 a tiny LLaVA learns the form of answers on {len(taught)} tiles", flush=True)
    write_jsonl(folder / "lessons.jsonl", lessons(taught, folder))
    write_base(folder / "blank", texts(), "demo", 600, vision=VISION)
    teach(folder / "blank", folder / "lessons.jsonl", TEACH, train, folder / "model")


def lessons(tiles: Sequence[Tile], folder: Path) -> Iterator[dict]:
    """Answers in the right form: the true tissue, then others at random."""
    for tile in tiles:
        others = random.Random(tile.id).sample([name for name in TISSUES if name != tile.tissue], LISTED - 1)
        yield {
            "id": tile.id,
            "prompt": tissue_messages(TISSUES, LISTED),
            "images": [os.path.relpath(tile.image, folder)],
            "chosen": format_list([tile.tissue, *others], HEADER),
        }


def texts() -> list[str]:
    """What the tokenizer is trained on: the prompt, and lists of every tissue in every place."""
    prompt = [message["content"] for message in tissue_messages(TISSUES, LISTED)]
    turned = [format_list([*TISSUES[i:], *TISSUES[:i]][:LISTED], HEADER) for i in range(len(TISSUES))]
    return [*prompt * 20, *turned * 10, *["system", "user", "assistant"] * 40]


def compare(config: TrainConfig, folder: Path, cache: Path) -> None:
    """Scores teacher and student on unseen tiles; prints the table, saves it and two pages with the run."""
    tiles, task = draw_tiles(*UNSEEN, folder / "tiles"), Tissue(TISSUES)
    task.rank(tiles, load_zero_shot(cache / "teacher", TISSUES))
    assert config.model is not None  # ``align`` sets it
    answers = {  # system -> (its folder, answers)
        "teacher": (folder / "teacher", task.teacher_answers(tiles)),
        "student before": (folder / "before", decode(task, config.model, None, tiles)),
        "student after": (folder, decode(task, *aligned(config, folder), tiles)),
    }
    compare_systems(task, tiles, answers, folder, config.loss)
    print(f"page: {folder / 'report.html'}")


def decode(task: Tissue, model_dir: str, adapter: Path | None, tiles: Sequence[Tile]) -> list[str]:
    """The answers of a model to every tile."""
    model = load_student(model_dir, adapter)
    loaded = model, load_tokenizer(model_dir), ImageReader(load_processor(model.source_dir))
    return task.ask(loaded, tiles, max_new_tokens=60, batch_size=64)

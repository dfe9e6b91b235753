"""MINT's second task: ranked lists of the tissues that a microscope tile may show (arXiv 2505.05736)."""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mint.cli import choose_device
from mint.data.prompts import Prompt, read_prompt
from mint.data.splits import take_split
from mint.data.tiles import HEADER, LISTED, Tile, list_lengths, read_tiles, tissue_messages
from mint.data.views import draw_views
from mint.errors import InputError
from mint.evaluation.metrics import normalize
from mint.evaluation.scores import Score, mean_score
from mint.files import make_folder, read_lines, write_aside
from mint.prefs.pairs import PairSettings
from mint.tasks import tissue_page
from mint.tasks.base import Lists, Result
from mint.tasks.ranked import RankedTask, TeacherLists, rank_lists
from mint.tasks.tissue_scores import (
    CAR_WEIGHT,
    COLUMNS,
    MEANINGS,
    SCORES,
    TissueScore,
    confusion,
    f1_scores,
    score_tissues,
)
from mint.teachers.clip_teacher import TEMPLATES, load_zero_shot
from mint.teachers.clip_training import ClipSettings, fit_clip
from mint.teachers.fitting import check_folder
from mint.teachers.ranking import Teacher


class Tissue(RankedTask):
    """Tissue lists for tiles. tissues: those to rank; top_k, bottom_q: lengths of the lists (see ``list_lengths``)."""

    name, noun, field = "tissues", "tiles", "tissue"
    columns = {n: mean_score(n, h, meaning=m) for n, (h, m) in SCORES.items() if n != "macro_f1"}
    tested = ("top_1", "top_5", "car")
    shown = ("top_1", "top_5", "macro_f1", "car")
    header = HEADER
    lists = Lists("tissue", LISTED, lambda a, b: normalize(a) == normalize(b))
    car_weight = CAR_WEIGHT
    vision = True
    prompt: Prompt | None = None  # another wording than that of ``tissue_messages``
    decoding = {"temperature": 0.7, "top_p": 0.6, "top_k": 10, "max_new_tokens": 100, "batch_size": 32}

    def __init__(self, tissues: Sequence[str] = (), top_k: int | None = None, bottom_q: int | None = None):
        """Raises InputError for lists that would be empty or overlap."""
        super().__init__()
        if tissues:
            self.choose_among(tissues, top_k, bottom_q)

    def choose_among(self, tissues: Sequence[str], top_k: int | None, bottom_q: int | None) -> None:
        """Sets the tissues and the lengths of the lists. Raises InputError for lists that would be empty or overlap."""
        self.tissues = tuple(tissues)
        self.top_k, self.bottom_q = list_lengths(tissues, top_k, bottom_q)
        f1 = Score(COLUMNS["macro_f1"], self._cell, self._macro_f1, meaning=MEANINGS["macro_f1"])
        columns = {**type(self).columns, "macro_f1": f1}  # of all tiles, not of one: comparisons leave it out
        self.columns = {name: columns[name] for name in SCORES}

    def use_prompt(self, args: argparse.Namespace) -> None:
        """Takes the wording of ``--prompt``. Raises InputError for a file that cannot be used."""
        if args.prompt:
            self.prompt = read_prompt(args.prompt, HEADER, ("tissues", "count"))
            self.header = self.prompt.header

    def _cell(self, record: Mapping) -> np.ndarray:
        return confusion([record["tissue"]], [record["listed"]], self.tissues).flatten()

    def _macro_f1(self, sums: np.ndarray) -> np.ndarray:
        count = len(self.tissues)
        counts = sums.reshape(*sums.shape[:-1], count, count + 1)
        there = counts.sum(-1) > 0
        return np.where(there, f1_scores(counts), 0.0).sum(-1) / there.sum(-1)

    def messages(self, tile: Tile, rng: random.Random | None = None) -> list[dict]:
        return tissue_messages(self.tissues, self.top_k, self.prompt)

    def images(self, tile: Tile) -> list[str]:
        return [str(tile.image)]

    def score(self, listed: Sequence[str], tile: Tile) -> dict:
        return dataclasses.asdict(self._scores(listed, tile)) | {"listed": list(listed)}

    def _scores(self, listed: Sequence[str], tile: Tile) -> TissueScore:
        return score_tissues(listed, tile.tissue, self.tissues, *self.teacher_lists(tile), car_weight=self.car_weight)

    def record(self, tile: Tile, folder: Path) -> dict:
        return super().record(tile, folder) | ({"subject": tile.subject} if tile.subject else {})

    def rank(self, tiles: Sequence[Tile], teacher: Teacher) -> None:
        """Sets the teacher's lists of the tiles."""
        lists = rank_lists(tiles, teacher, self.top_k, self.bottom_q)
        self.refer_to(f"teacher ({teacher.name})", tiles, lists)

    # Evaluation

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add_tile_options(parser)
        add("--teacher", required=True, metavar="DIR|ID", help="the teacher (a CLIP), to which C, A and CAR refer")
        add("--top-k", type=int, help="tissues to ask for, and of the teacher's best list (default 5)")
        add("--bottom-q", type=int, help="length of the teacher's worst list (default the same)")
        self.add_car_weight(parser)

    def read(self, args: argparse.Namespace) -> list[Tile]:
        self.use_prompt(args)
        tiles, tissues = read_tile_options(args)
        self.choose_among(tissues, args.top_k, args.bottom_q)
        return tiles

    def prepare(self, args: argparse.Namespace, tiles: Sequence[Tile]) -> None:
        """Ranks the tiles by the teacher."""
        device = choose_device(args.device, args.dtype)[0]
        self.rank(tiles, load_zero_shot(args.teacher, self.tissues, read_templates(args), device))

    def save_more(self, folder: Path, results: Sequence[Result], settings: dict) -> dict:
        """Writes tissues.csv, confusion.png and report.html too."""
        make_folder(folder)
        *_, result = results
        tiles, lists = result.examples, [record["listed"] for record in result.records]
        counts = confusion([tile.tissue for tile in tiles], lists, self.tissues)
        best, worst = zip(*map(self.teacher_lists, tiles), strict=True)
        scores = [self._scores(listed, tile) for listed, tile in zip(lists, tiles, strict=True)]
        more = super().save_more(folder, results, settings)
        teacher = TeacherLists(list(best), list(worst))
        tissue_page.plot_confusion(counts, self.tissues, folder / "confusion.png")
        table = tissue_page.tissues_table(counts, scores, tiles, self.tissues)
        page = tissue_page.html(
            result.name, more["rows"], tiles, lists, scores, self.tissues, teacher, counts, settings
        )
        write_aside(folder / "tissues.csv", table)
        write_aside(folder / "report.html", page)
        return more | {"tissues": list(self.tissues), "confusion": counts.tolist()}

    # Pairs

    def describe(self, tiles: Sequence[Tile]) -> dict:
        return super().describe(tiles) | {"tissues": list(self.tissues)}

    def add_pair_options(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add_tile_options(parser)
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--teacher", metavar="DIR|ID", help="rank with a CLIP, as vinid/plip")
        which.add_argument(
            "--fit", metavar="DIR", help="train a small CLIP on the tiles, save it there, and rank with it"
        )
        add("--fit-cases", metavar="PATH", help="tiles to train it on (default: --cases)")
        add("--teacher-epochs", type=int, default=ClipSettings.epochs, help="of --fit (default 15)")
        add("--seed", type=int, default=0, help="of --fit, --views and --reject")
        add("--views", type=int, default=1, help="pairs of every tile: itself, then rotated crops of it (default 1)")
        self.add_pair_flags(parser, top_k=None, bottom_q=None)

    def rank_examples(self, args: argparse.Namespace) -> tuple[list[Tile], Teacher, PairSettings, bool]:
        if args.fit:
            check_folder(args.fit)
        self.use_prompt(args)
        tiles, tissues = read_tile_options(args)
        self.choose_among(tissues, args.top_k, args.bottom_q)
        templates, (device, _) = read_templates(args), choose_device(args.device, "auto")
        if args.fit:
            fit = ClipSettings(epochs=args.teacher_epochs, seed=args.seed)
            shown = read_tile_options(args, args.fit_cases)[0] if args.fit_cases else tiles
            teacher = fit_clip(shown, args.fit, fit, tissues, templates, device)
        else:
            teacher = load_zero_shot(args.teacher, tissues, templates, device)
        out = Path(args.out)
        tiles = draw_views(tiles, args.views, out.with_name(f"{out.stem}.views"), args.seed)
        settings = PairSettings(
            self.top_k, self.bottom_q, args.label_first, answer=args.answer, reject=args.reject, seed=args.seed
        )
        return tiles, teacher, settings, True


def add_tile_options(parser: argparse.ArgumentParser) -> None:
    """``--cases`` and what goes with it; read by :func:`read_tile_options` and :func:`read_templates`."""
    add = parser.add_argument
    forms = "tiles: PanNuke's fold folders, a folder of images for each tissue, or a table (.csv, .tsv) of images"
    add("--cases", required=True, metavar="PATH", help=forms)
    add("--tiles", metavar="DIR", help="where PanNuke's arrays are written as images")
    add("--tissues", metavar="FILE", help="the tissues to rank, one a line (default: those of the tiles)")
    add("--prompt", metavar="FILE.toml", help="another wording (user, system, header), with {tissues} and {count}")
    add("--templates", metavar="FILE", help="descriptions of a tissue, one a line, with {} for its name")
    parts = "part of the tiles, by slide: the table's own, or a tenth as test"
    add("--split", choices=("train", "val", "test"), help=parts)


def read_templates(args: argparse.Namespace) -> Sequence[str]:
    """The descriptions of a tissue."""
    return read_lines(args.templates) if args.templates else TEMPLATES


def read_tile_options(args: argparse.Namespace, path: str | None = None) -> tuple[list[Tile], tuple[str, ...]]:
    """(tiles of the asked split, all tissues to rank); prints what was read.

    path: another place to read by the same flags. Raises InputError for tiles that cannot be read or an empty split.
    """
    path = path or args.cases
    tiles, report = read_tiles(path, args.tiles)
    print(f"{path}: {report}")
    found = sorted({tile.tissue for tile in tiles})
    tissues = tuple(dict.fromkeys(read_lines(args.tissues))) if args.tissues else tuple(found)
    if missing := [tissue for tissue in found if tissue not in tissues]:
        raise InputError(f"{args.tissues} lacks the tissue {missing[0]!r} of some tiles")
    if args.split:
        tiles = take_split(tiles, args.split, label=lambda tile: tile.tissue)
        print(f"{path}: {len(tiles)} tiles of the {args.split} split")
        if not tiles:
            raise InputError(f"{path}: the {args.split} split is empty")
    return tiles, tissues

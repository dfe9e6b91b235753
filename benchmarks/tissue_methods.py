"""The ways of alignment that the tissue benchmarks set beside each other, from one base that knows the form alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mint.config import TrainConfig
from mint.data.preferences import write_jsonl
from mint.data.tiles import Tile
from mint.prefs.pairs import PairReport
from mint.prefs.tissue_pairs import make_tissue_pairs
from mint.tasks import tissue
from mint.tasks.disease import Upstream
from mint.tasks.tissue_page import save_tissues
from mint.teachers.clip_teacher import ZeroShotRanker
from train import train

Answers = tuple[list[str], list[list[str]]]  # raw, and parsed


@dataclass(frozen=True)
class Method:
    """A loss, its chosen answers, whether it continues SFT on the teacher's lists, and further settings."""

    loss: str
    answer: str = "ranking"
    from_sft: bool = False
    settings: dict = field(default_factory=dict)


def align(
    base: str, tiles: Sequence[Tile], teacher: ZeroShotRanker, folder: Path, methods: dict[str, Method], common: dict
) -> Iterator[tuple[str, str, Path | None]]:
    """(row, model, adapter) of every method, trained one after the other on pairs that ``teacher`` makes of ``tiles``.

    common: settings of all runs. The first method with the loss ``sft`` on the teacher's lists is what others continue.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for answer in sorted({method.answer for method in methods.values()}):
        report = PairReport(what="tissue")
        write_jsonl(folder / f"{answer}.jsonl", make_tissue_pairs(tiles, teacher, folder, report, answer=answer))
        print(f"{folder}, {answer}: {report}")
    for row, method in methods.items():
        out, start = folder / f"{method.loss}-{method.answer}", {"model": base}
        if method.from_sft:
            sft = folder / "sft-ranking"
            start |= {"model": str(sft / "model")} if common.get("full") else {"adapter": str(sft / "adapter")}
        data = {"data": str(folder / f"{method.answer}.jsonl"), "images_anywhere": True, "device": "cpu"}
        train(TrainConfig(loss=method.loss, out=str(out), **{**common, **method.settings, **start, **data}))
        yield (row, str(out / "model"), None) if common.get("full") else (row, base, out / "adapter")


def save(
    folder: Path, row: str, tiles: Sequence[Tile], answers: Answers, tissues: Sequence[str], upstream: Upstream
) -> str:
    """Scores lists and saves them as ``evaluate.py tissue`` does; returns the folder."""
    scores, mean = tissue.score_lists(tiles, answers[1], tissues, upstream)
    settings = {"tiles": len(tiles), "row": row}
    save_tissues(folder, {row: mean}, tiles, *answers, scores, tissues, upstream, settings)
    return str(folder)

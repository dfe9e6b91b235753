"""The methods that the tissue benchmarks compare, from one base that knows the form of an answer alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mint.config import TrainConfig
from mint.data.preferences import write_jsonl
from mint.data.tiles import Tile
from mint.prefs.pairs import PairReport, PairSettings, make_pairs
from mint.tasks.base import save_results, score_answers
from mint.tasks.tissue import Tissue
from mint.teachers.clip_teacher import ZeroShotTeacher
from train import train


@dataclass(frozen=True)
class Method:
    """loss; what its chosen answers hold; whether it continues SFT on the teacher's lists; its own settings."""

    loss: str
    answer: str = "ranking"
    from_sft: bool = False
    settings: dict = field(default_factory=dict)


def align(
    base: str, tiles: Sequence[Tile], teacher: ZeroShotTeacher, folder: Path, methods: dict[str, Method], common: dict
) -> Iterator[tuple[str, str, Path | None]]:
    """(row, model, adapter) of every method, trained one after the other on pairs that ``teacher`` makes of ``tiles``.

    common: settings of all runs. The first method with the loss ``sft`` on the teacher's lists is what others continue.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for answer in sorted({method.answer for method in methods.values()}):
        report, task = PairReport(), Tissue(teacher.classes)
        settings = PairSettings(task.top_k, task.bottom_q, answer=answer)
        write_jsonl(folder / f"{answer}.jsonl", make_pairs(task, tiles, teacher, settings, report, folder=folder))
        print(f"{folder}, {answer}: {report}")
    for row, method in methods.items():
        out, start = folder / f"{method.loss}-{method.answer}", {"model": base}
        if method.from_sft:
            sft = folder / "sft-ranking"
            start |= {"model": str(sft / "model")} if common.get("full") else {"adapter": str(sft / "adapter")}
        data = {"data": str(folder / f"{method.answer}.jsonl"), "images_anywhere": True, "device": "cpu"}
        train(TrainConfig(loss=method.loss, out=str(out), **{**common, **method.settings, **start, **data}))
        yield (row, str(out / "model"), None) if common.get("full") else (row, base, out / "adapter")


def save(folder: Path, row: str, tiles: Sequence[Tile], answers: Sequence[str], task: Tissue) -> str:
    """Scores answers and saves them as ``evaluate.py tissue`` does; returns the folder."""
    save_results(task, folder, [score_answers(task, row, tiles, answers, folder)], {"tiles": len(tiles), "row": row})
    return str(folder)

"""Experiment trackers, where installed: TensorBoard, trackio, Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mint.errors import InputError

PROJECT = "mint"


def check_tracker(name: str | None) -> None:
    """Raises InputError if the package of the tracker cannot be imported."""
    try:
        if name is not None:
            importlib.import_module(name)
    except ImportError:
        raise InputError(f"--track {name} needs the package {name}: pip install {name}") from None


@contextmanager
def open_tracker(name: str | None, folder: Path, settings: dict) -> Iterator[Callable[[dict], None]]:
    """A function that logs a row of ``metrics.jsonl``; None as ``name``: it does nothing.

    folder: the run directory; TensorBoard's files go to ``tensorboard`` in it, and a run of the other trackers has its
    name. settings: of the run.
    """
    if name is None:
        yield lambda row: None
    elif name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder / "tensorboard")) as writer:

            def log(row: dict) -> None:
                for key, value in _numbers(row).items():
                    writer.add_scalar(key, value, row["step"])

            yield log
    else:
        tracker = importlib.import_module(name)
        tracker.init(project=PROJECT, name=folder.name, config=settings)
        try:
            yield lambda row: tracker.log(_numbers(row), step=row["step"])
        finally:
            tracker.finish()


def _numbers(row: dict) -> dict[str, float]:
    return {key: value for key, value in row.items() if key != "step" and isinstance(value, (int, float))}

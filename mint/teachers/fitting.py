"""What the training of all teachers shares: settings, the loop over epochs, the folder that is written."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from mint.errors import InputError
from mint.models import save_model
from mint.models.names import Pretrained
from mint.optim import clip_gradients, learning_rate, make_optimizer
from mint.progress import Progress, epoch_text

FOLDS = "folds.json"


@dataclass
class FitSettings:
    """Settings of the optimiser. held_out: share of the cases, by patient or slide, that is not trained on."""

    epochs: int = 10
    batch_size: int = 64
    lr: float = 5e-5
    warmup: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 0.01
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    held_out: float = 0.1
    seed: int = 0

    def check(self) -> None:
        """Raises InputError for values out of range."""
        if min(self.epochs, self.batch_size) < 1 or self.lr <= 0:
            raise InputError("the teacher's epochs, batch size and learning rate must be positive")
        if not 0 <= self.held_out < 1:
            raise InputError("the teacher's held-out share must be below 1")


def check_folder(folder: str | Path) -> None:
    """Raises InputError if ``folder`` holds a teacher, or the finished folds of a cross-fit that was interrupted."""
    folder = Path(folder)
    if (folder / "config.json").exists() or (folder / FOLDS).exists():
        raise InputError(f"{folder} holds a teacher already: use it with --teacher, or give another folder")
    if next(folder.glob("fold-*"), None):
        raise InputError(f"{folder} holds folds of a cross-fit that did not finish: delete it, or give another folder")


@contextmanager
def blank_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` for the blank model, removed at the end."""
    aside = folder.with_name(f".fitting-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def save_fit(model: Pretrained, folder: Path, settings: FitSettings, epochs: Sequence[dict], **record) -> None:
    """Writes the model, and ``fit.json`` with settings, counts and epochs."""
    save_model(model, folder)
    record = {"settings": asdict(settings), **record, "epochs": list(epochs)}
    (folder / "fit.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def train_epochs(
    model: nn.Module,
    settings: FitSettings,
    title: str,
    batches: Callable[[random.Random], Sequence],
    loss: Callable[..., Tensor],
    evaluate: Callable[[], dict],
) -> Iterator[dict]:
    """Trains in place; prints and yields a row for each epoch. The caller may stop early.

    batches: the batches of an epoch. loss: of (batch, random generator of the epoch). evaluate: further entries of a
    row, such as the loss on cases held out.
    """
    optimizer = make_optimizer(model, settings)
    total, step = len(batches(random.Random(0))) * settings.epochs, 0
    bar = Progress(total=total, desc=title, unit="step")
    try:
        for epoch in range(settings.epochs):
            rng, losses = random.Random(f"{settings.seed}/{epoch}"), []
            model.train()
            for batch in batches(rng):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, total, settings)
                optimizer.zero_grad(set_to_none=True)
                value = loss(batch, rng)
                value.backward()
                clip_gradients(model, settings.max_grad_norm)
                optimizer.step()
                losses.append(value.item())
                step += 1
                bar.update(values={"loss": f"{losses[-1]:.3f}"})
            row = {"epoch": epoch + 1, "loss": sum(losses) / len(losses), **evaluate()}
            bar.write(f"{title}: {epoch_text(row, settings.epochs)}")
            yield row
    finally:
        bar.total = step  # fewer after an early stop
        bar.close()

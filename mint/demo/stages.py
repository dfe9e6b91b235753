"""The stages that the demos share: teaching a blank model, aligning it, scoring it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mint.cli import choose_device
from mint.config import TrainConfig
from mint.models import load_language_model
from mint.models.llama import CausalLM
from mint.models.lora import load_adapter, settle_lora
from mint.tasks.base import Result, Task, first_image, save_results, score_answers
from mint.tasks.compare_page import save_comparison
from mint.training.run_directory import RunDirectory
from mint.training.setup import choose_precision


class Hardware(NamedTuple):
    """Where a model is trained and asked. dtype: as of ``TrainConfig``; with ``auto`` answers are in float32."""

    device: str = "cpu"
    dtype: str = "auto"


CPU = Hardware()
Train = Callable[[TrainConfig], RunDirectory]
Compare = Callable[[TrainConfig, Path, Path], None]  # settings, the run's folder, the cache


def teach(model: Path, data: Path, recipe: dict, train: Train, target: Path) -> Path:
    """Next-token training of all weights of ``model`` on the answers of ``data``; returns the new model, ``target``.

    A run that was stopped goes on from its last checkpoint, with a recipe that saves any. It is on the CPU, unless the
    recipe has another ``device``.
    """
    out = target.with_name(f"{target.name}-teaching")
    if not any((out / "checkpoints").glob("step-*")):
        shutil.rmtree(out, ignore_errors=True)
    paths: dict[str, Any] = {"model": str(model), "data": str(data), "out": str(out)}
    train(TrainConfig(**{"loss": "sft", "full": True, "device": "cpu", "resume": "auto", **paths, **recipe}))
    (out / "model").rename(target)
    shutil.rmtree(out)
    return target


def align(config: TrainConfig, train: Train, recipe: dict, folder: Path, compare: Compare) -> None:
    """Trains with the recipe on the pairs of ``folder``, then compares; raises Stopped for a run that is stopped."""
    config = complete(config, recipe, folder)
    length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs"
    print(f"aligning the model of {folder} with {config.loss} ({length}), then scoring before and after")
    compare(config, train(config).path, folder)


def complete(config: TrainConfig, recipe: dict, folder: Path) -> TrainConfig:
    """``config`` with the recipe's settings where it has the defaults, and the model and pairs of ``folder``.

    The settings in ``loss_args`` are completed one by one.
    """
    defaults = TrainConfig()
    unset = {name: value for name, value in recipe.items() if getattr(config, name) == getattr(defaults, name)}
    unset["loss_args"] = recipe.get("loss_args", {}) | config.loss_args
    if config.epochs != defaults.epochs:
        unset.pop("steps", None)
    if config.adapter or config.full:  # with settings of its own, or none
        unset = {name: value for name, value in unset.items() if name not in config.LORA_DEFAULTS}
    if (
        config.adapter
        or config.quantize
        or any(getattr(config, name) != getattr(defaults, name) for name in config.LORA_DEFAULTS)
    ):
        unset.pop("full", None)
    return dataclasses.replace(config, **unset, model=str(folder / "model"), data=str(folder / "pairs.jsonl"))


def aligned(config: TrainConfig, folder: Path) -> tuple[str, Path | None]:
    """(model, adapter) that a run with these settings left in ``folder``."""
    return (str(folder / "model"), None) if config.full else (str(config.model), folder / "adapter")


def load_student(model_dir: str, adapter: Path | None, hardware: Hardware = CPU) -> CausalLM:
    """A model with its adapter, if any."""
    device, dtype = choose_device(hardware.device, "float32" if hardware.dtype == "auto" else hardware.dtype)
    choose_precision(False, device)  # training had its own
    model = load_language_model(model_dir, dtype=dtype)
    return (model if adapter is None else settle_lora(load_adapter(model, adapter))).to(device)


def compare_systems(
    task: Task, examples: Sequence, answers: Mapping[str, tuple[Path, Sequence[str]]], folder: Path, loss: str
) -> None:
    """Scores, prints and saves systems, each in its own folder, and writes the page that compares them to ``folder``.

    answers: name -> (folder, answer to every example); the page shows differences to the system before the last.
    """
    results: list[Result] = []
    for name, (place, some) in answers.items():
        results.append(score_answers(task, name, examples, some, place, keep_notes=True))
        save_results(task, place, results, {"cohort": f"unseen {task.noun} of the demo", "loss": loss})
    print(f"\n{len(examples)} unseen {task.noun}, scores in per cent\n\n{task.text(results)}\n")
    *others, before, after = (place for place, _ in answers.values())
    files = [after / image for record in results[-1].records if (image := first_image(record))]
    save_comparison([before, after, *others], folder, images=sorted({file.resolve().parent for file in files}))
    print(f"page: {folder / 'comparison.html'}")

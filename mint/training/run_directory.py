"""The run directory: settings, metrics and checkpoints, each written so that a kill at any moment loses nothing.

config.toml           the resolved settings
metrics.jsonl         a row for every step and every evaluation
samples.jsonl         sample answers (--sample-every)
adapter/              the trained adapter, PEFT's files and a model card (model/ after full fine-tuning)
checkpoints/step-N/   adapter/ or model/, state.pt (optimiser, random states), state.json (see mint.training.resume)
curves.png            loss, reward margin and accuracy over the steps; of an interrupted run too
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from mint.config import TrainConfig, to_toml
from mint.errors import InputError
from mint.files import check_paths, check_writable, folder_aside, make_folder, remove_leftovers, write_aside
from mint.hub import is_dataset_id
from mint.models import load_model, save_model
from mint.models.llama import CausalLM
from mint.models.lora import adapter_settings, lora_layers, restore_adapter, save_adapter
from mint.training.resume import read_state
from mint.training.selection import best_step
from mint.training.track import check_tracker


def check_run(config: TrainConfig) -> Path | None:
    """The checkpoint that the run continues from, None for a new run; checked before a model is loaded.

    Raises InputError for paths of ``config`` that cannot be used, for adapter settings that are given with
    ``--adapter`` and differ from the adapter's, and for a tracker that is not installed.
    """
    check_paths(config)
    check_tracker(config.track)
    for flag, path in (("--data", config.data), ("--eval-data", config.eval_data)):
        if path and not is_dataset_id(path) and not Path(path).is_file():
            raise InputError(f"{flag} {path} is not a file")
    if config.adapter:
        real = adapter_settings(config.adapter)
        for name, value in real.items():
            given = getattr(config, name)
            if given is not None and given != value and not config.full:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"{flag} {given}: the adapter in {config.adapter} has {value}; leave {flag} out")
    out, checkpoint = config.out and Path(config.out), find_checkpoint(config)
    if out and (out / "metrics.jsonl").exists():
        if not config.resume:
            raise InputError(f"{out} holds a run already: add --resume auto to continue it, or give another --out")
        if checkpoint and checkpoint.resolve().parent != (out / "checkpoints").resolve():
            raise InputError(f"--out {out} holds another run than --resume {checkpoint}: give another --out")
        if not checkpoint and ((out / "adapter").exists() or (out / "model").exists()):
            raise InputError(f"{out} holds a result and no checkpoint to resume: give another --out")
    if config.image_features:
        check_writable("--image-features", config.image_features, folder=True)
    check_writable("--out", config.out or "runs", folder=True)
    return checkpoint


def find_checkpoint(config: TrainConfig) -> Path | None:
    """The checkpoint that ``--resume`` means, None for a fresh start. Raises InputError if it does not exist."""
    if config.resume is None:
        return None
    if config.resume != "auto":
        path = Path(config.resume)
        if not (path / "state.json").is_file():
            raise InputError(f"--resume {path} is not a checkpoint (checkpoints/step-N of a run)")
        return path
    saved = _saved(Path(str(config.out)) / "checkpoints")
    return saved[-1] if saved else None


class RunDirectory:
    """Where one training run keeps its files."""

    def __init__(self, config: TrainConfig):
        self.path = Path(config.out) if config.out else _unused(Path("runs") / _stem(config.loss))
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.track: Callable[[dict], None] = lambda row: None  # called with every row of the metrics
        self.record: dict = {}
        make_folder(self.path)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the run directory {self.path} cannot be made: {error}") from None
        remove_leftovers(self.path, self.checkpoints)

    def start(self, config: TrainConfig, resumed_step: int, record: dict) -> None:
        """Writes the settings, and drops metrics and samples past the step that the run continues from (0: all).

        Checkpoints past that step move to a folder ``superseded``, which ``--keep`` and ``--resume auto`` ignore.
        record: what every checkpoint of the run stores (:func:`mint.training.resume.make_record`).
        """
        self.record = record
        write_aside(self.path / "config.toml", to_toml(config))
        for file in filter(Path.exists, (self.metrics, self.samples)):
            rows = []
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # the last line of a killed run may be cut
                    break
                if 0 < resumed_step >= row["step"]:
                    rows.append(line + "\n")
            write_aside(file, "".join(rows))
        later = [checkpoint for checkpoint in _saved(self.checkpoints) if _step(checkpoint) > resumed_step]
        if later:
            superseded = _unused(self.checkpoints / "superseded")
            superseded.mkdir()
            for checkpoint in later:
                checkpoint.rename(superseded / checkpoint.name)

    def log(self, row: dict) -> None:
        """Appends one row to ``metrics.jsonl``; tensors become numbers, non-finite numbers null."""
        plain = {key: _plain(value) for key, value in row.items()}
        _append(self.metrics, plain)
        self.track(plain)

    def log_sample(self, row: dict) -> None:
        """Appends one row to ``samples.jsonl``."""
        _append(self.samples, row)

    def rows(self) -> list[dict]:
        """The rows of ``metrics.jsonl``; none before the first."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
        return [json.loads(line) for line in lines]

    def has_evaluation(self, step: int) -> bool:
        """Whether the metrics hold an evaluation of ``step``."""
        return any(row["step"] == step and "eval/loss" in row for row in self.rows())

    def save_result(self, model: CausalLM, folder: Path | None = None) -> Path:
        """Writes the adapter, or after full fine-tuning the model; returns its folder."""
        folder = self.path if folder is None else folder
        if lora_layers(model):
            save_adapter(model, folder / "adapter")
            return folder / "adapter"
        save_model(model, folder / "model")
        return folder / "model"

    def save_checkpoint(
        self, step: int, model: CausalLM, optimizer: torch.optim.Optimizer, keep: int, best: str | None = None
    ) -> Path:
        """Writes ``checkpoints/step-N``; removes all but the ``keep`` newest and the best by the metric ``best``."""
        final = self.checkpoints / f"step-{step}"
        with folder_aside(final, sync=True) as aside:
            self.save_result(model, aside)
            cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
            state = {"optimizer": optimizer.state_dict(), "cpu_rng": torch.get_rng_state(), "cuda_rng": cuda}
            torch.save(state, aside / "state.pt")
            (aside / "state.json").write_text(json.dumps({"step": step, **self.record}) + "\n", encoding="utf-8")
        spared = self.best_checkpoint(best)
        for old in _saved(self.checkpoints)[:-keep]:
            if old != spared:
                shutil.rmtree(old)
        return final

    def best_checkpoint(self, metric: str | None) -> Path | None:
        """The saved checkpoint with the best evaluation by ``metric``; None without a metric or such a checkpoint."""
        saved: dict[int | None, Path] = {_step(checkpoint): checkpoint for checkpoint in _saved(self.checkpoints)}
        return saved.get(best_step([row for row in self.rows() if row["step"] in saved], metric)) if metric else None


def load_checkpoint(path: Path, model: CausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Puts weights, optimiser and random states back as they were; returns the step. Raises InputError if damaged."""
    step = read_state(path)["step"]
    try:
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"the checkpoint {path} cannot be read: {error}") from None
    load_weights(path, model)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["cpu_rng"])
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return step


def load_weights(path: Path, model: CausalLM) -> None:
    """Puts the weights of a checkpoint into ``model``. Raises InputError if they do not fit or cannot be read."""
    if lora_layers(model):
        restore_adapter(model, path / "adapter")
    else:
        parameter = next(model.parameters())
        saved = load_model(path / "model", dtype=parameter.dtype, device=parameter.device)
        model.load_state_dict(saved.state_dict())


def _append(file: Path, row: dict) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _stem(loss: str) -> str:
    return Path(loss.rpartition(":")[0]).stem + "-" + loss.rpartition(":")[2] if ":" in loss else loss


def _unused(path: Path) -> Path:
    """``path``, or the first of path-2, path-3, ... that does not exist."""
    number = 2
    candidate = path
    while candidate.exists():
        candidate = path.with_name(f"{path.name}-{number}")
        number += 1
    return candidate


def _saved(checkpoints: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    found = (path for path in checkpoints.glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted((path for path in found if (path / "state.json").is_file()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _plain(value):
    if isinstance(value, torch.Tensor):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

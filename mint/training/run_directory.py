"""The run directory: settings, metrics and checkpoints, each written so that a kill at any moment loses nothing.

config.toml           the resolved settings
metrics.jsonl         a row for every step and every evaluation
samples.jsonl         sample answers (--sample-every)
adapter/              the trained adapter, PEFT's files and a model card (model/ after full fine-tuning)
checkpoints/step-N/   adapter/ or model/, state.pt (optimiser, random states), state.json (mint.training.checkpoints)
reference/            values of the reference (--cache-reference)
curves.png            loss, reward margin and accuracy over the steps; of an interrupted run too
.lock                 while a run is active in the folder
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch

from mint import parallel
from mint.config import TrainConfig
from mint.errors import InputError
from mint.files import (
    append_text,
    check_paths,
    check_writable,
    folder_aside,
    lock,
    make_folder,
    remove_leftovers,
    write_aside,
)
from mint.flags import to_toml
from mint.hub import is_dataset_id
from mint.models import save_model
from mint.models.checkpoint import placed_tensors, stored_tensors
from mint.models.llama import CausalLM
from mint.models.lora import adapter_settings, lora_layers, restore_adapter, save_adapter
from mint.models.quantized import quantizer
from mint.training.checkpoints import (
    check_checkpoint,
    newest_intact,
    read_state,
    saved_checkpoints,
    step_of,
    write_state,
)
from mint.training.selection import best_step, is_out_of_patience
from mint.training.track import check_tracker

OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO)
NUMBER = (int, float, type(None))  # of the metrics; null stands for one that is not finite


@contextmanager
def open_run(config: TrainConfig) -> Iterator[RunDirectory]:
    """The folder of a run: its settings checked, made, locked, and ``resumed`` set to the checkpoint to continue from.

    An error after the start of the run names the last good checkpoint. Folders that are made and not used are removed.
    Of several processes the first one does all this, and the others are told.
    """
    check_settings(config)
    out = Path(config.out or "runs")
    new = [folder for folder in (out, *out.parents) if not folder.exists()] if parallel.is_main() else []
    run = RunDirectory(config)
    busy = f"{run.path} is in use by another run: wait for its end, or give another --out"
    try:
        with lock(run.path / ".lock", busy) if parallel.is_main() else nullcontext():
            if parallel.is_main():
                remove_leftovers(run.path, run.checkpoints, run.path / "adapter", run.path / "model")
            run.resumed = parallel.on_main(lambda: choose_checkpoint(config))
            yield run
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in OF_DISKS:
            raise  # a bug, ours or of a loss of the user's
        last = run.last_good() if run.started else None
        if last is None and isinstance(error, InputError):
            raise
        kept = f"; the last good checkpoint is {last} (--resume {last} continues from it)" if last else ""
        raise InputError(f"{error}{kept}") from None
    finally:
        for folder in new if config.out or not parallel.is_main() else (run.path, *new):
            with suppress(OSError):  # those that are not empty stay
                folder.rmdir()


def check_run(config: TrainConfig) -> Path | None:
    """The checkpoint that the run continues from, None for a new run; checked before a model is loaded.

    Raises InputError as :func:`check_settings` and :func:`choose_checkpoint` do.
    """
    check_settings(config)
    return choose_checkpoint(config)


def check_settings(config: TrainConfig) -> None:
    """Raises InputError for settings that cannot be used, whatever ``--out`` holds.

    These are paths, adapter settings that are given with ``--adapter`` and differ from the adapter's, and a tracker
    or a library for quantised weights that is not installed.
    """
    check_paths(config)
    check_tracker(config.track)
    if config.quantize:
        quantizer(config.quantize)
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
    if config.image_features:
        check_writable("--image-features", config.image_features, folder=True)
    check_writable("--out", config.out or "runs", folder=True)


def choose_checkpoint(config: TrainConfig) -> Path | None:
    """The checkpoint that ``--resume`` means, verified; None for a fresh start. Damaged newer ones are reported.

    Raises InputError if it does not exist or is damaged, and for an ``--out`` that holds what would be lost.
    """
    out, checkpoint = config.out and Path(config.out), _find_checkpoint(config)
    if out and (out / "metrics.jsonl").exists():
        if not config.resume:
            raise InputError(f"{out} holds a run already: add --resume auto to continue it, or give another --out")
        if checkpoint and checkpoint.resolve().parent != (out / "checkpoints").resolve():
            raise InputError(f"--out {out} holds another run than --resume {checkpoint}: give another --out")
        if not checkpoint and ((out / "adapter").exists() or (out / "model").exists()):
            raise InputError(f"{out} holds a result and no checkpoint to resume: give another --out")
    return checkpoint


def _find_checkpoint(config: TrainConfig) -> Path | None:
    if config.resume is None:
        return None
    if config.resume != "auto":
        path = Path(config.resume)
        if not (path / "state.json").is_file():
            raise InputError(f"--resume {path} is not a checkpoint (checkpoints/step-N of a run)")
        check_checkpoint(path)
        return path
    checkpoint, problems = newest_intact(Path(str(config.out)) / "checkpoints")
    if problems and checkpoint is None:
        raise InputError(f"--out {config.out} has no intact checkpoint ({'; '.join(problems)}): give another --out")
    for problem in problems:
        print(f"{problem}; {checkpoint} is resumed instead", file=sys.stderr)
    return checkpoint


class RunDirectory:
    """Where one training run keeps its files. Of several processes the first one alone writes and reads them."""

    def __init__(self, config: TrainConfig):
        """The folder is made; without ``config.out``, one that no other run has."""
        unnamed = Path("runs") / _stem(config.loss)
        self.path = parallel.on_main(lambda: make_folder(config.out) if config.out else _make_unused(unnamed))
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.track: Callable[[dict], None] = lambda row: None  # called with every row of the metrics
        self.record: dict = {}
        self.resumed: Path | None = None  # the checkpoint that the run continues from
        self.started = False

    def start(self, config: TrainConfig, resumed_step: int, record: dict) -> None:
        """Writes the settings, and drops metrics and samples past the step that the run continues from (0: all).

        Checkpoints past that step move to a folder ``superseded``, with the metrics and samples as they are then;
        ``--keep`` and ``--resume auto`` ignore it. record: what every checkpoint of the run stores
        (:func:`mint.training.resume.make_record`).
        """
        self.record, self.started = record, True
        if not parallel.is_main():
            return
        make_folder(self.checkpoints)
        logs = [file for file in (self.metrics, self.samples) if file.exists()]
        later = [checkpoint for checkpoint in saved_checkpoints(self.checkpoints) if step_of(checkpoint) > resumed_step]
        if later:  # first: a kill before the metrics are cut leaves a branch complete, this one or the other
            superseded = _make_unused(self.checkpoints / "superseded")
            for file in logs:
                shutil.copyfile(file, superseded / file.name)
            for checkpoint in reversed(later):
                checkpoint.rename(superseded / checkpoint.name)
        write_aside(self.path / "config.toml", to_toml(config))
        for file in logs:
            rows = [line for line, row in _read_rows(file) if 0 < resumed_step >= row["step"]]
            write_aside(file, "".join(line + "\n" for line in rows))

    def log(self, row: dict) -> None:
        """Appends one row to ``metrics.jsonl``; tensors become numbers, non-finite numbers null."""
        if not parallel.is_main():
            return
        plain = {key: _plain(value) for key, value in row.items()}
        _append(self.metrics, plain)
        self.track(plain)

    def log_sample(self, row: dict) -> None:
        """Appends one row to ``samples.jsonl``."""
        _append(self.samples, row)

    def rows(self) -> list[dict]:
        """The rows of ``metrics.jsonl``; none before the first, nor in another process. Damaged ones are left out."""
        rows = [row for _, row in _read_rows(self.metrics)] if parallel.is_main() and self.metrics.exists() else []
        return [row for row in rows if all(isinstance(row[name], NUMBER) for name in row.keys() - {"skipped"})]

    def last_good(self) -> Path | None:
        """The newest intact checkpoint of the run, else the one that it continued from; None without any."""
        with suppress(OSError):
            return newest_intact(self.checkpoints)[0] or self.resumed
        return self.resumed

    def has_evaluation(self, step: int) -> bool:
        """Whether the metrics hold an evaluation of ``step``."""
        return parallel.on_main(lambda: any(row["step"] == step and "eval/loss" in row for row in self.rows()))

    def is_out_of_patience(self, metric: str | None, patience: int | None) -> bool:
        """:func:`mint.training.selection.is_out_of_patience` of the metrics."""
        return parallel.on_main(lambda: is_out_of_patience(self.rows(), metric, patience))

    def save_result(self, model: CausalLM, folder: Path | None = None) -> Path:
        """Writes the adapter, or after full fine-tuning the model; returns its folder. All processes call it."""
        folder = self.path if folder is None else folder
        weights = sharding().gather_tensors(model.state_dict()) if is_sharded(model) else None
        if not parallel.is_main():
            return folder
        if lora_layers(model):
            save_adapter(model, folder / "adapter")
            return folder / "adapter"
        save_model(model, folder / "model", tensors=weights)
        return folder / "model"

    def save_checkpoint(
        self, step: int, model: CausalLM, optimizer: torch.optim.Optimizer, keep: int, best: str | None = None
    ) -> Path:
        """Writes ``checkpoints/step-N``; removes all but the ``keep`` newest and the best by the metric ``best``."""
        final = self.checkpoints / f"step-{step}"
        moments = sharding().gather_moments(optimizer) if is_sharded(model) else optimizer.state_dict()
        if not parallel.is_main():
            self.save_result(model)
            return final
        with folder_aside(final, sync=True) as aside:
            self.save_result(model, aside)
            cuda = cuda_random_states()
            state = {"optimizer": moments, "cpu_rng": torch.get_rng_state(), "cuda_rng": cuda}
            with (aside / "state.pt").open("wb") as file:  # torch.save(path) reports a full disk as an internal error
                torch.save(state, file)
            write_state(aside, {"step": step, **self.record})
        spared = (final, self.best_checkpoint(best))
        for old in saved_checkpoints(self.checkpoints)[:-keep]:
            if old not in spared:
                shutil.rmtree(old)
        return final

    def best_checkpoint(self, metric: str | None) -> Path | None:
        """The saved checkpoint with the best evaluation by ``metric``; None without a metric or such a checkpoint."""
        saved: dict[int | None, Path] = {step_of(path): path for path in saved_checkpoints(self.checkpoints)}
        return saved.get(best_step([row for row in self.rows() if row["step"] in saved], metric)) if metric else None


def load_checkpoint(path: Path, model: CausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Puts weights, optimiser and random states back as they were; returns the step.

    The files are verified before, by :func:`choose_checkpoint`. Raises InputError if they cannot be loaded all the
    same, as those of a checkpoint without checksums.
    """
    step = read_state(path)["step"]
    load_weights(path, model)
    try:
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu", mmap=is_sharded(model))
        moments = state["optimizer"]
        optimizer.load_state_dict(sharding().part_moments(optimizer, moments) if is_sharded(model) else moments)
        torch.set_rng_state(state["cpu_rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            if parallel.size() == 1 and len(state["cuda_rng"]) <= torch.cuda.device_count():
                torch.cuda.set_rng_state_all(state["cuda_rng"])
            else:
                torch.cuda.set_rng_state(state["cuda_rng"][0])
    except Exception as error:  # of damaged bytes: any
        raise InputError(
            f"the checkpoint {path} is damaged: state.pt cannot be loaded ({_first_line(error)})"
        ) from None
    return step


def is_sharded(model: CausalLM) -> bool:
    """Whether trained weights of ``model`` are sharded, which those of an adapter never are."""
    return hasattr(model, "reshard") and not lora_layers(model)


def sharding():
    """The module, which is imported where weights are sharded: FSDP takes a second."""
    from mint.training import sharding

    return sharding


def cuda_random_states() -> list[torch.Tensor]:
    """The random states of this process's CUDA devices; none without CUDA. One of several processes has one device."""
    if not torch.cuda.is_available():
        return []
    return torch.cuda.get_rng_state_all() if parallel.size() == 1 else [torch.cuda.get_rng_state()]


def load_weights(path: Path, model: CausalLM) -> None:
    """Puts the weights of a checkpoint into ``model``. Raises InputError if they do not fit or cannot be read."""
    try:
        if lora_layers(model):
            restore_adapter(model, path / "adapter")
        elif is_sharded(model):
            sharding().load_parts(model, str(path / "model"))
        else:
            own, folder = model.state_dict(), path / "model"
            for name, tensor in placed_tensors(model, stored_tensors(folder), folder):  # one at a time
                own[name].copy_(tensor)
    except InputError:
        raise
    except Exception as error:  # of damaged bytes: any
        raise InputError(f"the checkpoint {path} is damaged: its weights do not load ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _append(file: Path, row: dict) -> None:
    append_text(file, json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _stem(loss: str) -> str:
    return Path(loss.rpartition(":")[0]).stem + "-" + loss.rpartition(":")[2] if ":" in loss else loss


def _make_unused(path: Path) -> Path:
    """Makes ``path``, or the first of path-2, path-3, ... that does not exist; returns it."""
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            candidate.mkdir(0o700, parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"{candidate} cannot be made: {error}") from None
    return candidate


def _read_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """The lines of a log with their rows. Those that a kill has cut, or that were damaged since, are left out."""
    for line in file.read_bytes().split(b"\n"):  # bytes: a kill may cut within a character
        try:
            text = line.decode()
            row = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            yield text, row


def _plain(value):
    if isinstance(value, torch.Tensor):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What a checkpoint belongs to: settings and training pairs, recorded with it and compared when a run is continued.

``state.json`` of a checkpoint holds ``step``, ``total`` (steps of the run), ``settings``, ``pairs`` (their number) and
``pairs_sha256``. The hash covers what training reads, in its order: token ids, spans and other fields of every pair,
and of each image the file name and the size in bytes. Image contents, folders, modification times and record ids are
left out: reading every image would be slow, and the others change when a data set is copied.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from mint.config import TrainConfig
from mint.data.batch import EncodedPair
from mint.errors import InputError

# Settings that may differ: where files are (the pairs are compared by their hash), what is saved, evaluated and shown,
# how the same update is computed, and the length of the run. Any other would make it another run.
FREE_TO_CHANGE = {
    *("resume", "out", "data", "eval_data", "images_anywhere", "image_features"),
    *("save_every", "keep", "eval_every"),
    *("device", "compile", "checkpoint_activations"),
    *("steps", "epochs"),
}


def make_record(config: TrainConfig, dtype: torch.dtype, pairs: Sequence[EncodedPair], total: int) -> dict:
    """What ``state.json`` stores beside the step; ``dtype`` is the one that ``auto`` stands for."""
    settings = _plain(dataclasses.replace(config, dtype=str(dtype).removeprefix("torch.")))
    return {"total": total, "settings": settings, "pairs": len(pairs), "pairs_sha256": hash_pairs(pairs)}


def hash_pairs(pairs: Iterable[EncodedPair]) -> str:
    """SHA-256 of the encoded pairs (see the module), in hexadecimal."""
    digest = hashlib.sha256()
    for pair in pairs:
        _add(digest, pair)
    return digest.hexdigest()


def _add(digest, pair: EncodedPair) -> None:
    for field in dataclasses.fields(pair):
        value = getattr(pair, field.name)
        if field.name == "id":
            continue
        if field.name == "images":
            value = [(Path(file).name, Path(file).stat().st_size) for file in value]
        digest.update(f"{field.name}:".encode())
        if isinstance(value, EncodedPair):
            _add(digest, value)
        elif isinstance(value, list) and all(isinstance(item, int) for item in value[:1]):  # token ids, spans
            digest.update(b"%d;" % len(value) + array("q", value).tobytes())
        else:
            digest.update(repr(value).encode() + b";")


def check_record(checkpoint: Path, record: dict) -> list[str]:
    """Compares the run of a checkpoint with the one that is to continue it; returns notes for the user.

    record: of the run that continues (:func:`make_record`). A checkpoint without settings, of an earlier version, is
    compared with the ``config.toml`` of its run; its pairs cannot be compared, which is one of the notes.
    Raises InputError if settings or pairs differ, or the run is shorter than the checkpoint.
    """
    state = read_state(checkpoint)
    saved, now, notes = state.get("settings"), record["settings"], []
    if saved is None:
        saved = _old_settings(checkpoint, now)
        what = "its training pairs" if saved else "its settings and training pairs"
        notes.append(f"warning: {checkpoint} is of an earlier version: {what} cannot be compared with this run's")
    saved = {**_plain(TrainConfig()), **(saved or now)}
    wrong = [
        f"--{name.replace('_', '-')}: {saved.get(name)} -> {value}"
        for name, value in sorted(now.items())
        if name not in FREE_TO_CHANGE and saved.get(name) != value
    ]
    if state.get("pairs_sha256", record["pairs_sha256"]) != record["pairs_sha256"]:
        same = ", with other contents or in another order" if state["pairs"] == record["pairs"] else ""
        wrong.append(f"training pairs: {state['pairs']} -> {record['pairs']}{same}")
    if wrong:
        raise InputError(
            f"{checkpoint} belongs to a run with other settings or data ({'; '.join(wrong)}); resume with the same, or "
            "start a new run without --resume (--adapter DIR continues from a trained adapter)"
        )
    total, before = record["total"], state.get("total", record["total"])
    if total < state["step"]:
        raise InputError(f"{checkpoint} is past the end of a run of {total} steps; raise --steps or --epochs")
    if total != before:
        schedule = now["schedule"]
        notes.append(
            f"the run now has {total} steps instead of {before}"
            + (f"; the {schedule} schedule spans the new length" if schedule != "constant" else "")
        )
    return notes


def read_state(checkpoint: Path) -> dict:
    """``state.json`` of a checkpoint. Raises InputError if it cannot be read."""
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        return {**state, "step": int(state["step"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the checkpoint {checkpoint} cannot be read: {error}") from None


def _old_settings(checkpoint: Path, now: dict) -> dict | None:
    """The settings in ``config.toml`` of the checkpoint's run, as far as they decide; None if there are none."""
    try:
        saved = tomllib.loads((checkpoint.parent.parent / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if saved.get("dtype") == "auto":
        saved["dtype"] = now["dtype"]
    if saved.get("adapter"):  # its own values count, and earlier versions recorded the defaults
        saved |= {name: now[name] for name in TrainConfig.LORA_DEFAULTS}
    return saved


def _plain(config: TrainConfig) -> dict:
    """The settings as JSON has them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))

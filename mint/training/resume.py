"""What a checkpoint belongs to: settings and training pairs, recorded with it and compared when a run is continued.

``state.json`` of a checkpoint holds ``total`` (steps of the run), ``settings``, ``pairs`` (their number) and
``pairs_sha256``, beside the step and the checksums of :mod:`mint.training.checkpoints`. ``pairs_sha256`` covers what
training reads, in its order: token ids, spans and other fields of every pair, and of each image the file name and the
size in bytes. Image contents, folders, modification times and record ids are left out: reading every image would be
slow, and the others change when a data set is copied.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from mint.config import TrainConfig
from mint.data.batch import EncodedPair
from mint.data.streamed_pairs import StreamedPairs
from mint.errors import InputError
from mint.flags import loss_settings
from mint.training.checkpoints import read_state

# Settings that may differ: where files are (the pairs are compared by their hash), what is saved, evaluated and shown,
# how the same update is computed, and the length of the run. Any other would make it another run.
FREE_TO_CHANGE = {
    *("resume", "out", "data", "eval_data", "images_anywhere", "image_features"),
    *("save_every", "keep", "eval_every", "sample_every", "best", "patience", "track"),
    *("device", "compile", "shard", "checkpoint_activations", "cache_reference", "tf32"),
    *("steps", "epochs"),
}


def make_record(config: TrainConfig, dtype: torch.dtype, pairs: Sequence[EncodedPair], total: int) -> dict:
    """What ``state.json`` stores beside the step; ``dtype`` is the one that ``auto`` stands for."""
    settings = _plain(dataclasses.replace(config, dtype=str(dtype).removeprefix("torch.")))
    return {"total": total, "settings": settings, "pairs": len(pairs), "pairs_sha256": hash_pairs(pairs)}


def hash_pairs(pairs: Iterable[EncodedPair]) -> str:
    """SHA-256 of the encoded pairs (see the module), in hexadecimal.

    Of streamed pairs: of the file as it is, and of a sample of encoded pairs.
    """
    digest = hashlib.sha256()
    if isinstance(pairs, StreamedPairs):
        digest.update(pairs.sha256.encode())
        pairs = pairs.sample
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

    record: of the run that continues (:func:`make_record`). Raises InputError if settings or pairs differ, or if the
    run is shorter than the checkpoint.
    """
    state = read_state(checkpoint)
    saved, now = (_comparable({**_plain(TrainConfig()), **of["settings"]}) for of in (state, record))
    names = {*saved, *now} - FREE_TO_CHANGE
    if saved["loss"] != now["loss"]:  # then its settings say nothing
        names = {name for name in names if name not in TrainConfig.LOSS_OPTIONS and not name.startswith("loss-arg")}
    wrong = [
        f"--{name.replace('_', '-')}: {saved.get(name)} -> {now.get(name)}"
        for name in sorted(names)
        if saved.get(name) != now.get(name)
    ]
    if state["pairs_sha256"] != record["pairs_sha256"]:
        same = ", with other contents or in another order" if state["pairs"] == record["pairs"] else ""
        wrong.append(f"training pairs: {state['pairs']} -> {record['pairs']}{same}")
    if wrong:
        raise InputError(
            f"{checkpoint} belongs to a run with other settings or data ({'; '.join(wrong)}); resume with the same, or "
            "start a new run without --resume (--adapter DIR continues from a trained adapter)"
        )
    total, before = record["total"], state["total"]
    if total < state["step"]:
        raise InputError(f"{checkpoint} is past the end of a run of {total} steps; raise --steps or --epochs")
    if total == before:
        return []
    schedule = "" if now["schedule"] == "constant" else f"; the {now['schedule']} schedule spans the new length"
    return [f"the run now has {total} steps instead of {before}{schedule}"]


def _comparable(settings: dict) -> dict:
    """The settings with full paths of model, adapter and loss file, and each setting of the loss under its own name.

    A setting of the loss that was not given has its default, so that giving the default changes nothing.
    """
    file, colon, function = settings["loss"].rpartition(":")
    paths = {"model": settings["model"], "adapter": settings["adapter"], "loss": file or None}
    full = {name: str(Path(path).resolve()) for name, path in paths.items() if path and Path(path).exists()}
    if "loss" in full:
        full["loss"] += colon + function
    given = {name: value for name in TrainConfig.LOSS_OPTIONS if (value := settings[name]) is not None}
    of_loss = {**loss_settings().get(settings["loss"], {}), **given, **settings["loss_args"]}
    named = {name if name in TrainConfig.LOSS_OPTIONS else f"loss-arg {name}": value for name, value in of_loss.items()}
    return {**settings, **full, "loss_args": {}, **named}


def _plain(config: TrainConfig) -> dict:
    """The settings as JSON has them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))

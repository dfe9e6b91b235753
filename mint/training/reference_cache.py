"""``--cache-reference``: the reference of every pair is computed once, before the first step, and kept on disk.

The folder ``reference`` of a run holds, for each reference, a folder that is named by a fingerprint of its weights, its
adapter, the image processor, the number format and what the loss needs of it. A resumed run finds its own there; those
of other references are deleted.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from mint import parallel
from mint.data.batch import EncodedPair, tokens_per_pair
from mint.data.image_features import fingerprint
from mint.errors import InputError
from mint.losses import Needs
from mint.models.lora import lora_layers
from mint.models.quantized import plain_parts
from mint.objective import ReferenceHead
from mint.progress import Progress
from mint.training.forward import Forward
from mint.training.reference_store import KEY_BYTES, ReferenceStore
from mint.training.setup import Data

FORM = 1  # of the stored values; raised when they are computed or stored differently
DISK_SHARE = 0.9  # of the free disk space


def cache_reference(forward: Forward, data: Data, steps: Sequence[Sequence[EncodedPair]], folder: Path) -> Forward:
    """``forward`` with the reference of the pairs read from ``folder``, where it is computed if it is not there yet.

    The model must be as training finds it, so a checkpoint is loaded after this. steps: the pairs of every optimiser
    step of the first epoch; their batches are those of training. Prints how large the files are before it starts.
    Raises InputError if they do not fit on the disk.
    """
    place = folder / fingerprint_reference(forward, data)
    for other in folder.glob("*") if parallel.is_main() else ():
        if other != place:
            shutil.rmtree(other, ignore_errors=True)
    store = _open(place, forward.loss.needs)
    groups = [*steps, data.eval_pairs]
    distinct = {store.key(pair): pair for pairs in groups for pair in pairs}
    missing = [pair for pair in distinct.values() if pair not in store]
    if missing:
        size = cache_bytes(forward, missing)
        known = len(distinct) - len(missing)
        reused = f"; {known} are there already" if known else ""
        print(f"reference cache: {len(missing)} pairs, {size / 1e6:,.1f} MB, in {place}{reused}")
        _check_room(folder, size)
        parallel.barrier()  # no process writes before all have looked
        fill(store, forward, groups)
        parallel.barrier()
        store = _open(place, forward.loss.needs)  # with what the others have computed
    else:
        print(f"reference cache: all pairs are in {place}")
    return replace(forward, reference=store, frozen=reference_head(forward))


def _open(place: Path, wants: Needs) -> ReferenceStore:
    """The store; the first process opens it before the others, since it deletes what is damaged or was left behind."""
    store = ReferenceStore(place, wants) if parallel.is_main() else None
    parallel.barrier()
    return store or ReferenceStore(place, wants)


def fill(store: ReferenceStore, forward: Forward, groups: Sequence[Sequence[EncodedPair]]) -> None:
    """Computes what is missing, in the batches that training and evaluation make of ``groups``."""
    lacking = [pairs for pairs in groups if any(pair not in store for pair in pairs)]
    with Progress(total=sum(map(len, lacking)), desc="reference", unit="pair", leave=False) as progress:
        for pairs in lacking:
            for batch, _, _ in forward.micro_batches(pairs):
                store.put(batch, forward.reference_values(batch))
            progress.update(len(pairs))
    store.flush()


def cache_bytes(forward: Forward, pairs: Sequence[EncodedPair]) -> int:
    """The size of the files for ``pairs``: log-probabilities, and for losses with a KL the final hidden states."""
    wants, norm = forward.loss.needs, forward.model.decoder.norm.weight
    targets = states = 0
    for pair in pairs:
        targets += round(sum(tokens_per_pair([pair], forward.prompt_targets).values()))
        states += _kl_tokens(pair, wants)
    number = torch.promote_types(norm.dtype, torch.float32).itemsize
    return targets * number + states * norm.numel() * norm.itemsize + len(pairs) * (KEY_BYTES + 16)


def _kl_tokens(pair: EncodedPair, wants: Needs) -> int:
    if not (wants.kl_forward or wants.kl_reverse):
        return 0
    return len(pair.chosen) if wants.kl_over == "all" or pair.chosen_span is None else sum(pair.chosen_span)


def _check_room(folder: Path, size: int) -> None:
    place = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    room = int(DISK_SHARE * shutil.disk_usage(place).free)
    if size > room:
        raise InputError(
            f"--cache-reference needs {size / 1e9:,.1f} GB in {folder}, and {room / 1e9:,.1f} GB can be used there: "
            "give an --out on a larger disk, or leave the flag out"
        )


def reference_head(forward: Forward) -> ReferenceHead | None:
    """The LM head of the reference where a KL needs it and training changes it; None elsewhere."""
    head, wants = forward.model.head_weight, forward.loss.needs
    if not head.requires_grad or not (wants.kl_forward or wants.kl_reverse):
        return None
    dtype = forward.autocast if head.is_cuda and forward.autocast else head.dtype  # the dtype of the products
    return ReferenceHead(head.detach().to(dtype, copy=True))


def fingerprint_reference(forward: Forward, data: Data) -> str:
    """Names the reference and what is stored of it."""
    model, wants = forward.model, forward.loss.needs
    weights = [part for name, x in model.state_dict().items() if ".lora_" not in name for part in plain_parts(name, x)]
    for name, layer in lora_layers(model).items():
        if layer.start is not None:
            weights += [(f"{name}.{layer.scaling}.{factor}", x) for factor, x in zip("AB", layer.start, strict=True)]
    kind = (FORM, forward.autocast, forward.prompt_targets, wants.kl_forward or wants.kl_reverse, wants.kl_over)
    content = f"{kind} {sorted(model.config.raw.items())} {fingerprint(weights, data.processor or SimpleNamespace())}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]

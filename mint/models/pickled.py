"""Pickled checkpoints (``pytorch_model.bin``, ``*.pt``), read without running the code that a pickle may hold.

``torch.load(weights_only=True)`` builds tensors and plain containers only. Files in PyTorch's present format are mapped
into memory, so a tensor is read when it is used.
"""

from __future__ import annotations

import functools
import re
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mint.errors import InputError
from mint.hub import MODEL_FILES, PICKLES, SETTINGS_FILES, list_files, pickled_weights, resolve_dir
from mint.models.checkpoint import INDEX, SINGLE, Stored, indexed_files, stored_tensors
from mint.models.names import current_name

PICKLED_INDEX, SINGLE_PICKLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
SHARD = re.compile(r"pytorch_model-\d+-of-\d+\.bin")
# Where training programs put the weights in what they save, and what wrappers of a network put before its names.
CONTAINERS = ("state_dict", "model_state_dict", "model", "module")
WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Source:
    """A checkpoint in either form. pickles: the files to unpickle; none where the folder holds safetensors."""

    name: str
    folder: Path
    pickles: tuple[Path, ...]

    def tensors(self, model: nn.Module | None = None) -> Iterator[Stored]:
        """Every tensor; see :func:`pickled_tensors` for ``model``."""
        return pickled_tensors(self.pickles, model) if self.pickles else stored_tensors(self.folder, self.name)


def find_source(name: str | Path) -> Source:
    """The checkpoint in a file, a directory or a hub repository; safetensors where there are some.

    Raises InputError if there are no weights, or several files that could be.
    """
    path = Path(name)
    if path.is_file():
        return Source(str(name), path.parent, (path,))
    names = list_files(name)
    if any(file in (INDEX, SINGLE) for file in names):
        return Source(str(name), resolve_dir(name, MODEL_FILES), ())
    chosen = _choose(names, name) if names else [f"*{ending}" for ending in PICKLES]
    folder = resolve_dir(name, (*SETTINGS_FILES, *chosen))
    if (folder / PICKLED_INDEX).is_file():
        files = indexed_files(folder / PICKLED_INDEX)
    else:
        files = [folder / file for file in _choose(list_files(folder), name)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)}, which its index names")
    return Source(str(name), folder, tuple(files))


def _choose(names: Sequence[str], where: str | Path) -> list[str]:
    """The files with the weights: all shards, or the only candidate."""
    found = pickled_weights(names)
    if not found:
        raise InputError(f"{where} holds no weights: neither *.safetensors nor *.bin, *.pt or *.pth")
    if PICKLED_INDEX in names or len(found) == 1 or all(SHARD.fullmatch(name) for name in found):
        return found
    if SINGLE_PICKLE in found:
        return [SINGLE_PICKLE]
    several = ", ".join(found)
    raise InputError(f"{where} holds several files of weights ({several}): give the path of one, with --config {where}")


def pickled_tensors(files: Sequence[Path], model: nn.Module | None = None) -> Iterator[Stored]:
    """Every tensor of the files, one file open at a time, without the prefixes that wrappers of a network add.

    model: whose names tell whether a common ``model.`` is such a prefix. Raises InputError as :func:`load_pickle` does.
    """
    for path in files:
        tensors = load_pickle(path)
        prefix = _wrapper(tensors, model)
        for name in tensors:
            yield path, name.removeprefix(prefix), functools.partial(tensors.__getitem__, name)


def load_pickle(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, also where it lies within a training checkpoint.

    Raises InputError for a file that cannot be read, holds anything but tensors and plain containers, or no state dict.
    """
    _check_stored(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged files raise exceptions of many kinds
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        if blocked:
            raise InputError(
                f"{path} pickles {blocked[1]}, which could run code, so nothing of it was loaded. If you trust the "
                "file, save its state dict alone (torch.save(model.state_dict(), FILE)) where it was made, and convert "
                "that"
            ) from None
        script = "TorchScript" in str(error)
        kind = "a TorchScript archive, not a state dict" if script else "damaged or no file of PyTorch's"
        raise InputError(f"{path} cannot be read: it is {kind}") from None
    while isinstance(content, dict):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = isinstance(content, dict) and content and all(isinstance(t, Tensor) for t in content.values())
    if not tensors or not all(isinstance(name, str) for name in content):
        places = ", ".join(CONTAINERS)
        raise InputError(f"{path} holds no state dict (a dictionary of tensors, alone or under {places})")
    size = path.stat().st_size
    for name, tensor in content.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.nbytes > size:
            raise InputError(f"{path}: {name:.100} is not a plain tensor, or larger than the file")
    return content


def _check_stored(path: Path) -> None:
    """Raises InputError for a zip archive with packed members, which could be of any size; PyTorch packs none."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = sum(member.file_size for member in archive.infolist()) > path.stat().st_size
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # PyTorch's older form, or no checkpoint at all
    if packed:
        raise InputError(f"{path} is a packed archive, which PyTorch does not write; its content is not read")


def _wrapper(names: Collection[str], model: nn.Module | None) -> str:
    """The common prefix that is no part of the model's names: data parallelism's ``module.``, Lightning's ``model.``"""
    prefix = ""
    while found := next((w for w in WRAPPERS if all(name.startswith(prefix + w) for name in names)), None):
        prefix += found
    if model is not None and all(name.startswith(f"{prefix}model.") for name in names):
        own = model.state_dict()

        def known(start: str) -> int:
            return sum(current_name(model, name.removeprefix(start)) in own for name in names)

        if known(f"{prefix}model.") > known(prefix):
            prefix += "model."
    return prefix

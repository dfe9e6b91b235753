"""Image features of a frozen tower on disk, reused from one run to the next."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from mint.errors import InputError

FORM = 2  # of what is stored; to be raised when images are read or encoded differently
DISK_SHARE = 0.5  # of the free disk space, what the folder holds already included, that it may take


class FeatureStore:
    """A folder with one file of tensors for each image, found by the image's content and the tower that read it.

    An image that changes, or another tower, processor or number format, is another entry: nothing stale is ever read.
    The folder takes at most DISK_SHARE of the free disk space.
    """

    def __init__(self, folder: str | Path, tower: Callable[[], str]):
        """tower: gives its name, from :func:`fingerprint`; asked for once, when the store is first used."""
        self._root, self._tower = Path(folder), tower
        self._full = False

    @cached_property
    def folder(self) -> Path:
        return self._root / self._tower()

    def get(self, file: str) -> dict[str, Tensor] | None:
        """The tensors of an image; None if they are not there, or were damaged (then they are made again)."""
        try:
            return load_file(self._place(file))
        except (FileNotFoundError, SafetensorError):
            return None

    def put(self, file: str, tensors: dict[str, Tensor]) -> bool:
        """Stores the tensors of an image, unless the folder has its share of the disk; returns whether it did.

        Written aside and renamed. Raises InputError if the folder cannot be written.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        if not self._has_room(size):
            return False
        place = self._place(file)
        temporary = place.with_suffix(".tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
            temporary.replace(place)
        except (OSError, SafetensorError) as error:
            raise InputError(f"image features cannot be written to {place.parent}: {error}") from None
        self._bytes += size
        return True

    @cached_property
    def _bytes(self) -> int:
        """What the folder holds."""
        return sum(stored.stat().st_size for stored in self._root.rglob("*.safetensors"))

    def _has_room(self, size: int) -> bool:
        """Whether ``size`` more bytes are within the share; says once when they are not."""
        place = next(folder for folder in (self._root, *self._root.resolve().parents) if folder.is_dir())
        fits = self._bytes + size <= DISK_SHARE * (shutil.disk_usage(place).free + self._bytes)
        if not fits and not self._full:
            self._full = True
            share = f"{self._bytes / 1e9:.1f} GB, which is {DISK_SHARE:.0%} of the free disk space"
            message = f"image features: {self._root} holds {share}; further images are encoded each time"
            tqdm.write(message, file=sys.stderr)
        return fits

    def remove(self) -> None:
        """Deletes all of it."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _place(self, file: str) -> Path:
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"


def fingerprint(tensors: Iterable[tuple[str, Tensor]], processor: object) -> str:
    """A name for what is made of images: by a tower of these named tensors, behind this image processor."""
    settings = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(processor).items()}
    digest = hashlib.sha256(f"{FORM} {type(processor).__name__} {sorted(settings.items())}".encode())
    for name, tensor in tensors:
        plain = tensor.detach().cpu().reshape(-1)
        digest.update(f"{name} {plain.dtype} {tuple(tensor.shape)}".encode())
        digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]

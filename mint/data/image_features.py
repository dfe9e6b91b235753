"""Step 4 of 4 from a record to image features: the images of a batch as tensors, each image read once per run.

A frozen vision encoder gives the same features for an image every time, so they are computed once and kept in memory
or on disk. Pixels are kept where the encoder is trained.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from mint import parallel
from mint.data.image_files import open_image
from mint.data.images import Processor, VisionModel
from mint.errors import InputError
from mint.files import file_aside

KEPT_BYTES = 2**30  # of tensors in memory
FORM = 2  # of stored features; raised when images are read or encoded differently
DISK_SHARE = 0.5  # of the disk space that is free or taken by the store itself
Encode = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class FeatureStore:
    """A folder with one file of tensors per image, named by the image's content and the encoder's fingerprint.

    Another image content, encoder, processor or number format gives another name, so stale features are never read.
    The folder takes at most DISK_SHARE of the free disk space.
    """

    def __init__(self, folder: str | Path, encoder: Callable[[], str]):
        """encoder: returns the fingerprint; called once, when the store is first used."""
        self._root, self._encoder = Path(folder), encoder
        self._full = False

    @cached_property
    def folder(self) -> Path:
        return self._root / self._encoder()

    def get(self, file: str) -> dict[str, Tensor] | None:
        """The tensors of an image; None if they are missing or damaged."""
        try:
            return load_file(self._place(file))
        except (FileNotFoundError, SafetensorError):
            return None

    def put(self, file: str, tensors: dict[str, Tensor]) -> bool:
        """Stores the tensors of an image if they fit into the folder's share of the disk; returns whether it did.

        Raises InputError if the folder cannot be written.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        if not self._has_room(size):
            return False
        place = self._place(file)
        try:
            with file_aside(place) as aside:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)
        except SafetensorError as error:
            raise InputError(f"image features cannot be written to {place.parent}: {error}") from None
        self._bytes += size
        return True

    @cached_property
    def _bytes(self) -> int:
        """The size of what the folder holds."""
        return sum(stored.stat().st_size for stored in self._root.rglob("*.safetensors"))

    def _has_room(self, size: int) -> bool:
        """Whether ``size`` more bytes are within the share; prints a note the first time they are not."""
        place = next(folder for folder in (self._root, *self._root.resolve().parents) if folder.is_dir())
        fits = self._bytes + size <= DISK_SHARE * (shutil.disk_usage(place).free + self._bytes)
        if not fits and not self._full:
            self._full = True
            share = f"{self._bytes / 1e9:.1f} GB, which is {100 * DISK_SHARE:.0f} % of the free disk space"
            message = f"image features: {self._root} holds {share}; further images are encoded each time"
            tqdm.write(message, file=sys.stderr)
        return fits

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _place(self, file: str) -> Path:
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"


def fingerprint(tensors: Iterable[tuple[str, Tensor]], processor: object) -> str:
    """A hash of the weights of a vision encoder, given by name, and of its image processor's settings."""
    settings = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(processor).items()}
    digest = hashlib.sha256(f"{FORM} {type(processor).__name__} {sorted(settings.items())}".encode())
    for name, tensor in tensors:
        plain = tensor.detach().cpu().reshape(-1)
        digest.update(f"{name} {plain.dtype} {tuple(tensor.shape)}".encode())
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


class ImageReader:
    """``reader(files)`` -> tensors of the distinct files, and ``order`` [len(files)]: the index of each file in them.

    The tensors are those of the processor, or ``encode`` of them. Up to KEPT_BYTES are kept in memory. ``store`` keeps
    all of them on disk, or with ``overflow`` only those that do not fit into memory.
    """

    def __init__(
        self,
        processor: Processor,
        encode: Encode | None = None,
        store: FeatureStore | None = None,
        overflow: bool = False,
    ):
        self.processor, self._encode, self._store, self._overflow = processor, encode, store, overflow
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._pixels: dict[str, dict[str, Tensor]] = {}  # read ahead, not encoded yet
        self._bytes = 0
        self._spilt: set[str] = set()
        self._lock = threading.Lock()

    def holds(self, files: Sequence[str]) -> bool:
        """Whether all of ``files`` can be read without ``encode``, as far as this reader has seen them."""
        return self._encode is None or all(file in self._kept or file in self._spilt for file in files)

    def read_ahead(self, files: Sequence[str]) -> None:
        """Reads the images of which there are no features yet, so that a call of this reader only encodes them.

        For another thread. Up to KEPT_BYTES of pixels wait; images beyond that are left to the call, as are all images
        where features are kept from one run to the next.
        """
        if self._encode is None or self._store and not self._overflow:
            return
        for file in files:
            waiting = sum(tensor.nbytes for pixels in list(self._pixels.values()) for tensor in pixels.values())
            if waiting >= KEPT_BYTES:
                return
            if not (file in self._kept or file in self._spilt or file in self._pixels):
                self._pixels[file] = self.processor([open_image(file)])

    def __call__(self, files: Sequence[str]) -> dict[str, Tensor]:
        distinct = list(dict.fromkeys(files))
        with self._lock:
            parts = [self._read(file) for file in distinct]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {**tensors, "order": torch.tensor([distinct.index(file) for file in files])}

    def _read(self, file: str) -> dict[str, Tensor]:
        if file in self._kept:
            return self._kept[file]
        stored = self._store.get(file) if self._store and (file in self._spilt or not self._overflow) else None
        tensors = stored or self._compute(file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        if fits := self._bytes + size <= KEPT_BYTES:
            self._kept[file] = tensors
            self._bytes += size
        stays = self._store is None or self._overflow and fits  # in memory alone
        if stored or (self._store and not stays and self._store.put(file, tensors)):
            self._spilt.add(file)
        self._pixels.pop(file, None)  # last, or they could be read again meanwhile
        return tensors

    def _compute(self, file: str) -> dict[str, Tensor]:
        pixels = self._pixels.get(file) or self.processor([open_image(file)])
        return pixels if self._encode is None else self._encode(pixels)

    def close(self) -> None:
        """Deletes what was stored because memory was full."""
        if self._store and self._overflow:
            self._store.remove()


def image_reader(model: VisionModel, processor: Processor, folder: str | Path | None, run: Path) -> ImageReader:
    """The reader of a model's training images: of pixels if its vision encoder is trained, of features if it is frozen.

    folder: keeps the features from one run to the next. run: the run's folder, where features that do not fit into
    memory are kept in ``features-overflow`` until training ends.
    """
    tower, encode = model.tower, frozen_encoder(model)
    if tower is None or encode is None:
        return ImageReader(processor)

    def encoder() -> str:
        return fingerprint(tower.state_dict().items(), processor)

    own = f"-{parallel.rank()}" if parallel.rank() else ""  # each process removes its own
    store = FeatureStore(folder or run / f"features-overflow{own}", encoder)
    return ImageReader(processor, encode, store, overflow=not folder)


def frozen_encoder(model: VisionModel) -> Encode | None:
    """From pixels to features on the CPU, for models with a frozen vision encoder; None for others."""
    if model.tower is None or not model.vision_is_frozen:
        return None
    device = model.head_weight.device

    @torch.no_grad()
    def encode(images: dict[str, Tensor]) -> dict[str, Tensor]:
        seen = model.encode_images({name: value.to(device) for name, value in images.items()}) or {}
        return {name: value.cpu() for name, value in seen.items() if name != "pixel_values"}

    return encode


def check_image_features(model: VisionModel) -> None:
    """Raises InputError if ``--image-features`` has nothing to keep: no vision encoder, or one that is trained."""
    if model.tower is None:
        raise InputError("--image-features is for models that read images")
    if not model.vision_is_frozen:
        raise InputError("--image-features: the vision encoder is trained, so its features change; leave the flag out")

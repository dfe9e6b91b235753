"""The images of preference records: checked before anything trains, then read as the tensors that a model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mint.data.feature_store import FeatureStore
from mint.data.image_files import image_size, open_image
from mint.data.images import Processor
from mint.data.preferences import Preference, PreferenceErrors
from mint.errors import InputError
from mint.progress import Progress

KEPT_BYTES = 2**30  # of read images, kept between steps
Encode = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class ImageSlots:
    """What stands for an image in a prompt.

    token: its id. count: how many of it every image has, None where the image's size decides. processor: knows by size.
    """

    token: int
    count: int | None
    processor: Processor

    def of(self, file: str) -> int:
        """How many tokens an image has."""
        return self.processor.image_tokens(*image_size(file)) if self.count is None else self.count


def find_images(
    preferences: Sequence[Preference], file: str | Path, anywhere: bool = False, corrupted: bool = False
) -> list[Preference]:
    """The records with the whole paths of their images, each of which has been read once.

    file: the preference file; paths are relative to its folder, and must not leave it (nor through links) unless
    ``anywhere``. corrupted: the corrupted images are wanted too; otherwise they are left out. Raises PreferenceErrors
    naming every record with an image that is missing, damaged, too large, no image, or outside the folder.
    """
    if not corrupted:
        preferences = [replace(preference, corrupted_images=()) for preference in preferences]
    if not any(preference.images for preference in preferences):
        return list(preferences)
    file = Path(file)
    root = file.resolve().parent
    found: dict[str, Path | str] = {}  # name -> path, or what is wrong with it
    problems, located = [], []
    for preference in Progress(preferences, desc="images", unit="record", leave=False):
        names = (*preference.images, *preference.corrupted_images)
        for name in names:
            if name not in found:
                found[name] = _find(root, name, anywhere)
        wrong = [found[name] for name in names if isinstance(found[name], str)]
        problems += [f"{file}:{preference.line}: {what}" for what in wrong]
        if not wrong:
            clean, other = ([str(found[n]) for n in part] for part in (preference.images, preference.corrupted_images))
            located.append(replace(preference, images=tuple(clean), corrupted_images=tuple(other)))
    if problems:
        raise PreferenceErrors(file, problems)
    return located


def _find(root: Path, name: str, anywhere: bool) -> Path | str:
    path = (root / name).resolve()
    if not anywhere and not path.is_relative_to(root):
        return f"the image {name} is outside the folder of the file (--images-anywhere allows it)"
    try:
        open_image(path)
    except InputError as error:
        return str(error)
    return path


def place_images(prompt: str | list[dict], count: int) -> list[dict]:
    """A prompt of messages whose first user message begins with ``count`` images; a string becomes that message."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    first = next(i for i, message in enumerate(messages) if message["role"] == "user")
    text = {"type": "text", "text": messages[first]["content"]}
    messages[first] = {"role": "user", "content": [{"type": "image"}] * count + [text]}
    return messages


def encode_with_images(tokenizer, prompt: str | list[dict], files: Sequence[str], slots: ImageSlots) -> list[int]:
    """Ids of a prompt with the images before its text, as many image tokens for each as it has.

    Raises InputError if the chat template does not write one image token for each.
    """
    ids = tokenizer.encode_chat(place_images(prompt, len(files)))
    written = ids.count(slots.token)
    if written != len(files):
        raise InputError(f"the chat template writes {written} image tokens for {len(files)} images")
    counts = iter([slots.of(file) for file in files])
    return [token for i in ids for token in ([i] * next(counts) if i == slots.token else [i])]


class ImageReader:
    """``reader(files)`` -> the tensors of the distinct files, and ``order``: which of them each place has.

    The tensors are the processor's, or ``encode`` of them: the features of a frozen vision encoder, which are computed
    once per file and run. Up to KEPT_BYTES are kept in memory; in ``store`` all of them, or with
    ``overflow`` those for which the memory has no room.
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
        self._bytes = 0
        self._spilt: set[str] = set()

    def __call__(self, files: Sequence[str]) -> dict[str, Tensor]:
        distinct = list(dict.fromkeys(files))
        parts = [self._read(file) for file in distinct]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {**tensors, "order": torch.tensor([distinct.index(file) for file in files])}

    def _read(self, file: str) -> dict[str, Tensor]:
        if file in self._kept:
            return self._kept[file]
        stored = self._store.get(file) if self._store and (file in self._spilt or not self._overflow) else None
        tensors = stored or self._make(file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        if fits := self._bytes + size <= KEPT_BYTES:
            self._kept[file] = tensors
            self._bytes += size
        if stored is None and self._store and not (self._overflow and fits) and self._store.put(file, tensors):
            self._spilt.add(file)
        return tensors

    def _make(self, file: str) -> dict[str, Tensor]:
        tensors = self.processor([open_image(file)])
        return tensors if self._encode is None else self._encode(tensors)

    def close(self) -> None:
        """Removes what was stored for want of memory."""
        if self._store and self._overflow:
            self._store.remove()

"""CLIP's image processor: the middle of the image, as a square."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mint.data.image_files import to_rgb
from mint.errors import InputError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipImageProcessor:
    """``processor([image, ...])`` -> ``pixel_values`` [B, 3, H, W] float32.

    As transformers' class of this name: the shorter edge is brought to ``size.shortest_edge`` (or the image to
    ``size.height`` x ``size.width``), bicubic; the middle ``crop_size`` is kept, scaled and normalised. What
    ``do_resize`` and ``do_center_crop`` switch off is left out. With ``do_pad`` (LlavaImageProcessor) the image first
    becomes a square, its ground the mean colour.
    """

    def __init__(self, raw: dict):
        self.size = _edges(raw.get("size", {"shortest_edge": 224})) if raw.get("do_resize", True) else None
        crop = _edges(raw.get("crop_size", 224)) if raw.get("do_center_crop", True) else None
        self.crop = (crop, crop) if isinstance(crop, int) else crop
        self.resample = Image.Resampling(raw.get("resample", Image.Resampling.BICUBIC))
        self.mean = torch.tensor(raw.get("image_mean", MEAN)).view(3, 1, 1)
        self.std = torch.tensor(raw.get("image_std", STD)).view(3, 1, 1)
        self.scale = float(raw.get("rescale_factor", 1 / 255))
        self.ground = tuple(int(value * 255) for value in raw.get("image_mean", MEAN)) if raw.get("do_pad") else None

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([self._pixels(image) for image in images])}

    def _pixels(self, image: Image.Image) -> Tensor:
        image = to_rgb(image)
        if self.ground is not None:
            side = max(image.size)
            square = Image.new("RGB", (side, side), self.ground)
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        if self.size is not None:
            image = image.resize(self._target(*image.size), self.resample)
        if self.crop is not None:
            height, width = self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))  # black where the image ends
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return (pixels.float() * self.scale - self.mean) / self.std

    def seen_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the image before the middle is kept. Raises InputError where it is padded first."""
        if self.ground is not None:
            raise InputError("an image processor that pads is not followed back to the image")
        return self._target(width, height)

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing."""
        if self.size is None:
            return width, height
        if isinstance(self.size, tuple):
            return self.size[::-1]
        longer = int(self.size * max(width, height) / min(width, height))
        return (self.size, longer) if width <= height else (longer, self.size)


def _edges(size: dict | int) -> int | tuple[int, int]:
    """A shorter edge, or (height, width)."""
    if not isinstance(size, dict):
        return int(size)
    return int(size["shortest_edge"]) if "shortest_edge" in size else (int(size["height"]), int(size["width"]))

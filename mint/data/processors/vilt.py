"""ViLT's image processor: any shape of image, within limits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mint.data.image_files import to_rgb


class ViltImageProcessor:
    """``processor([image, ...])`` -> ``pixel_values`` [B, 3, H, W] float32 and ``pixel_mask`` [B, H, W] int64.

    As transformers' class of this name: the shorter edge is resized to ``size.shortest_edge``, the longer one to at
    most 1333/800 of it, both rounded down to multiples of ``size_divisor``; bicubic; scaled, normalised, and padded at
    the right and bottom to the largest of the batch.
    """

    def __init__(self, raw: dict):
        size = raw.get("size", 384)
        self.shorter = int(size["shortest_edge"] if isinstance(size, dict) else size)
        self.divisor = int(raw.get("size_divisor", 32))
        self.resample = Image.Resampling(raw.get("resample", Image.Resampling.BICUBIC))
        self.mean = torch.tensor(raw.get("image_mean", [0.5] * 3)).view(3, 1, 1)
        self.std = torch.tensor(raw.get("image_std", [0.5] * 3)).view(3, 1, 1)
        self.scale = float(raw.get("rescale_factor", 1 / 255))

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        return self.batch([self.resize(image) for image in images])

    def resize(self, image: Image.Image) -> Tensor:
        """[3, H, W] uint8: the image at the size the model sees."""
        width, height = self._target(*image.size)
        image = to_rgb(image)
        if image.size != (width, height):
            image = image.resize((width, height), self.resample)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def batch(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """``pixel_values`` and ``pixel_mask`` of images that :meth:`resize` has made."""
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        pixels = torch.zeros(len(images), 3, height, width)
        mask = torch.zeros(len(images), height, width, dtype=torch.int64)
        for row, image in enumerate(images):
            _, h, w = image.shape
            pixels[row, :, :h, :w] = (image.float() * self.scale - self.mean) / self.std
            mask[row, :h, :w] = 1
        return {"pixel_values": pixels, "pixel_mask": mask}

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing; at least one multiple of the divisor each."""
        scale = self.shorter / min(width, height)
        longest = int(1333 / 800 * self.shorter)
        sizes = [self.shorter if edge == min(width, height) else scale * edge for edge in (width, height)]
        if max(sizes) > longest:
            sizes = [edge * longest / max(sizes) for edge in sizes]
        width, height = (max(1, int(edge + 0.5) // self.divisor) * self.divisor for edge in sizes)
        return width, height

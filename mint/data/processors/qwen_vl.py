"""Qwen-VL's image processor: an image as a grid of patches, of about its own size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mint.data.image_files import to_rgb
from mint.data.processors.clip import MEAN, STD
from mint.errors import InputError

MOST_UNEVEN = 200  # the largest aspect ratio


class QwenVLImageProcessor:
    """``processor([image, ...])`` -> ``pixel_values`` [patches of all images, patch size], ``image_grid_thw`` [I, 3].

    As transformers' Qwen2VLImageProcessor: both edges become multiples of ``merge_size`` patches, the number of pixels
    is kept between two limits; bicubic; scaled and normalised. Patches are ordered by squares of ``merge_size`` x
    ``merge_size``; a patch is [3, ``temporal_patch_size``, side, side], the image repeated in time.
    """

    def __init__(self, raw: dict):
        size = raw.get("size") or {}
        self.least = int(raw.get("min_pixels") or size.get("shortest_edge", 56 * 56))
        self.most = int(raw.get("max_pixels") or size.get("longest_edge", 28 * 28 * 1280))
        self.patch, self.merge = int(raw.get("patch_size", 14)), int(raw.get("merge_size", 2))
        self.frames = int(raw.get("temporal_patch_size", 2))
        self.resample = Image.Resampling(raw.get("resample", Image.Resampling.BICUBIC))
        self.mean = torch.tensor(raw.get("image_mean", MEAN)).view(3, 1, 1)
        self.std = torch.tensor(raw.get("image_std", STD)).view(3, 1, 1)
        self.scale = float(raw.get("rescale_factor", 1 / 255))

    def limit(self, max_pixels: int) -> None:
        """Lowers or raises the most pixels of an image. Raises InputError for less than the fewest."""
        least = max(self.least, (self.patch * self.merge) ** 2)
        if max_pixels < least:
            raise InputError(f"--max-pixels {max_pixels} is below the least of this image processor, {least}")
        self.most = max_pixels

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Raises InputError for an image with an aspect ratio over 200."""
        grids = [self.grid(*image.size) for image in images]
        patches = [self._patches(to_rgb(image), *grid) for image, grid in zip(images, grids, strict=True)]
        return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor([(1, *grid) for grid in grids])}

    def image_tokens(self, width: int, height: int) -> int:
        """How many image tokens an image of this size has."""
        rows, columns = self.grid(width, height)
        return rows * columns // self.merge**2

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of patches."""
        if max(width, height) > MOST_UNEVEN * min(width, height):
            raise InputError(f"an image of {width} x {height} is more than {MOST_UNEVEN} times as long as broad")
        unit = self.patch * self.merge
        edges = [round(edge / unit) * unit for edge in (height, width)]
        if math.prod(edges) > self.most:
            shrink = math.sqrt(height * width / self.most)
            edges = [max(unit, math.floor(edge / shrink / unit) * unit) for edge in (height, width)]
        elif math.prod(edges) < self.least:
            grow = math.sqrt(self.least / (height * width))
            edges = [math.ceil(edge * grow / unit) * unit for edge in (height, width)]
        return edges[0] // self.patch, edges[1] // self.patch

    def _patches(self, image: Image.Image, rows: int, columns: int) -> Tensor:
        """[rows * columns, numbers of a patch]"""
        side, merge = self.patch, self.merge
        image = image.resize((columns * side, rows * side), self.resample)
        pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() * self.scale - self.mean) / self.std
        pixels = pixels.reshape(3, rows // merge, merge, side, columns // merge, merge, side)
        pixels = pixels.permute(1, 4, 2, 5, 0, 3, 6)  # square, place in it, colour, side, side
        pixels = pixels.unsqueeze(5).expand(*[-1] * 5, self.frames, -1, -1)
        return pixels.reshape(rows * columns, -1)

"""Llama 3.2 Vision's image processor: an image on a canvas of up to four square tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mint.data.image_files import to_rgb


class MllamaImageProcessor:
    """``processor([image, ...])`` -> the images of one sample.

    ``pixel_values`` [1, images, tiles, 3, side, side] float32, ``aspect_ratio_ids`` [1, images] (the arrangement of
    tiles, from 1) and ``aspect_ratio_mask`` [1, images, tiles] (1 for tiles in use). As transformers' class of this
    name: the arrangement that enlarges the image least, else reduces it least, and of equal ones the smallest; the
    image is at the top left.
    """

    def __init__(self, raw: dict):
        size = raw.get("size", {"height": 224, "width": 224})
        self.side, self.tiles = int(size["height"]), int(raw.get("max_image_tiles", 4))
        if size["width"] != size["height"]:
            raise ValueError("tiles must be square")
        numbers = range(1, self.tiles + 1)
        self.arrangements = [(rows, columns) for rows in numbers for columns in numbers if rows * columns <= self.tiles]
        self.resample = Image.Resampling(raw.get("resample", Image.Resampling.BILINEAR))
        self.mean = torch.tensor(raw.get("image_mean", [0.5] * 3)).view(3, 1, 1)
        self.std = torch.tensor(raw.get("image_std", [0.5] * 3)).view(3, 1, 1)
        self.scale = float(raw.get("rescale_factor", 1 / 255))

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        pixels = torch.zeros(len(images), self.tiles, 3, self.side, self.side)
        ids, mask = torch.zeros(len(images), dtype=torch.int64), torch.zeros(len(images), self.tiles, dtype=torch.int64)
        for place, image in enumerate(images):
            image = to_rgb(image)
            rows, columns = self.arrange(*image.size)
            tiles = self._cut(image, rows, columns)
            pixels[place, : len(tiles)] = tiles
            ids[place] = self.arrangements.index((rows, columns)) + 1
            mask[place, : len(tiles)] = 1
        return {"pixel_values": pixels[None], "aspect_ratio_ids": ids[None], "aspect_ratio_mask": mask[None]}

    def arrange(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        scales = {
            (rows, columns): min(rows * self.side / height, columns * self.side / width)
            for rows, columns in self.arrangements
        }
        enlarging = [scale for scale in scales.values() if scale >= 1]
        best = min(enlarging) if enlarging else max(scales.values())
        return min((key for key, scale in scales.items() if scale == best), key=lambda key: key[0] * key[1])

    def _cut(self, image: Image.Image, rows: int, columns: int) -> Tensor:
        """[rows * columns, 3, side, side], row by row."""
        height, width = rows * self.side, columns * self.side
        image = image.resize(self.fit(*image.size, width, height), self.resample)
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image)
        pixels = (torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() * self.scale - self.mean) / self.std
        return (
            pixels.unflatten(2, (columns, self.side))
            .unflatten(1, (rows, self.side))
            .permute(1, 3, 0, 2, 4)
            .flatten(0, 1)
        )

    def fit(self, width: int, height: int, widest: int, highest: int) -> tuple[int, int]:
        """(width, height) on the canvas: as large as the image is, but at least one tile in the tighter direction."""
        target_width = min(max(width, self.side), widest)
        target_height = min(max(height, self.side), highest)
        scale_x, scale_y = target_width / width, target_height / height
        # The scale is rounded before the product, as in transformers: a square may lose a pixel on one edge.
        if scale_x < scale_y:
            return target_width, min(math.floor(height * scale_x) or 1, target_height)
        return min(math.floor(width * scale_y) or 1, target_width), target_height

"""Images: reading files that may be anything, and the processor that a model's directory describes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mint.errors import InputError


def open_image(path: str | Path) -> Image.Image:
    """The picture of an image file in RGB, turned as its EXIF data say.

    Raises InputError if it is missing, no image, damaged, cut short, or so large that it may be meant to fill the memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise InputError(f"the image {path} does not exist") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"the image {path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InputError(f"the image {path} cannot be read: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB from any mode: grey values of 16 or 32 bits are scaled to 8, transparent parts become white."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I;16") else max(255.0, float(values.max(initial=0)))
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def load_processor(folder: str | Path) -> ViltImageProcessor:
    """The processor that the ``preprocessor_config.json`` of a model directory describes.

    Raises InputError if it is missing, unreadable, or of an unsupported kind.
    """
    path = Path(folder) / "preprocessor_config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} has no preprocessor_config.json") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    kind = raw.get("image_processor_type") or raw.get("feature_extractor_type")
    if kind not in ("ViltImageProcessor", "ViltImageProcessorFast", "ViltFeatureExtractor"):
        raise InputError(f"{path}: image_processor_type {kind!r} is not supported; known is ViltImageProcessor")
    return ViltImageProcessor(raw)


class ViltImageProcessor:
    """``processor([image, ...])`` -> ``pixel_values`` [B, 3, H, W] float32 and ``pixel_mask`` [B, H, W] int64.

    As transformers' class of this name: the shorter edge is brought to ``size.shortest_edge``, the longer one to at most
    1333/800 of it, both rounded down to multiples of ``size_divisor``; bicubic; scaled, normalised, and padded at the
    right and bottom to the largest of the batch.
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
        return tuple(max(1, int(edge + 0.5) // self.divisor) * self.divisor for edge in sizes)

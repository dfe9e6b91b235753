"""Step 2 of 4 from a record to image features: safe loading of an image file as RGB, or one clear message."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mint.errors import InputError

EXIF_ORIENTATION = 0x0112


def open_image(path: str | Path) -> Image.Image:
    """An image file in RGB, rotated by its EXIF orientation.

    Raises InputError if it is missing, no image, damaged, cut short, or larger than PIL's limit for safe loading.
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


def image_problem(path: str | Path) -> str | None:
    """The message of the InputError that :func:`open_image` raises; None if the image can be read."""
    try:
        open_image(path)
    except InputError as error:
        return str(error)
    return None


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of the image that :func:`open_image` returns, read from the header alone."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5  # by a quarter
            return image.size[::-1] if turned else image.size
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

"""Step 2 of 4 from a record to image features: safe loading of an image file as RGB, or one clear message."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mint.errors import InputError

EXIF_ORIENTATION = 0x0112
# The formats that are read, whatever the file's name. Pillow knows many more; some start other programs (EPS starts
# Ghostscript) or read other files, and the rare ones are hardly tested.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
_FILTERS = threading.Lock()  # the filters of warnings are those of all threads


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """An image file, its header read: the only place that opens one. What fails inside the block is the file's fault.

    Decoders raise exceptions of many kinds for damaged files, so all become an InputError that names the file.
    """
    try:
        if not Path(path).is_file():
            what = "cannot be read: it is no file" if Path(path).exists() else "does not exist"
            raise InputError(f"the image {_shown(path)} {what}")
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"the image {_shown(path)} has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"the image {_shown(path)} cannot be read: it is none of {', '.join(FORMATS)}") from None
    except Exception as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"the image {_shown(path)} cannot be read: {why}") from None


def _shown(path: str | Path) -> str:
    """A file's name in a message: on one line, not too long."""
    name = str(path)
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= 300 else f"{name[:150]}...{name[-150:]}"


def open_image(path: str | Path) -> Image.Image:
    """An image file in RGB, rotated by its EXIF orientation.

    Raises InputError if it is missing, of none of ``FORMATS``, damaged, cut short, or larger than PIL's limit for safe
    loading.
    """
    with _opened(path) as image:
        return to_rgb(ImageOps.exif_transpose(image))


def verify_image(path: str | Path) -> None:
    """Raises InputError as :func:`open_image` for a file whose damage shows without decoding its pixels."""
    with _opened(path) as image:
        image.verify()


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of the image that :func:`open_image` returns, read from the header alone."""
    with _opened(path) as image:
        turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5  # by a quarter
        return image.size[::-1] if turned else image.size


def find_image(root: Path, name: str, anywhere: bool = False) -> Path:
    """The whole path of an image named relative to the folder ``root``; the file may be missing.

    Raises InputError for a name that leads out of the folder, as by ``..``, an absolute path or a link, unless
    ``anywhere``, and for one that no file can have.
    """
    try:
        path = (root / name).resolve()
        path.is_file()  # raises for a name that is too long
        inside = path.is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        why = getattr(error, "strerror", None) or error
        raise InputError(f"the image {_shown(name)} cannot be read: {_shown(str(why))}") from None
    if not inside and not anywhere:
        raise InputError(f"the image {_shown(name)} lies outside the folder {root}")
    return path


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

"""Image files of every form, and the settings of image processors."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from mint.data.image_files import image_size, open_image
from mint.data.images import load_processor
from tests.fuzz.damage import damage_bytes, damage_json
from tests.fuzz.readers.inputs import picture, write
from tests.fuzz.readers.registry import reader

FORMS = (
    ("PNG", "RGB"),
    ("PNG", "P"),
    ("PNG", "I;16"),
    ("JPEG", "RGB"),
    ("TIFF", "RGB"),
    ("TIFF", "F"),
    ("WEBP", "RGB"),
)
FORMS += (("BMP", "RGB"), ("GIF", "P"), ("PNG", "LA"))
OTHER_FORMS = ("EPS", "PPM", "ICO", "PCX", "SGI", "TGA", "PDF", "JPEG2000", "DDS", "ICNS", "IM", "SPIDER", "XBM", "MPO")


@reader
def images(rng: random.Random, folder: Path):
    if rng.random() < 0.1:
        with contextlib.suppress(OSError, KeyError, ValueError):
            mode = "1" if (form := rng.choice(OTHER_FORMS)) == "XBM" else "F" if form == "SPIDER" else "RGB"
            path = write(folder, "x.png", picture(form, mode, (32, 32)))
            image_size(path)
            return open_image(path)
    path = write(
        folder, f"x.{rng.choice(('png', 'jpg', 'eps', 'svg', 'psd'))}", damage_bytes(rng, picture(*rng.choice(FORMS)))
    )
    image_size(path)
    return open_image(path)


PROCESSOR_SETTINGS = (
    {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 48},
        "crop_size": {"height": 48, "width": 48},
    }
    | {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3, "rescale_factor": 0.0039},
    {"image_processor_type": "MllamaImageProcessor", "size": {"height": 32, "width": 32}, "max_image_tiles": 4},
    {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "merge_size": 2,
        "min_pixels": 64,
        "max_pixels": 4096,
    },
    {"image_processor_type": "ViltImageProcessor", "size": {"shortest_edge": 64}, "size_divisor": 16},
)


@reader
def image_processors(rng: random.Random, folder: Path):
    write(folder, "preprocessor_config.json", damage_json(rng, rng.choice(PROCESSOR_SETTINGS)))
    return load_processor(folder)

"""Writes image_sizes.json: the sizes to which transformers' processors bring images of many sizes.

    python -m tests.reference.make_image_sizes DIRS      in an environment with torch, transformers, numpy and pillow

mllama: side of a tile, most tiles, then a list of (width, height, rows and columns of tiles, width and height after
resizing). qwen: patch size, fewest and most pixels, then a list of (width, height, rows and columns of patches).
published: for the processor of each model directory in DIRS, a summary of the pixels of one picture, which is the same
for a copy of the directory whose settings name no class.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import transformers
from transformers import AutoImageProcessor
from transformers.models.mllama import image_processing_pil_mllama as mllama
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from tests.reference.chest_inputs import summary
from tests.reference.mllama_inputs import picture

HERE = Path(__file__).parent
SIZE = 300, 200
FILE = "preprocessor_config.json"
LARGEST = 3000
TILES = [(560, 4), (560, 2), (448, 4), (448, 1), (224, 6), (32, 4)]  # side, most tiles
LIMITS = [(14, 3136, 12845056), (14, 3136, 200_000), (14, 3136, 3136), (16, 65536, 16777216), (16, 65536, 300_000)]
MERGE = 2


def main() -> None:
    draw = random.Random(0)
    record = {"transformers": transformers.__version__}
    record["mllama"] = [[side, most, list(tile_sizes(draw, side, most))] for side, most in TILES]
    record["qwen"] = [[*limits, list(patch_sizes(draw, *limits))] for limits in LIMITS]
    folders = sorted(path.parent for path in Path(sys.argv[1]).glob(f"*/{FILE}"))
    record["published"] = {folder.name: published(folder) for folder in folders}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    (HERE / "image_sizes.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def tile_sizes(draw: random.Random, side: int, most: int) -> Iterator[list[int]]:
    """Sizes of all kinds, and those for which the product with a rounded scale is not the exact one."""
    kept = rounded = 0
    while kept < 30 or rounded < 15:
        width = draw.choice((draw.randint(1, LARGEST), draw.randint(1, 60), side * draw.randint(1, 4)))
        height = draw.choice((draw.randint(1, LARGEST), draw.randint(1, 60), width))
        canvas = [int(edge) for edge in mllama.get_optimal_tiled_canvas(height, width, most, side)]
        new = [int(edge) for edge in mllama.get_image_size_fit_to_canvas(height, width, *canvas, side)]
        row = [width, height, canvas[0] // side, canvas[1] // side, new[1], new[0]]
        exact = min(height * new[1] // width or 1, canvas[0]), min(width * new[0] // height or 1, canvas[1])
        if new[0] != exact[0] and new[1] != exact[1]:
            rounded += 1
            yield row
        elif kept < 30:
            kept += 1
            yield row


def patch_sizes(draw: random.Random, patch: int, least: int, most: int) -> Iterator[list[int]]:
    """Sizes of all kinds, as far as the limit of the ratio allows them."""
    edges = [[draw.choice((draw.randint(1, LARGEST), draw.randint(1, 60))) for _ in range(2)] for _ in range(60)]
    for width, height in edges:
        if max(width, height) <= 200 * min(width, height):
            high, wide = smart_resize(height, width, patch * MERGE, least, most)
            yield [width, height, high // patch, wide // patch]


def published(folder: Path) -> tuple[list[int], float, list[float]]:
    """The summary of the picture's pixels, with and without the class in the settings."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(folder / "config.json", copy)
        settings = json.loads((folder / FILE).read_text())
        bare = {key: value for key, value in settings.items() if not key.endswith(("processor_type", "extractor_type"))}
        (Path(copy) / FILE).write_text(json.dumps(bare))
        processors = [AutoImageProcessor.from_pretrained(place, backend="pil") for place in (folder, copy)]
    named, bare = (summary(processor([picture(SIZE)], return_tensors="pt")["pixel_values"]) for processor in processors)
    assert named == bare, folder
    return named


if __name__ == "__main__":
    main()

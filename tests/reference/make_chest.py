"""Writes chest.json: what transformers' image processors make of real chest X-rays of odd sizes and modes.

    python -m tests.reference.make_chest IMAGES        in an environment with torch, transformers, numpy and pillow

Of every image and processor the mean of the pixel values and a grid of 4 x 4 of them are kept; not the images.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image

from tests.reference.chest_inputs import PROCESSORS, summary

HERE = Path(__file__).parent


def main(folder: str) -> None:
    torch.set_num_threads(1)
    record: dict = {"transformers": transformers.__version__, "images": {}}
    for path in sorted(Path(folder).iterdir()):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        for name, settings in PROCESSORS.items():
            made = getattr(transformers, name)(**settings)([image], return_tensors="pt")
            shape, mean, grid = summary(made["pixel_values"])
            values = {"shape": shape, "mean": round(mean, 5), "grid": [round(value, 4) for value in grid]}
            record["images"].setdefault(path.name, {})[name] = values
    (HERE / "chest.json").write_text(json.dumps(record, indent=None) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])

"""What Llama 3.2 Vision is given, both here and where the reference numbers are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.reference.weights import draw

HERE = Path(__file__).parent
SEED = 61
IMAGE = 128  # the image token's id, behind the vocabulary
VISION = {
    "model_type": "mllama_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_global_layers": 2,
    "attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "max_num_tiles": 4,
    "intermediate_layers_indices": [0, 2],
    "vision_output_dim": 96,
    "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    "norm_eps": 1e-5,
}
TEXT = {
    "model_type": "mllama_text_model",
    "vocab_size": 128,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "cross_attention_layers": [1, 3],
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
TINY = {
    "model_type": "mllama",
    "architectures": ["MllamaForConditionalGeneration"],
    "image_token_index": IMAGE,
    "text_config": TEXT,
    "vision_config": VISION,
    "tie_word_embeddings": False,
}
# for each input, for each row: the columns of its images, and the (id of the aspect ratio, tiles) of each
INPUTS = {
    "one_tile": [([2], [(1, 1)])],
    "several_tiles": [([1], [(6, 4)])],
    "two_images": [([1, 6], [(2, 2), (7, 3)])],
    "side_by_side": [([3, 4], [(1, 1), (5, 2)])],
    "rows": [([2], [(3, 3)]), ([1, 7], [(1, 1), (4, 4)])],
    "a_row_without": [([2], [(2, 2)]), ([], [])],
    "text": [([], [])],
}
LENGTH = 12
ADAPTED = ["language_model", "vision_model", "multi_modal_projector", "lm_head"]
PROCESSOR = {"size": {"height": 32, "width": 32}, "max_image_tiles": 4}
PROCESSOR |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.3, 0.2]}
SIZES = {  # width, height
    "small": (20, 11),
    "tile": (32, 32),
    "wide": (300, 61),
    "tall": (33, 120),
    "large": (200, 190),
    "line": (500, 2),
    "two_high": (31, 60),
}


def picture(size: tuple[int, int]) -> Image.Image:
    """A smooth pattern, so that resampling has something to keep."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    planes = [127 + 120 * np.sin(x / (9 + k) + k) * np.cos(y / (8 - k)) for k in range(3)]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A state dict for tensors of these names and shapes; gates are open, so that the images matter."""
    return {
        name: draw(name, tuple(shape), SEED, std=0.2, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0)
        + (0.7 if "gate" in name and "proj" not in name else 0.0)
        for name, shape in shapes.items()
    }


def tokens(name: str) -> torch.Tensor:
    """[rows, 12]"""
    rows = INPUTS[name]
    ids = draw(f"mllama {name}", (len(rows), LENGTH), 0, std=1000.0).long().abs() % 120 + 1
    for row, (columns, _) in enumerate(rows):
        ids[row, columns] = IMAGE
    return ids


def images(name: str) -> dict[str, torch.Tensor] | None:
    """As the image processor gives them; None for text alone."""
    rows = [of_row for _, of_row in INPUTS[name]]
    most = max(len(of_row) for of_row in rows)
    if not most:
        return None
    pixels = torch.zeros(len(rows), most, 4, 3, 32, 32)
    ids = torch.zeros(len(rows), most, dtype=torch.int64)
    mask = torch.zeros(len(rows), most, 4, dtype=torch.int64)
    mask[:, :, 0] = 1  # as transformers' processor has it, also where there is no image
    for row, of_row in enumerate(rows):
        for place, (ratio, tiles) in enumerate(of_row):
            pixels[row, place, :tiles] = draw(f"{name} pixels {row} {place}", (tiles, 3, 32, 32), 0, std=1.0)
            ids[row, place] = ratio
            mask[row, place, :tiles] = 1
    return {"pixel_values": pixels, "aspect_ratio_ids": ids, "aspect_ratio_mask": mask}

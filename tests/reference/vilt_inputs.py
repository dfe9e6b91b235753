"""What the fusion classifier and its image processor are given, both here and where the reference numbers are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.reference.weights import draw

HERE = Path(__file__).parent
SEED = 47
LABELS = 7
TINY = {
    "model_type": "vilt",
    "architectures": ["ViltForQuestionAnswering"],
    "vocab_size": 60,
    "max_position_embeddings": 12,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 64,
    "patch_size": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "id2label": {str(i): f"disease {i}" for i in range(LABELS)},
    "label2id": {f"disease {i}": i for i in range(LABELS)},
}
# name -> rows, words, (height, width) of the batch, real (height, width) of every image, real words of every row
INPUTS = {
    "square": (2, 12, (64, 64), None, None),
    "short_text": (3, 5, (64, 64), None, (5, 3, 1)),
    "other_grid": (2, 8, (48, 96), None, None),
    "padded_images": (3, 6, (80, 96), ((80, 64), (32, 96), (64, 64)), (6, 4, 6)),
    "one_row_of_patches": (1, 4, (16, 32), None, None),
}
IMAGES = {  # name -> mode, (width, height)
    "square": ("RGB", (70, 70)),
    "wide": ("RGB", (310, 91)),
    "tall": ("L", (33, 120)),
    "small": ("RGB", (20, 25)),
}
PROCESSOR = {
    "size": {"shortest_edge": 64},
    "size_divisor": 16,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.25, 0.2],
}


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A state dict for tensors of these names and shapes; large enough for text and image to matter in the logits."""
    one = (
        "layernorm_before.weight",
        "layernorm_after.weight",
        "layernorm.weight",
        "LayerNorm.weight",
        "classifier.1.weight",
    )
    return {
        name: draw(name, tuple(shape), SEED, std=0.2, mean=1.0 if name.endswith(one) else 0.0)
        for name, shape in shapes.items()
    }


def inputs(name: str) -> dict[str, torch.Tensor]:
    """Tokens, pixels and masks of one entry of INPUTS."""
    rows, words, size, real_sizes, real_words = INPUTS[name]
    tokens = (draw(f"{name} tokens", (rows, words), 0, std=1000.0).long() % TINY["vocab_size"]).abs()
    result = {"tokens": tokens, "pixel_values": draw(f"{name} pixels", (rows, 3, *size), 0, std=1.0)}
    if real_sizes:
        mask = torch.zeros(rows, *size, dtype=torch.int64)
        for row, (height, width) in enumerate(real_sizes):
            mask[row, :height, :width] = 1
        result["pixel_mask"] = mask
    if real_words:
        result["attention_mask"] = (torch.arange(words) < torch.tensor(real_words)[:, None]).long()
    return result


def image(name: str) -> Image.Image:
    """A smooth pattern, so that resampling has something to keep."""
    mode, (width, height) = IMAGES[name]
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 120 * np.sin(x / (4 + k) + k) * np.cos(y / (6 - k)) for k in range(3)]
    stacked = np.stack(planes, -1) if mode == "RGB" else planes[0]
    return Image.fromarray(stacked.astype(np.uint8))

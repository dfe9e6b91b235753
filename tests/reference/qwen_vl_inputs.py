"""What Qwen2.5-VL is given, both here and where the reference numbers are made."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.reference.weights import draw

HERE = Path(__file__).parent
SEED = 67
IMAGE = 150  # the image token's id; 151 and 152 stand around an image
VISION = {
    "model_type": "qwen2_5_vl_vision",
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "in_channels": 3,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 16,
    "out_hidden_size": 40,
    "fullatt_block_indexes": [1],
    "hidden_act": "silu",
    "tokens_per_second": 2,
}
TEXT = {
    "model_type": "qwen2_5_vl_text",
    "vocab_size": 160,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 2, 2], "rope_theta": 1000000.0},
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
TINY = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "image_token_id": IMAGE,
    "vision_start_token_id": 151,
    "vision_end_token_id": 152,
    "video_token_id": 153,
    "text_config": TEXT,
    "vision_config": VISION,
    "tie_word_embeddings": False,
}
ADAPTED = ["language_model", "visual", "lm_head"]
# for each input, for each row: the (rows, columns) of patches of its images
INPUTS = {
    "square": [[(4, 4)]],
    "wide": [[(4, 14)]],
    "odd_windows": [[(10, 6)]],
    "two_images": [[(6, 4), (2, 8)]],
    "rows": [[(8, 8)], [(2, 2), (4, 6)], []],
    "text": [[]],
}
LENGTH = 40
PROCESSOR = {
    "size": {"shortest_edge": 400, "longest_edge": 9000},
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
}


def weights(shapes: dict[str, tuple[int, ...]], seed: int = SEED) -> dict[str, torch.Tensor]:
    """A state dict for tensors of these names and shapes; large enough for the image to matter in the logits."""
    norms = ("norm.weight", "layernorm.weight", "norm1.weight", "norm2.weight", "ln_q.weight")
    return {
        name: draw(name, tuple(shape), seed, 0.2, 1.0 if name.endswith(norms) else 0.0)
        for name, shape in shapes.items()
    }


def tokens(name: str) -> torch.Tensor:
    """[rows, 40]: words, and each image between its two marks."""
    rows = INPUTS[name]
    ids = draw(f"qwen {name}", (len(rows), LENGTH), 0, std=1000.0).long().abs() % 140 + 3
    for row, sizes in enumerate(rows):
        column = 2
        for height, width in sizes:
            count = height * width // 4
            ids[row, column] = 151
            ids[row, column + 1 : column + 1 + count] = IMAGE
            ids[row, column + 1 + count] = 152
            column += count + 4
    return ids


def images(name: str) -> dict[str, torch.Tensor] | None:
    """As the image processor gives them; None for text alone."""
    sizes = [size for row in INPUTS[name] for size in row]
    if not sizes:
        return None
    pixels = [draw(f"{name} pixels {i}", (height * width, 96), 0, std=1.0) for i, (height, width) in enumerate(sizes)]
    return {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor([(1, *size) for size in sizes])}

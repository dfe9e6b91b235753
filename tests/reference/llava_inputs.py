"""What LLaVA is given, both here and where the reference numbers are made."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.reference.clip_inputs import TINY as CLIP
from tests.reference.weights import draw

HERE = Path(__file__).parent
SEED = 59
IMAGE = 100  # the placeholder's id
TEXT = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
TINY = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": IMAGE,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "text_config": TEXT,
    "vision_config": {**CLIP["vision_config"], "model_type": "clip_vision_model"},
    "tie_word_embeddings": False,
}
CONFIGS = {
    "llama": TINY,
    "mistral_full": {
        **TINY,
        "text_config": {**TEXT, "model_type": "mistral", "sliding_window": None, "head_dim": 10},
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
        "multimodal_projector_bias": False,
    },
    "qwen2_two_layers": {
        **TINY,
        "text_config": {**TEXT, "model_type": "qwen2", "tie_word_embeddings": True},
        "vision_feature_layer": [1, -1],
        "tie_word_embeddings": True,
    },
}
PATCHES = 9
ADAPTED = ["language_model", "vision_tower", "multi_modal_projector", "lm_head"]


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A state dict for tensors of these names and shapes; large enough for the image to matter in the logits."""
    return {
        name: draw(name, tuple(shape), SEED, std=0.2, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for name, shape in shapes.items()
    }


def tokens(name: str) -> torch.Tensor:
    """[3, T]: a row with one image, one with two, and one with none."""
    patches = PATCHES + (CONFIGS[name]["vision_feature_select_strategy"] == "full")
    length = 2 * patches + 8
    ids = draw("llava words", (3, length), 0, std=1000.0).long().abs() % 90 + 3
    ids[0, 2 : 2 + patches] = IMAGE
    ids[1, 1 : 1 + patches] = IMAGE
    ids[1, 4 + patches : 4 + 2 * patches] = IMAGE
    return ids


def pixels() -> torch.Tensor:
    """[3, 3, 48, 48]: one image of the first row, two of the second."""
    return draw("llava pixels", (3, 3, 48, 48), 0, std=1.0)

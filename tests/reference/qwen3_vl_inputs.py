"""What Qwen3-VL is given: the texts and images of Qwen2.5-VL's tests, and settings of its own."""

from __future__ import annotations

import torch

from tests.reference import qwen_vl_inputs
from tests.reference.qwen_vl_inputs import HERE, IMAGE, INPUTS, images, tokens

__all__ = ["ADAPTED", "HERE", "IMAGE", "INPUTS", "SEED", "TEXT", "TINY", "VISION", "images", "tokens", "weights"]

SEED = 71
VISION = {
    "model_type": "qwen3_vl_vision",
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "in_channels": 3,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 40,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 2],
    "hidden_act": "gelu_pytorch_tanh",
}
TEXT = {
    "model_type": "qwen3_vl_text",
    "vocab_size": 160,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
        "rope_theta": 5000000.0,
    },
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
TINY = {
    **qwen_vl_inputs.TINY,
    "model_type": "qwen3_vl",
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "text_config": TEXT,
    "vision_config": VISION,
}
ADAPTED = ["language_model", "visual", "lm_head"]


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """As for Qwen2.5-VL, from another seed."""
    return qwen_vl_inputs.weights(shapes, SEED)

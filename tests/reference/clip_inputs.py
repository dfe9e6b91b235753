"""What CLIP and its image processor are given, both here and where the reference numbers are made."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.reference.weights import draw

HERE = Path(__file__).parent
SEED = 53
TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY = {
    "model_type": "clip",
    "architectures": ["CLIPModel"],
    "projection_dim": 16,
    "text_config": {**TOWER, "vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 59, "bos_token_id": 58},
    "vision_config": {**TOWER, "hidden_size": 32, "num_hidden_layers": 3, "image_size": 48, "patch_size": 16},
}
CONFIGS = {
    "plain": TINY,
    # as the first checkpoints: an end-of-text id that is not the one in the texts
    "legacy": {**TINY, "text_config": {**TINY["text_config"], "eos_token_id": 2}},
    "gelu": {
        **TINY,
        "text_config": {**TINY["text_config"], "hidden_act": "gelu"},
        "vision_config": {**TINY["vision_config"], "hidden_act": "gelu", "layer_norm_eps": 1e-3},
    },
}
WORDS = (12, 7, 3)  # of each text, its end included
PROCESSOR = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A state dict for tensors of these names and shapes; large enough for text and image to matter in the logits."""
    return {
        name: draw(name, tuple(shape), SEED, std=0.2, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for name, shape in shapes.items()
    }


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, attention mask) [3, 12]: begin, words, end, and padding with the end's id, as CLIP's tokenizer pads."""
    words = (draw("words", (len(WORDS), 12), 0, std=1000.0).long().abs() % 50) + 3
    place, length = torch.arange(12), torch.tensor(WORDS)[:, None]
    tokens = torch.where(place < length - 1, words, 59)
    tokens[:, 0] = 58
    return tokens, (place < length).long()


def pixels() -> torch.Tensor:
    return draw("pixels", (4, 3, 48, 48), 0, std=1.0)

"""What the sentence encoder is given, both here and where the reference numbers are made."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.reference.weights import draw

HERE = Path(__file__).parent
SEED = 53
TINY = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 60,
    "max_position_embeddings": 16,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
INPUTS = {"whole": (16, 16), "padded": (9, 1, 16), "short": (3,)}  # name -> words of every row


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A state dict for tensors of these names and shapes."""
    norms = {name: 1.0 for name in shapes if name.endswith("LayerNorm.weight")}
    return {name: draw(name, shape, SEED, std=0.2, mean=norms.get(name, 0.0)) for name, shape in shapes.items()}


def inputs(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """([B, L] tokens, [B, L] mask)."""
    lengths = torch.tensor(INPUTS[name])
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(1, TINY["vocab_size"], (len(lengths), int(lengths.max())), generator=generator)
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    return tokens * mask, mask

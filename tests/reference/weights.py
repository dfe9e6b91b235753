"""Weights that any environment rebuilds from names and a seed alone.

The scripts ``make_*.py`` feed them to other people's code, the tests feed them to ours; neither has to store or ship
a checkpoint. Every tensor has a generator of its own, seeded by its name, so order and subset do not matter.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

TINY_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def draw(name: str, shape: tuple[int, ...], seed: int, std: float = 0.05, mean: float = 0.0) -> Tensor:
    """float32 normal numbers that depend on ``name``, ``shape`` and ``seed`` alone; drawn in float64, then rounded."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)
    return (mean + std * torch.randn(shape, generator=generator, dtype=torch.float64)).float()


def linear_shapes(config: dict) -> dict[str, tuple[int, int]]:
    """[out, in] of every linear layer of the decoder but the head, by the layer's name."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    query, key = heads * size, (config.get("num_key_value_heads") or heads) * size
    block = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = range(config["num_hidden_layers"])
    return {f"model.layers.{i}.{name}": shape for i in layers for name, shape in block.items()}


def _has_bias(config: dict, name: str) -> bool:
    if ".mlp." in name:
        return bool(config.get("mlp_bias"))
    if config["model_type"] == "qwen2":
        return not name.endswith("o_proj")
    return bool(config.get("attention_bias"))


def reference_weights(config: dict, seed: int) -> dict[str, Tensor]:
    """The state dict, in float32, of a llama, mistral, qwen2 or qwen3 model with this ``config.json``.

    Matrices and biases are normal with standard deviation 0.05, norm weights 1 + 0.1 x normal. A tied head is absent.
    """
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    weights = {"model.embed_tokens.weight": draw("model.embed_tokens.weight", (vocabulary, hidden), seed)}
    for name, shape in linear_shapes(config).items():
        weights[f"{name}.weight"] = draw(f"{name}.weight", shape, seed)
        if _has_bias(config, name):
            weights[f"{name}.bias"] = draw(f"{name}.bias", shape[:1], seed)
    norms = ["model.norm.weight"]
    for layer in range(config["num_hidden_layers"]):
        norms += [f"model.layers.{layer}.{n}_layernorm.weight" for n in ("input", "post_attention")]
    for name in norms:
        weights[name] = draw(name, (hidden,), seed, std=0.1, mean=1.0)
    if config["model_type"] == "qwen3":
        for layer in range(config["num_hidden_layers"]):
            for part in ("q_norm", "k_norm"):
                name = f"model.layers.{layer}.self_attn.{part}.weight"
                weights[name] = draw(name, (config["head_dim"],), seed, std=0.1, mean=1.0)
    if not config.get("tie_word_embeddings"):
        weights["lm_head.weight"] = draw("lm_head.weight", (vocabulary, hidden), seed)
    return weights


def drawn_adapter(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """LoRA factors of these names and shapes, A and B both non-zero."""
    return {name: draw(name, tuple(shape), seed, std=0.1) for name, shape in shapes.items()}


def reference_adapter(config: dict, seed: int, rank: int = 4, ranks: dict[str, int] | None = None) -> dict[str, Tensor]:
    """LoRA factors of all linear layers (of those in ``ranks``, with their own ranks), A and B both non-zero.

    Names are those of the layer with ``.lora_A.weight`` [rank, in] or ``.lora_B.weight`` [out, rank] appended.
    """
    factors = {}
    for name, (rows, columns) in linear_shapes(config).items():
        if ranks is not None and name not in ranks:
            continue
        r = rank if ranks is None else ranks[name]
        factors[f"{name}.lora_A.weight"] = draw(f"{name}.lora_A.weight", (r, columns), seed, std=0.2)
        factors[f"{name}.lora_B.weight"] = draw(f"{name}.lora_B.weight", (rows, r), seed, std=0.2)
    return factors

"""Writes models.json and models.safetensors: logits and greedy continuations that transformers computes.

    python tests/reference/make_models.py        in an environment with torch and transformers

Weights are rebuilt from names and seeds (weights.py), so only numbers are stored: for every configuration the logits of
two rows of tokens in float32, and 12 tokens continued greedily from the first row's first half.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from weights import TINY_LLAMA, draw, reference_weights

HERE = Path(__file__).parent
SEED, LENGTH, NEW = 31, 24, 12
SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS = {
    "llama2": TINY_LLAMA | {"num_key_value_heads": 4, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama3": TINY_LLAMA | {"rope_theta": 500000.0, "tie_word_embeddings": True, "rope_scaling": SCALED},
    "llama3_parameters": TINY_LLAMA | {"rope_parameters": SCALED | {"rope_theta": 500000.0}, "rope_theta": None},
    "llama_biases": TINY_LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "mistral": TINY_LLAMA | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 6},
    "mistral_full": TINY_LLAMA
    | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None, "head_dim": 12},
    "qwen2": TINY_LLAMA
    | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True, "rms_norm_eps": 1e-6},
    "qwen2_untied": TINY_LLAMA
    | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 8, "num_hidden_layers": 3},
    "qwen3": TINY_LLAMA | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 16},
}


def tokens() -> torch.Tensor:
    """[2, LENGTH] token ids, fixed."""
    return (draw("model tokens", (2, LENGTH), 0, std=1000.0).long() % TINY_LLAMA["vocab_size"]).abs()


def build(config: dict) -> torch.nn.Module:
    config = {key: value for key, value in config.items() if not (key == "rope_theta" and value is None)}
    settings = transformers.AutoConfig.for_model(**config)
    settings._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(settings).float().eval()
    # A larger scale than 0.05 makes the logits differ enough for greedy text to mean something.
    weights = {k: v * (4 if v.dim() > 1 else 1) for k, v in reference_weights(config, SEED).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"weights do not fit: {missing} {unexpected}")
    model.tie_weights()
    return model


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    results, greedy = {"tokens": tokens()}, {}
    for name, config in CONFIGS.items():
        model = build(config)
        results[name] = model(tokens()).logits
        ids = tokens()[:1, : LENGTH // 2].clone()
        for _ in range(NEW):  # the plain definition of greedy decoding, without a cache
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        greedy[name] = ids[0, -NEW:].tolist()
        print(f"{name:18s} largest logit {results[name].abs().max():.2f}, greedy {greedy[name]}")
    save_file(results, HERE / "models.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = {"versions": versions, "seed": SEED, "configs": CONFIGS, "greedy": greedy}
    (HERE / "models.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

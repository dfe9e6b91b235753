"""The settings of a Llama-form decoder, read from ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass, field

from mint.errors import InputError
from mint.models.rotary import check_scaling
from mint.models.settings import check_attention

QWEN = ("qwen2", "qwen3")
MODEL_TYPES = ("llama", "mistral", *QWEN)


@dataclass(frozen=True)
class LlamaConfig:
    """The settings of ``config.json`` that shape the network; ``raw`` is the file's content."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict | None
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    sliding_window: int | None
    initializer_range: float
    qk_norm: bool = False
    raw: dict = field(repr=False, compare=False, default_factory=dict)

    @classmethod
    def from_dict(cls, raw: dict) -> LlamaConfig:
        """From the content of ``config.json``. Raises InputError for a missing or unsupported setting."""
        kind = raw.get("model_type")
        if kind not in MODEL_TYPES:
            raise InputError(f"model_type {kind!r} is not supported; known are {', '.join(MODEL_TYPES)}")
        if raw.get("hidden_act", "silu") != "silu":
            raise InputError(f"hidden_act {raw['hidden_act']!r} is not supported, only silu")
        try:
            heads, width = raw["num_attention_heads"], raw["hidden_size"]
            bias = bool(raw.get("attention_bias", False))
            rope = raw.get("rope_parameters") or {}  # the newer spelling holds theta and scaling together
            scaling = raw.get("rope_scaling") or rope
            window = raw.get("sliding_window", 4096)  # the families' own default
            if kind == "llama" or (kind in QWEN and not raw.get("use_sliding_window", False)):
                window = None
            if kind in QWEN and window:
                full = raw.get("max_window_layers", 28)  # layers from this one on have the window
                if 0 < full < raw["num_hidden_layers"]:
                    raise InputError(f"{kind} with a sliding window in some layers only is not supported")
                window = window if full == 0 else None
            config = cls(
                vocab_size=raw["vocab_size"],
                hidden_size=width,
                intermediate_size=raw["intermediate_size"],
                num_hidden_layers=raw["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=raw.get("num_key_value_heads") or heads,
                head_dim=raw.get("head_dim") or (128 if kind == "qwen3" else width // heads),
                max_position_embeddings=raw.get("max_position_embeddings", 2048),
                rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
                rope_theta=float(raw.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
                rope_scaling=check_scaling(scaling) if scaling else None,
                tie_word_embeddings=is_tied(raw),
                qkv_bias=bias or kind == "qwen2",
                o_bias=bias and kind in ("llama", "qwen3"),
                mlp_bias=bool(raw.get("mlp_bias", False)),
                sliding_window=window,
                initializer_range=raw.get("initializer_range", 0.02),
                qk_norm=kind == "qwen3",
                raw=dict(raw),
            )
            check_attention(config.num_attention_heads, config.num_key_value_heads, config.head_dim)
            return config
        except KeyError as error:
            raise InputError(f"config.json lacks {error.args[0]!r}") from None
        except (TypeError, AttributeError) as error:
            raise InputError(f"config.json holds a setting of the wrong type: {error}") from None


def is_tied(raw: dict) -> bool:
    """Whether the LM head is the embedding, as ``config.json`` or its ``text_config`` says."""
    return any(level.get("tie_word_embeddings") for level in (raw, raw.get("text_config") or {}))

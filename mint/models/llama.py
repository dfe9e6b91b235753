"""A Llama-form text decoder: ``llama`` (2, 3, 3.1, 3.2), ``mistral``, ``qwen2`` and ``qwen3`` checkpoints.

Parameter names are the checkpoint's, so loading is a copy by name. Plain choices, one of each: pre-norm with RMSNorm in
float32, rotary positions computed once a forward pass, grouped-query attention (``qwen3`` normalises queries and keys),
SwiGLU.

Legend: B rows, T row length, H width, N heads, K key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.attention import Mask, attend, make_mask
from mint.models.cross_attention import Sight
from mint.models.recompute import run_layer
from mint.ops.elementwise import rms_norm, rotate, swiglu

QWEN = ("qwen2", "qwen3")
MODEL_TYPES = ("llama", "mistral", *QWEN)


@dataclass(frozen=True)
class LlamaConfig:
    """The settings of ``config.json`` that shape the network; ``raw`` is the file as it was read."""

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
            return cls(
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
                rope_scaling=_check_scaling(scaling) if scaling else None,
                tie_word_embeddings=is_tied(raw),
                qkv_bias=bias or kind == "qwen2",
                o_bias=bias and kind in ("llama", "qwen3"),
                mlp_bias=bool(raw.get("mlp_bias", False)),
                sliding_window=window,
                initializer_range=raw.get("initializer_range", 0.02),
                qk_norm=kind == "qwen3",
                raw=dict(raw),
            )
        except KeyError as error:
            raise InputError(f"config.json lacks {error.args[0]!r}") from None
        except (TypeError, AttributeError) as error:
            raise InputError(f"config.json holds a setting of the wrong type: {error}") from None


def is_tied(raw: dict) -> bool:
    """Whether the LM head is the embedding, as ``config.json`` or its ``text_config`` says."""
    return any(level.get("tie_word_embeddings") for level in (raw, raw.get("text_config") or {}))


def _check_scaling(scaling: dict) -> dict | None:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    needed = {"default": (), "linear": ("factor",)}
    needed["llama3"] = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if kind not in needed:
        raise InputError(f"rope scaling {kind!r} is not supported; known are {', '.join(needed)}")
    missing = [name for name in needed[kind] if name not in scaling]
    if missing:
        raise InputError(f"rope scaling {kind!r} lacks {', '.join(missing)}")
    return None if kind == "default" else {**scaling, "rope_type": kind}


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """[D / 2] float32: radians per position of each rotary pair, after the configuration's scaling.

    ``llama3`` (Llama 3.1's long context): wavelengths beyond original / low_freq_factor are stretched by ``factor``,
    those below original / high_freq_factor stay, and between them the two are blended linearly.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequency = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    if scaling["rope_type"] == "linear":
        return frequency / scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)  # within the original context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling["factor"]


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the root mean square taken in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.bfloat16, torch.float16):
            return self.weight * F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype)
        return rms_norm(x, self.weight, self.eps)


class KeyValueCache:
    """Keys and values of all layers during generation, [B, K, S, D]; each row writes at its own positions."""

    def __init__(self, config: LlamaConfig, rows: int, length: int, like: Tensor):
        shape = (rows, config.num_key_value_heads, length, config.head_dim)
        self.layers = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(config.num_hidden_layers)]
        self.length = length
        self.images: dict[int, tuple[Tensor, Tensor]] = {}  # by layer with cross-attention: of the image tiles
        self.sight: Sight | None = None  # what the last tokens see of their images
        self.shift: Tensor | None = None  # [B, 1], by how much their rotary positions are ahead

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k, v [B, K, T, D] at ``positions`` [B, T]; returns all that the layer holds."""
        index = positions[:, None, :, None].expand_as(k)
        for stored, new in zip(self.layers[layer], (k, v), strict=True):
            stored.scatter_(2, index, new)
        return self.layers[layer]


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.head_dim, self.layer = config.head_dim, layer
        width, query = config.hidden_size, config.num_attention_heads * config.head_dim
        key = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, query, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, key, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, key, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query, width, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N, T, D], and keys and values [B, K, T, D], the first two turned by their positions."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (proj(x).view(heads).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, *rope), rotate(k, *rope), v

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Mask, cache: KeyValueCache | None, positions: Tensor | None
    ) -> Tensor:
        q, k, v = self.project(x, rope)
        if cache is not None:
            k, v = cache.update(self.layer, k, v, positions)
        return self.o_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Mask = None,
        cache: KeyValueCache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache, positions)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The part under ``model.`` in a checkpoint: embedding, layers, final norm."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Deep(NamedTuple):
    """What is added to the image tokens behind each of the first layers. places: (rows, columns) of F tokens.

    features: [F, H] for each layer.
    """

    places: tuple[Tensor, Tensor]
    features: tuple[Tensor, ...]


class CausalLM(nn.Module):
    """A decoder with its LM head; a tied head is the embedding and has no parameter of its own.

    ``Llama`` is the plain one; vision-language models encode images (:meth:`encode_images`), put their features among the
    embeddings (:meth:`embed`), or look at them on the way (:meth:`look`).
    """

    decoder: Decoder  # embedding, layers and final norm, wherever the checkpoint keeps them
    tower: nn.Module | None = None  # what encodes images

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.attention_backend = "auto"

    @property
    def vision_is_frozen(self) -> bool:
        """Whether the model has a vision encoder in which nothing is trained."""
        return self.tower is not None and not any(p.requires_grad for p in self.tower.parameters())

    @property
    def head_weight(self) -> Tensor:
        """[V, H]: the LM head's weight, without an adapter on it (:meth:`head_update`)."""
        return self.decoder.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def head_update(self, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
        """(low [N, r], B [V, r]) for final states [N, H]: an adapter on the head adds low B^T; None without one."""
        adapted = not self.config.tie_word_embeddings and hasattr(self.lm_head, "update")
        return self.lm_head.update(hidden) if adapted else None

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] of final states [..., H]."""
        if self.config.tie_word_embeddings:
            return F.linear(hidden, self.head_weight)
        return self.lm_head(hidden)

    def encode_images(self, images: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Images with the tower's ``features``: computed here once, or those that they come with.

        images: what the model's processor makes of them, concatenated over the distinct images; ``order`` [I] says which of
        them each place in the text has (default: each once, in order). Raises InputError for a model without a tower.
        """
        if images is None or "features" in images:
            return images
        if self.tower is None:
            raise InputError(f"a {self.config.raw['model_type']} model reads no images")
        return {**images, **self._encode(images)}

    def _encode(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """The output of ``tower`` for the images: ``features``, and whatever else later layers need."""
        raise AssertionError("a model with a tower says how it is used")

    def embed(self, tokens: Tensor, images: dict[str, Tensor] | None = None) -> Tensor:
        """[B, T, H]: what the first layer reads. images: with their features."""
        return self.decoder.embed_tokens(tokens)

    def forward(self, tokens: Tensor, images: dict[str, Tensor] | None = None) -> Tensor:
        """Logits [B, T, V] of tokens [B, T] under plain causal attention; images: as the model's processor makes them."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        mask = None
        if self.config.sliding_window is not None:
            mask = make_mask(torch.zeros_like(tokens), positions, self.config.sliding_window, "dense")
        images = self.encode_images(images)
        x, sight = self.embed(tokens, images), self.look(tokens, images)
        turns = self.turns(tokens, positions, images)
        return self.logits(self._run(x, positions, mask, turns, sight=sight))

    def hidden_states(self, batch) -> Tensor:
        """[B, T, H] after the final norm, for a packed batch (its tokens, positions, segments and images)."""
        mask = make_mask(batch.segments, batch.positions, self.config.sliding_window, self.attention_backend)
        images = self.encode_images(batch.images)
        x, sight = self.embed(batch.tokens, images), self.look(batch.tokens, images, batch.segments)
        turns = self.turns(batch.tokens, batch.positions, images, batch.segments)
        return self._run(x, batch.positions, mask, turns, sight=sight)

    def forward_cached(
        self, tokens: Tensor, positions: Tensor, cache: KeyValueCache, images: dict[str, Tensor] | None = None
    ) -> Tensor:
        """[B, T, H] of new tokens at ``positions`` [B, T], after what ``cache`` holds; the cache takes them in."""
        slots = torch.arange(cache.length, device=tokens.device)
        mask = slots <= positions[:, :, None]
        if self.config.sliding_window is not None:
            mask &= positions[:, :, None] - slots < self.config.sliding_window
        images = self.encode_images(images)
        x = self.embed(tokens, images)
        sight = cache.sight if images is None else self.look(tokens, images)
        turns = positions if cache.shift is None else positions + cache.shift
        if images is not None:
            turns = self.turns(tokens, positions, images)
            cache.shift = None if turns is positions else (turns[:, :, -1:] - positions[:, -1:]).amax(0)
        hidden = self._run(x, positions, mask.unsqueeze(1), turns, cache, sight)
        cache.sight = sight.last() if isinstance(sight, Sight) else None
        return hidden

    def look(
        self, tokens: Tensor, images: dict[str, Tensor] | None, segments: Tensor | None = None
    ) -> Sight | Deep | None:
        """What layers that look at images see, or what is added behind the first layers, for models that have either."""
        return None

    def turns(
        self, tokens: Tensor, positions: Tensor, images: dict[str, Tensor] | None, segments: Tensor | None = None
    ) -> Tensor:
        """The positions that the rotary embedding turns by: [B, T], or [3, B, T] where images have height and width."""
        return positions

    def _run(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Mask,
        turns: Tensor,
        cache: KeyValueCache | None = None,
        sight: Sight | Deep | None = None,
    ) -> Tensor:
        rope = self._rope(turns, x.dtype)
        for number, layer in enumerate(self.decoder.layers):
            if isinstance(layer, DecoderLayer):
                inputs = (x, rope, mask, cache, positions)
            elif sight is not None:
                inputs = (x, sight, cache)
            else:  # it looks at images, and there are none
                continue
            x = run_layer(layer, *inputs, recompute=self.gradient_checkpointing and cache is None)
            if isinstance(sight, Deep) and number < len(sight.features):
                x = x.index_put(sight.places, sight.features[number].to(x.dtype), accumulate=True)
        return self.decoder.norm(x)

    def _rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [B, 1, T, D] of the rotary angles, computed in float32."""
        angles = positions[:, None, :, None].float() * rope_frequencies(self.config).to(positions.device)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def compile_blocks(self, **options) -> None:
        """Compiles every decoder layer in place; they share their code, so one compilation serves all."""
        for layer in self.decoder.layers:
            layer.compile(**options)


def put_features(x: Tensor, places: Tensor, features: Tensor | None) -> Tensor:
    """Embeddings x [B, T, H] with image features [F, H] in their ``places`` [B, T] bool, in order; None: no images.

    Raises InputError if places and features differ in number.
    """
    given, wanted = 0 if features is None else len(features), int(places.sum())
    if given != wanted:
        raise InputError(f"the text has {wanted} image tokens, the images {given} features")
    return x if features is None else x.masked_scatter(places.unsqueeze(-1), features.to(x.dtype))


class Llama(CausalLM):
    """A text model: the decoder is ``model``, the head ``lm_head``."""

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def decoder(self) -> Decoder:
        return self.model

"""CLIP: a text tower and an image tower whose features are comparable (arXiv 2103.00020).

Parameter names are those of ``openai/clip-vit-*`` and ``vinid/plip`` checkpoints. The image tower alone is
:class:`VisionTower`; vision-language models read its hidden states.

Legend: B rows, L words, P patches, H width, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.names import Pretrained
from mint.models.recompute import Recompute, run_layer
from mint.models.settings import check_choice, check_heads, read_settings

LEGACY_EOS = 2  # stands in the first checkpoints' config.json, though their texts end with the highest id


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}
Config = TypeVar("Config", bound="TowerConfig")


@dataclass(frozen=True)
class TowerConfig:
    """The settings of one encoder, text or image; the defaults are those of ``openai/clip-vit-base-patch32``."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_dict(cls: type[Config], raw: dict) -> Config:
        """From a tower's part of ``config.json``. Raises InputError for a setting that is not supported."""
        if not isinstance(raw, dict):
            raise InputError(f"clip: a tower's settings must be an object, not {type(raw).__name__}")
        config = read_settings(cls, raw, "clip")
        check_choice("clip", "hidden_act", config.hidden_act, ACTIVATIONS)
        check_heads("clip", config.hidden_size, config.num_attention_heads)
        return config


@dataclass(frozen=True)
class TextTowerConfig(TowerConfig):
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407


@dataclass(frozen=True)
class VisionTowerConfig(TowerConfig):
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32


@dataclass(frozen=True)
class ClipConfig:
    """The settings of ``config.json`` that shape the network; ``raw`` is the file as it was read."""

    text: TextTowerConfig
    vision: VisionTowerConfig
    projection_dim: int
    initializer_range: float = 0.02
    raw: dict = field(repr=False, compare=False, default_factory=dict)

    @classmethod
    def from_dict(cls, raw: dict) -> ClipConfig:
        """From the content of ``config.json``. Raises InputError for a missing or unsupported setting."""
        # some files hold a tower twice; the second form wins
        text, vision = (
            raw.get(f"{name}_config_dict") or raw.get(f"{name}_config") or {} for name in ("text", "vision")
        )
        towers = TextTowerConfig.from_dict(text), VisionTowerConfig.from_dict(vision)
        return cls(*towers, raw.get("projection_dim", 512), raw.get("initializer_range", 0.02), dict(raw))


class Clip(Pretrained):
    """``clip(tokens, images)`` -> logits of image-text pairs; ``encode_text``, ``encode_image`` -> features."""

    config: ClipConfig
    initial_values = {"logit_scale": 2.6592}  # ln(1 / 0.07)

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.config = config
        self.text_model = TextTower(config.text)
        self.vision_model = VisionTower(config.vision)
        self.text_projection = nn.Linear(config.text.hidden_size, config.projection_dim, bias=False)
        self.visual_projection = nn.Linear(config.vision.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def encode_image(self, images: dict[str, Tensor]) -> Tensor:
        """[B, D] features of length one. images: ``pixel_values`` [B, 3, side, side]."""
        return F.normalize(self.visual_projection(self.vision_model(images["pixel_values"])), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, D] features of length one.

        tokens: [B, L] int64, L at most ``max_position_embeddings``; what follows a text's end is not read.
        """
        return F.normalize(self.text_projection(self.text_model(tokens)), dim=-1)

    def forward(self, tokens: Tensor, images: dict[str, Tensor]) -> Tensor:
        """[images, texts] logits: the cosine of the features times exp(``logit_scale``)."""
        return self.encode_image(images) @ self.encode_text(tokens).T * self.logit_scale.exp()


class TextTower(nn.Module):
    """A causal transformer; a text's state is the one at its end."""

    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.eos_token_id = config.eos_token_id
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(config.vocab_size, config.hidden_size),
                "position_embedding": nn.Embedding(config.max_position_embeddings, config.hidden_size),
            }
        )
        self.encoder = LayerStack(Layer(config) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, H]. Raises InputError for texts longer than the tower's positions."""
        length, places = tokens.shape[1], self.embeddings.get_parameter("position_embedding.weight")
        if length > len(places):
            raise InputError(f"a text of {length} tokens is longer than the {len(places)} this model reads")
        hidden = self.embeddings["token_embedding"](tokens) + places[:length]
        for layer in self.encoder.layers:
            hidden = layer(hidden, causal=True)
        ends = tokens if self.eos_token_id == LEGACY_EOS else (tokens == self.eos_token_id).int()
        return self.final_layer_norm(hidden[torch.arange(len(tokens), device=tokens.device), ends.argmax(1)])


class VisionTower(nn.Module):
    """A vision transformer over the patches of a square image, after a class token."""

    def __init__(self, config: VisionTowerConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.embeddings = ImageEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(width, config.layer_norm_eps)  # spelt as in the checkpoints
        self.encoder = LayerStack(Layer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, H], the class token's state. pixels: [B, 3, side, side]."""
        last = len(self.encoder.layers)
        return self.post_layernorm(self.hidden_states(pixels, (last,))[0][:, 0])

    def hidden_states(self, pixels: Tensor, depths: Sequence[int], recompute: Recompute = False) -> list[Tensor]:
        """[B, 1 + P, H] after each of these numbers of layers, not normalised: the class token, then the patches.

        recompute: activation checkpointing. Raises InputError for images of another size than the tower's.
        """
        side = self.config.image_size
        if pixels.shape[-2:] != (side, side):
            raise InputError(f"images of {tuple(pixels.shape[-2:])} pixels; this model reads {side} x {side}")
        embeddings = self.embeddings
        patches = embeddings.patch_embedding(pixels).flatten(2).mT
        first = embeddings.class_embedding.expand(len(pixels), 1, -1)
        hidden = self.pre_layrnorm(torch.cat((first, patches), 1) + embeddings.position_embedding.weight)
        states = {0: hidden}
        for depth, layer in enumerate(self.encoder.layers[: max(depths)], start=1):
            states[depth] = hidden = run_layer(layer, hidden, recompute=recompute)
        return [states[depth] for depth in depths]


class ImageEmbeddings(nn.Module):
    """Of the class token, the patches and their places."""

    def __init__(self, config: VisionTowerConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)


class LayerStack(nn.Module):
    """The layers, under ``layers`` as in the checkpoints."""

    def __init__(self, layers: Iterable[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


def attend_in_heads(q: Tensor, k: Tensor, v: Tensor, heads: int, **options) -> Tensor:
    """[B, T, H]: attention of q [B, T, H] to k and v [B, S, H], head by head.

    options: those of ``scaled_dot_product_attention``.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """Attention and a two-layer network, each after a norm and added to what came in."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        width = config.hidden_size
        self.heads, self.activation = config.num_attention_heads, ACTIVATIONS[config.hidden_act]
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width) for name in ("q", "k", "v", "out")})
        self.layer_norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, config.intermediate_size), "fc2": nn.Linear(config.intermediate_size, width)}
        )
        self.layer_norm2 = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, hidden: Tensor, causal: bool = False) -> Tensor:
        """[B, T, H]. causal: no position sees a later one."""
        normed = self.layer_norm1(hidden)
        q, k, v = (self.self_attn[f"{name}_proj"](normed) for name in "qkv")
        hidden = hidden + self.self_attn["out_proj"](attend_in_heads(q, k, v, self.heads, is_causal=causal))
        return hidden + self.mlp["fc2"](self.activation(self.mlp["fc1"](self.layer_norm2(hidden))))

"""Qwen2.5-VL: images of any size, a tower with attention within windows, rotary positions in time, height and width.

As in arXiv 2502.13923. An image is a grid of patches; squares of ``spatial_merge_size`` patches become one feature each,
which takes the place of an image token. Parameter names are those of transformers' Qwen2_5_VLForConditionalGeneration;
``OLDER_NAMES`` are the checkpoints'.

Legend: B rows, T row length, I images, S patches of all images, H the decoder's width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.llama import CausalLM, Decoder, LlamaConfig, RMSNorm, is_tied, put_features, rope_frequencies
from mint.models.patches import Groups, Patches, attend_in_groups, group_patches, patch_rope, place_patches
from mint.models.recompute import run_layer
from mint.ops.elementwise import swiglu

OLDER_NAMES = (  # pattern, replacement
    (r"^visual\.", "model.visual."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
)
VISION_DEFAULTS = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": (7, 15, 23, 31),
}
EPS = 1e-6  # of the tower's norms


@dataclass(frozen=True)
class TowerConfig:
    """The settings that both image towers have. Subclasses name their kind, activation and defaults."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int
    out_hidden_size: int
    kind: ClassVar[str]
    activation: ClassVar[str]
    defaults: ClassVar[dict]

    @classmethod
    def from_dict(cls, raw: dict) -> TowerConfig:
        """From ``vision_config``. Raises InputError for an unsupported setting."""
        raw = {**raw, "in_channels": raw.get("in_channels", raw.get("in_chans", 3))}
        values = {name: raw.get(name, default) for name, default in cls.defaults.items()}
        config = cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
        if raw.get("hidden_act", cls.activation) != cls.activation:
            raise InputError(f"{cls.kind}: hidden_act {raw['hidden_act']!r} is not supported, only {cls.activation}")
        if config.hidden_size % (4 * config.num_heads):
            raise InputError(f"{cls.kind}: a head of the image tower must have a multiple of four numbers")
        return config


@dataclass(frozen=True)
class PatchesConfig(TowerConfig):
    """The settings of the image tower with windows."""

    window_size: int
    fullatt_block_indexes: tuple[int, ...]
    kind: ClassVar[str] = "qwen2_5_vl"
    activation: ClassVar[str] = "silu"
    defaults: ClassVar[dict] = VISION_DEFAULTS


@dataclass(frozen=True)
class QwenVLConfig(LlamaConfig):
    """The decoder's settings, and those of what stands before it."""

    vision: PatchesConfig = None
    image_token: int = 0
    sections: tuple[int, ...] = ()  # rotary pairs that turn by time, by height, by width
    text_type: ClassVar[str] = "qwen2"  # the decoder's model_type
    vision_type: ClassVar[type] = PatchesConfig

    @classmethod
    def from_dict(cls, raw: dict) -> QwenVLConfig:
        """From the content of ``config.json``. Raises InputError for a missing or unsupported setting."""
        kind = raw["model_type"]
        vision, text = raw.get("vision_config"), raw.get("text_config") or raw  # the first checkpoints have one level
        if not isinstance(vision, dict) or not isinstance(text, dict):
            raise InputError(f"config.json of a {kind} model needs vision_config")
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        sections = tuple(rope.get("mrope_section") or ())
        plain = {key: value for key, value in rope.items() if key == "rope_theta"}
        text = {**text, "model_type": cls.text_type, "rope_parameters": plain, "rope_scaling": None}
        decoder = LlamaConfig.from_dict({**text, "tie_word_embeddings": is_tied(raw)})
        if len(sections) != 3 or sum(sections) != decoder.head_dim // 2:
            raise InputError(f"{kind}: mrope_section {list(sections)} does not sum to {decoder.head_dim // 2}")
        return cls(
            **{
                field.name: getattr(decoder, field.name) for field in dataclasses.fields(decoder) if field.name != "raw"
            },
            raw=dict(raw),
            vision=cls.vision_type.from_dict(vision),
            image_token=raw.get("image_token_id", 151655),
            sections=sections,
        )


class QwenVL(CausalLM):
    """``qwen(tokens, images)`` -> logits; every image has as many image tokens in ``tokens`` as it has features."""

    older_names = OLDER_NAMES

    def __init__(self, config: QwenVLConfig):
        super().__init__(config)
        self.model = nn.Module()
        self.model.visual = self._make_tower()
        self.model.language_model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def _make_tower(self) -> nn.Module:
        return PatchTower(self.config.vision)

    @property
    def decoder(self) -> Decoder:
        return self.model.language_model

    @property
    def image_slots(self) -> tuple[int, None]:
        """(the token that stands for an image; how many an image has depends on its size)."""
        return self.config.image_token, None

    @property
    def tower(self) -> nn.Module:
        return self.model.visual

    def _encode(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """``features`` [F, H], as many of each image as it has tokens.

        images: ``pixel_values`` [S, numbers of a patch] and ``image_grid_thw`` [distinct, 3], the patches of each image in
        time, height and width.
        """
        return {"features": self.tower(images["pixel_values"], images["image_grid_thw"], self.gradient_checkpointing)}

    def embed(self, tokens: Tensor, images: dict[str, Tensor] | None = None) -> Tensor:
        """[B, T, H]: the tokens' embeddings, the images' features in the places of the image tokens, in their order.

        Raises InputError if places and features differ in number.
        """
        features = None if images is None else self._in_order(images["features"], images)
        return put_features(self.decoder.embed_tokens(tokens), tokens == self.config.image_token, features)

    def _in_order(self, features: Tensor, images: dict[str, Tensor]) -> Tensor:
        """Features [F, ...] of the distinct images as they follow each other in the text."""
        if "order" not in images:
            return features
        counts = images["image_grid_thw"].prod(1) // self.config.vision.spatial_merge_size**2
        parts = features.split(counts.tolist())
        return torch.cat([parts[i] for i in images["order"].tolist()])

    def turns(
        self, tokens: Tensor, positions: Tensor, images: dict[str, Tensor] | None, segments: Tensor | None = None
    ) -> Tensor:
        """[3, B, T]: positions in time, height and width.

        Text advances all three by one. The features of an image share its place in time and count rows and columns from
        there; what follows goes on behind the larger of its sides.
        """
        turns = positions.expand(3, -1, -1)
        if images is None:
            return turns
        turns = turns.clone()
        grids = images["image_grid_thw"]
        grids = (grids[images["order"]] if "order" in images else grids).tolist()
        rows, columns = (tokens == self.config.image_token).nonzero(as_tuple=True)
        sample = torch.zeros_like(tokens) if segments is None else segments // 3
        merge, first = self.config.vision.spatial_merge_size, 0
        for frames, height, width in grids:
            height, width = height // merge, width // merge
            count = frames * height * width
            row, column = rows[first], columns[first : first + count]
            start = turns[0, row, column[0]]
            place = torch.arange(count, device=tokens.device)
            own = torch.stack((place // (height * width), place // width % height, place % width))
            after = (sample[row] == sample[row, column[0]]) & (positions[row] > positions[row, column[-1]])
            turns[:, row, after] += max(height, width, frames) - count
            turns[:, row, column] = start + own
            first += count
        return turns

    def _axes(self) -> Tensor:
        """[D / 2]: the axis that each rotary pair turns by: 0 time, 1 height, 2 width."""
        return torch.arange(3).repeat_interleave(torch.tensor(self.config.sections))

    def _rope(self, turns: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [B, 1, T, D]: some rotary pairs turn by time, some by height, some by width."""
        if turns.dim() == 2:
            turns = turns.expand(3, -1, -1)
        angles = turns[self._axes().to(turns.device)].movedim(0, -1)[:, None].float() * rope_frequencies(
            self.config
        ).to(turns.device)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class PatchTower(nn.Module):
    """A vision transformer over the patches of all images; most layers look within windows, some at whole images."""

    def __init__(self, config: PatchesConfig):
        super().__init__()
        self.config = config
        width, size = config.hidden_size, (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv3d(config.in_channels, width, size, size, bias=False)
        self.blocks = nn.ModuleList(PatchBlock(config) for _ in range(config.depth))
        self.merger = nn.Module()
        merged = width * config.spatial_merge_size**2
        self.merger.ln_q = RMSNorm(width, EPS)
        self.merger.mlp = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, config.out_hidden_size))

    def forward(self, pixels: Tensor, grids: Tensor, recompute: bool = False) -> Tensor:
        """[S / merged patches, H] features. pixels: [S, numbers of a patch]; grids: [I, 3] patches of each image.

        recompute: activation checkpointing. The patches of an image lie square by square, as many as become one feature.
        """
        places = place_patches(grids, self.config.spatial_merge_size, pixels)
        weight = self.patch_embed.proj.weight
        x = F.linear(pixels.to(weight.dtype), weight.flatten(1))
        rope = patch_rope(places, self.config.hidden_size // self.config.num_heads, x.dtype)
        whole, windows = group_patches(places.frame), group_patches(self._windows(places))
        for number, block in enumerate(self.blocks):
            groups = whole if number in self.config.fullatt_block_indexes else windows
            x = run_layer(block, x, rope, groups, recompute=recompute)
        return self.merger.mlp(self.merger.ln_q(x).view(-1, self.merger.mlp[0].in_features))

    def _windows(self, places: Patches) -> Tensor:
        """[S]: equal for patches of one window, different for those of two."""
        side = self.config.window_size // self.config.patch_size  # in patches
        across = int(places.columns.max()) // side + 1
        down = int(places.rows.max()) // side + 1
        return (places.frame * down + places.row // side) * across + places.column // side


class PatchBlock(nn.Module):
    """Attention within groups and a gated network, each after a norm and added to what came in."""

    def __init__(self, config: PatchesConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_heads
        self.norm1, self.norm2 = RMSNorm(width, EPS), RMSNorm(width, EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, inner),
                "up_proj": nn.Linear(width, inner),
                "down_proj": nn.Linear(inner, width),
            }
        )

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], groups: Groups) -> Tensor:
        """[S, width]"""
        x = x + self.attn["proj"](attend_in_groups(self.attn["qkv"](self.norm1(x)), self.heads, rope, groups))
        y = self.norm2(x)
        return x + self.mlp["down_proj"](swiglu(self.mlp["gate_proj"](y), self.mlp["up_proj"](y)))

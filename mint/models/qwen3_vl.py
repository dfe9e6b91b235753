"""Qwen3-VL: the vision encoder also feeds the first layers of the decoder (DeepStack, arXiv 2406.04334).

The encoder has learned positions, interpolated to each image's size, and attention over whole images. States of some of
its layers are merged like the features and added to the image tokens after the decoder's first layers. Rotary pairs
interleave time, height and width. The technical report is arXiv 2511.21631; parameter names are those of transformers'
Qwen3VLForConditionalGeneration, which are the checkpoints'.

Legend: S patches of all images, F features (a square of patches each), H the decoder's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.llama import DeepStackFeatures
from mint.models.patches import Groups, Patches, attend_in_groups, group_patches, patch_rope, place_patches
from mint.models.qwen_vl import EPS, PatchTowerConfig, QwenVL, QwenVLConfig
from mint.models.recompute import Recompute, run_layer
from mint.ops.transfer import upload


@dataclass(frozen=True)
class DeepPatchesConfig(PatchTowerConfig):
    """The settings of the image encoder."""

    kind: ClassVar[str] = "qwen3_vl"
    activation: ClassVar[str] = "gelu_pytorch_tanh"
    depth: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    patch_size: int = 16
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)

    @classmethod
    def from_dict(cls, raw: dict) -> DeepPatchesConfig:
        """From ``vision_config``. Raises InputError for an unsupported setting."""
        config = super().from_dict(raw)
        if not all(0 <= index < config.depth for index in config.deepstack_visual_indexes):
            raise InputError(f"qwen3_vl: deepstack_visual_indexes are outside a tower of {config.depth} layers")
        if config.positions**2 != config.num_position_embeddings:
            raise InputError(f"qwen3_vl: {config.num_position_embeddings} positions are no square")
        return config

    @property
    def positions(self) -> int:
        """Of one side of the square of learned positions."""
        return round(self.num_position_embeddings**0.5)


@dataclass(frozen=True, kw_only=True)
class Qwen3VLConfig(QwenVLConfig):
    """The settings of decoder and image encoder."""

    vision: DeepPatchesConfig
    text_type: ClassVar[str] = "qwen3"
    vision_type: ClassVar[type[PatchTowerConfig]] = DeepPatchesConfig


class Qwen3VL(QwenVL):
    """Qwen2.5-VL with another image encoder, whose features also reach the decoder's first layers."""

    older_names = ()

    def _make_tower(self, config: QwenVLConfig) -> nn.Module:
        return DeepPatchTower(cast(DeepPatchesConfig, config.vision))

    def _encode(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """``features`` [F, H] and ``deep_features`` [F, layers, H]; images as for Qwen2.5-VL."""
        last, deep = self.tower(images["pixel_values"], images["image_grid_thw"], self.gradient_checkpointing)
        return {"features": last, "deep_features": deep}

    def vision_inputs(
        self, tokens: Tensor, images: dict[str, Tensor] | None, segments: Tensor | None = None
    ) -> DeepStackFeatures | None:
        """Features added to the image tokens after each of the first layers."""
        if images is None:
            return None
        deep = self._in_order(images["deep_features"], images)
        rows, columns = upload((tokens == self.config.image_token).nonzero().T, deep.device)
        return DeepStackFeatures((rows, columns), deep.unbind(1))

    def _axes(self) -> Tensor:
        """Time, height, width in turn until the sections of height and width are full; the other pairs are time."""
        axes = torch.zeros(sum(self.config.sections), dtype=torch.int64)
        for axis in (1, 2):
            axes[axis : 3 * self.config.sections[axis] : 3] = axis
        return axes


class DeepPatchTower(nn.Module):
    """A vision transformer over the patches of all images; the states of some layers are features too."""

    def __init__(self, config: DeepPatchesConfig):
        super().__init__()
        self.config = config
        width, size = config.hidden_size, (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(config.in_channels, width, size, size)})
        self.pos_embed = nn.Embedding(config.num_position_embeddings, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.merger = Merger(config, norm_first=True)
        self.deepstack_merger_list = nn.ModuleList(
            Merger(config, norm_first=False) for _ in config.deepstack_visual_indexes
        )

    def forward(self, pixels: Tensor, grids: Tensor, recompute: Recompute = False) -> tuple[Tensor, Tensor]:
        """([F, H], [F, layers, H]) features: of the last layer, and of earlier ones. Arguments as in ``PatchTower``."""
        config = self.config
        weight, bias = (self.patch_embed.get_parameter(f"proj.{name}") for name in ("weight", "bias"))
        on_host = place_patches(grids, config.spatial_merge_size, pixels)
        places, groups = on_host.to(pixels.device), group_patches(on_host.frame, pixels.device)
        x = F.linear(pixels.to(weight.dtype), weight.flatten(1), bias) + self._positions(places)
        rope = patch_rope(places, config.hidden_size // config.num_heads, x.dtype)
        deep = {}
        for number, block in enumerate(self.blocks):
            x = run_layer(block, x, rope, groups, recompute=recompute)
            if number in config.deepstack_visual_indexes:
                order = config.deepstack_visual_indexes.index(number)
                deep[order] = run_layer(self.deepstack_merger_list[order], x, recompute=recompute)
        return self.merger(x), torch.stack([deep[order] for order in sorted(deep)], 1)

    def _positions(self, places: Patches) -> Tensor:
        """[S, width]: the square of learned positions, bilinearly interpolated to each image, corners aligned."""
        side = self.config.positions
        total = places.row.new_zeros(())
        rows, columns = (
            _taps(place, size, side) for place, size in ((places.row, places.rows), (places.column, places.columns))
        )
        for row, down in rows:
            for column, across in columns:
                weight = self.pos_embed(row * side + column)
                total = total + weight * (down * across)[:, None].to(weight.dtype)
        return total


def _taps(place: Tensor, size: Tensor, side: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two of ``side`` points between which each ``place`` in [0, size) lies, and their weights, [S] each."""
    at = place.float() * (side - 1) / (size - 1).clamp(min=1)
    below = at.floor()
    share = at - below
    return (below.long(), 1 - share), ((below.long() + 1).clamp(max=side - 1), share)


class Block(nn.Module):
    """Attention within images and a two-layer network, each after a norm, with residual connections."""

    def __init__(self, config: DeepPatchesConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"linear_fc1": nn.Linear(width, inner), "linear_fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], groups: Groups) -> Tensor:
        """[S, width]"""
        x = x + self.attn["proj"](attend_in_groups(self.attn["qkv"](self.norm1(x)), self.heads, rope, groups))
        inner = F.gelu(self.mlp["linear_fc1"](self.norm2(x)), approximate="tanh")
        return x + self.mlp["linear_fc2"](inner)


class Merger(nn.Module):
    """[S, width] -> [F, H]: a square of patches becomes one feature. norm_first: normalise patches, else squares."""

    def __init__(self, config: DeepPatchesConfig, norm_first: bool):
        super().__init__()
        self.merged, self.norm_first = config.hidden_size * config.spatial_merge_size**2, norm_first
        self.norm = nn.LayerNorm(config.hidden_size if norm_first else self.merged, EPS)
        self.linear_fc1 = nn.Linear(self.merged, self.merged)
        self.linear_fc2 = nn.Linear(self.merged, config.out_hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).view(-1, self.merged) if self.norm_first else self.norm(x.view(-1, self.merged))
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))

"""Qwen2.5-VL: images of any size, windowed attention, rotary positions in time, height, width (arXiv 2502.13923).

An image is a grid of patches; squares of ``spatial_merge_size`` patches become one feature each,
which takes the place of an image token. Parameter names are those of transformers' Qwen2_5_VLForConditionalGeneration;
``OLDER_NAMES`` are the checkpoints'.

Legend: B rows, T row length, I images, S patches of all images, H the decoder's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.llama import MLP, Decoder, RMSNorm
from mint.models.patches import Groups, Patches, attend_in_groups, group_patches, patch_rope, place_patches
from mint.models.recompute import Recompute, run_layer
from mint.models.settings import read_settings
from mint.models.vision_language import VisionLanguageConfig, VisionLanguageModel

OLDER_NAMES = (  # pattern, replacement
    (r"^visual\.", "model.visual."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
)
EPS = 1e-6  # of the encoder's norms
Config = TypeVar("Config", bound="PatchTowerConfig")


@dataclass(frozen=True)
class PatchTowerConfig:
    """The settings that the image encoders of both families have."""

    kind: ClassVar[str]
    activation: ClassVar[str]
    depth: int
    hidden_size: int
    intermediate_size: int
    patch_size: int
    num_heads: int = 16
    in_channels: int = 3
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    out_hidden_size: int = 3584

    @classmethod
    def from_dict(cls: type[Config], raw: dict) -> Config:
        """From ``vision_config``. Raises InputError for an unsupported setting."""
        config = read_settings(cls, {**raw, "in_channels": raw.get("in_channels", raw.get("in_chans", 3))}, cls.kind)
        if raw.get("hidden_act", cls.activation) != cls.activation:
            raise InputError(f"{cls.kind}: hidden_act {raw['hidden_act']!r} is not supported, only {cls.activation}")
        if config.hidden_size % (4 * config.num_heads):
            raise InputError(f"{cls.kind}: the head size of the image encoder must be a multiple of four")
        return config


@dataclass(frozen=True)
class PatchesConfig(PatchTowerConfig):
    """The settings of the image encoder with windows."""

    kind: ClassVar[str] = "qwen2_5_vl"
    activation: ClassVar[str] = "silu"
    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    patch_size: int = 14
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)


@dataclass(frozen=True, kw_only=True)
class QwenVLConfig(VisionLanguageConfig):
    """The settings of decoder and image encoder."""

    vision: PatchTowerConfig
    sections: tuple[int, ...] = ()  # numbers of rotary pairs for time, height and width
    text_type: ClassVar[str] = "qwen2"  # the decoder's model_type
    vision_type: ClassVar[type[PatchTowerConfig]] = PatchesConfig

    @classmethod
    def from_dict(cls, raw: dict) -> QwenVLConfig:
        """From the content of ``config.json``. Raises InputError for a missing or unsupported setting."""
        kind = raw["model_type"]
        vision, text = raw.get("vision_config"), raw.get("text_config") or raw  # the first checkpoints have one level
        if not isinstance(vision, dict) or not isinstance(text, dict):
            raise InputError(f"config.json of a {kind} model needs vision_config")
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        plain = {key: value for key, value in rope.items() if key == "rope_theta"}
        config = cls.around(
            {**text, "model_type": cls.text_type, "rope_parameters": plain, "rope_scaling": None},
            raw,
            vision=cls.vision_type.from_dict(vision),
            image_token=raw.get("image_token_id", 151655),
            sections=tuple(rope.get("mrope_section") or ()),
        )
        if len(config.sections) != 3 or sum(config.sections) != config.head_dim // 2:
            raise InputError(f"{kind}: mrope_section {list(config.sections)} does not sum to {config.head_dim // 2}")
        return config


class QwenVL(VisionLanguageModel[nn.Module]):
    """An image encoder with windows, and a Qwen2 decoder with rotary positions in time, height and width."""

    config: QwenVLConfig
    older_names: ClassVar[tuple[tuple[str, str], ...]] = OLDER_NAMES
    tower_name = "visual"

    def __init__(self, config: QwenVLConfig):
        super().__init__(config, visual=self._make_tower(config), language_model=Decoder(config))

    def _make_tower(self, config: QwenVLConfig) -> nn.Module:
        return PatchTower(cast(PatchesConfig, config.vision))

    @property
    def image_slots(self) -> tuple[int, None]:
        """(the token that stands for an image; how many an image has depends on its size)."""
        return self.config.image_token, None

    def _encode(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """``features`` [F, H], as many of each image as it has tokens.

        images: ``pixel_values`` [S, numbers of a patch] and ``image_grid_thw`` [distinct, 3], the numbers of patches of
        each image in time, height and width.
        """
        return {"features": self.tower(images["pixel_values"], images["image_grid_thw"], self.gradient_checkpointing)}

    def text_features(self, images: dict[str, Tensor]) -> Tensor:
        """[F, H]: the features."""
        return self._in_order(images["features"], images)

    def _in_order(self, features: Tensor, images: dict[str, Tensor]) -> Tensor:
        """Features [F, ...] of the distinct images in the order of the text."""
        if "order" not in images:
            return features
        counts = images["image_grid_thw"].prod(1) // self.config.vision.spatial_merge_size**2
        parts = features.split(counts.tolist())
        return torch.cat([parts[i] for i in images["order"].tolist()])

    def rotary_positions(
        self, tokens: Tensor, positions: Tensor, images: dict[str, Tensor] | None, segments: Tensor | None = None
    ) -> Tensor:
        """[3, B, T]: positions in time, height and width.

        Text advances all three by one. The features of an image share its position in time and count rows and columns
        from there; the tokens that follow continue after the longer side.
        """
        rotary = positions.expand(3, -1, -1)
        if images is None:
            return rotary
        rotary = rotary.clone()
        grids = images["image_grid_thw"]
        grids = grids[images["order"]] if "order" in images else grids
        rows, columns = (tokens == self.config.image_token).nonzero(as_tuple=True)
        sample = torch.zeros_like(tokens) if segments is None else segments // 3
        merge, first = self.config.vision.spatial_merge_size, 0
        for frames, height, width in grids.tolist():
            height, width = height // merge, width // merge
            count = frames * height * width
            row, column = rows[first], columns[first : first + count]
            start = rotary[0, row, column[0]]
            place = torch.arange(count, device=tokens.device)
            own = torch.stack((place // (height * width), place // width % height, place % width))
            after = (sample[row] == sample[row, column[0]]) & (positions[row] > positions[row, column[-1]])
            rotary[:, row, after] += max(height, width, frames) - count
            rotary[:, row, column] = start + own
            first += count
        return rotary

    def _axes(self) -> Tensor:
        """[D / 2]: the axis of each rotary pair: 0 time, 1 height, 2 width."""
        return torch.arange(3).repeat_interleave(torch.tensor(self.config.sections))

    def _angles(self, positions: Tensor) -> Tensor:
        """[B, 1, T, D / 2]: some rotary pairs rotate by time, some by height, some by width."""
        if positions.dim() == 2:
            positions = positions.expand(3, -1, -1)
        own = torch.stack([positions[axis] for axis in self._axes().tolist()], -1)[:, None].float()
        return own * self._frequencies(positions.device)


class PatchTower(nn.Module):
    """A vision transformer over the patches of all images; most layers attend within windows only."""

    def __init__(self, config: PatchesConfig):
        super().__init__()
        self.config = config
        width, size = config.hidden_size, (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(config.in_channels, width, size, size, bias=False)})
        self.blocks = nn.ModuleList(PatchBlock(config) for _ in range(config.depth))
        self.merged = width * config.spatial_merge_size**2
        layers = (nn.Linear(self.merged, self.merged), nn.GELU(), nn.Linear(self.merged, config.out_hidden_size))
        self.merger = nn.ModuleDict({"ln_q": RMSNorm(width, EPS), "mlp": nn.Sequential(*layers)})

    def forward(self, pixels: Tensor, grids: Tensor, recompute: Recompute = False) -> Tensor:
        """[S / merged patches, H] features. pixels: [S, numbers of a patch]; grids: [I, 3] patches of each image.

        recompute: activation checkpointing. The patches of an image are ordered by the squares that become one feature.
        """
        on_host = place_patches(grids, self.config.spatial_merge_size, pixels)
        windows = group_patches(self._windows(on_host), pixels.device)
        places, whole = on_host.to(pixels.device), group_patches(on_host.frame, pixels.device)
        weight = self.patch_embed.get_parameter("proj.weight")
        x = F.linear(pixels.to(weight.dtype), weight.flatten(1))
        rope = patch_rope(places, self.config.hidden_size // self.config.num_heads, x.dtype)
        for number, block in enumerate(self.blocks):
            groups = whole if number in self.config.fullatt_block_indexes else windows
            x = run_layer(block, x, rope, groups, recompute=recompute)
        return self.merger["mlp"](self.merger["ln_q"](x).view(-1, self.merged))

    def _windows(self, places: Patches) -> Tensor:
        """[S]: equal for patches of one window, different for those of two."""
        side = self.config.window_size // self.config.patch_size  # in patches
        across = int(places.columns.max()) // side + 1
        down = int(places.rows.max()) // side + 1
        return (places.frame * down + places.row // side) * across + places.column // side


class PatchBlock(nn.Module):
    """Attention within groups and a gated network, each after a norm, with residual connections."""

    def __init__(self, config: PatchesConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_heads
        self.norm1, self.norm2 = RMSNorm(width, EPS), RMSNorm(width, EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = MLP(width, inner, bias=True)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], groups: Groups) -> Tensor:
        """[S, width]"""
        x = x + self.attn["proj"](attend_in_groups(self.attn["qkv"](self.norm1(x)), self.heads, rope, groups))
        return x + self.mlp(self.norm2(x))

"""Qwen2.5-VL: images of any size, a tower with attention within windows, rotary positions in time, height and width.

As in arXiv 2502.13923. An image is a grid of patches; squares of ``spatial_merge_size`` patches become one feature each,
which takes the place of an image token. Parameter names are those of transformers' Qwen2_5_VLForConditionalGeneration;
``OLDER_NAMES`` are the checkpoints'.

Legend: B rows, T row length, I images, S patches of all images, H the decoder's width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.llama import CausalLM, Decoder, LlamaConfig, RMSNorm, put_features, rope_frequencies, rotate
from mint.models.recompute import run_layer

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
EPS, THETA = 1e-6, 10_000.0  # of the tower's norms and rotary positions


@dataclass(frozen=True)
class PatchesConfig:
    """The settings of the image tower."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int
    window_size: int
    out_hidden_size: int
    fullatt_block_indexes: tuple[int, ...]

    @classmethod
    def from_dict(cls, raw: dict) -> PatchesConfig:
        """From ``vision_config``. Raises InputError for an unsupported setting."""
        raw = {**raw, "in_channels": raw.get("in_channels", raw.get("in_chans", 3))}
        values = {name: raw.get(name, default) for name, default in VISION_DEFAULTS.items()}
        config = cls(**{**values, "fullatt_block_indexes": tuple(values["fullatt_block_indexes"])})
        if raw.get("hidden_act", "silu") != "silu":
            raise InputError(f"qwen2_5_vl: hidden_act {raw['hidden_act']!r} is not supported, only silu")
        if config.hidden_size % (4 * config.num_heads):
            raise InputError("qwen2_5_vl: a head of the image tower must have a multiple of four numbers")
        return config


@dataclass(frozen=True)
class QwenVLConfig(LlamaConfig):
    """The decoder's settings, and those of what stands before it."""

    vision: PatchesConfig = None
    image_token: int = 0
    sections: tuple[int, ...] = ()  # rotary pairs that turn by time, by height, by width

    @classmethod
    def from_dict(cls, raw: dict) -> QwenVLConfig:
        """From the content of ``config.json``. Raises InputError for a missing or unsupported setting."""
        vision, text = raw.get("vision_config"), raw.get("text_config") or raw  # the first checkpoints have one level
        if not isinstance(vision, dict) or not isinstance(text, dict):
            raise InputError("config.json of a qwen2_5_vl model needs vision_config")
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        sections = tuple(rope.get("mrope_section") or ())
        plain = {key: value for key, value in rope.items() if key == "rope_theta"}
        text = {**text, "model_type": "qwen2", "rope_parameters": plain, "rope_scaling": None}
        decoder = LlamaConfig.from_dict({"tie_word_embeddings": raw.get("tie_word_embeddings", False), **text})
        if len(sections) != 3 or sum(sections) != decoder.head_dim // 2:
            raise InputError(f"qwen2_5_vl: mrope_section {list(sections)} does not sum to {decoder.head_dim // 2}")
        return cls(
            **{field.name: getattr(decoder, field.name) for field in dataclasses.fields(decoder) if field.name != "raw"},
            raw=dict(raw),
            vision=PatchesConfig.from_dict(vision),
            image_token=raw.get("image_token_id", 151655),
            sections=sections,
        )


class QwenVL(CausalLM):
    """``qwen(tokens, images)`` -> logits; every image has as many image tokens in ``tokens`` as it has features."""

    older_names = OLDER_NAMES

    def __init__(self, config: QwenVLConfig):
        super().__init__(config)
        self.model = nn.Module()
        self.model.visual = PatchTower(config.vision)
        self.model.language_model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def decoder(self) -> Decoder:
        return self.model.language_model

    @property
    def image_slots(self) -> tuple[int, None]:
        """(the token that stands for an image; how many an image has depends on its size)."""
        return self.config.image_token, None

    def embed(self, tokens: Tensor, images: dict[str, Tensor] | None = None) -> Tensor:
        """[B, T, H]: the tokens' embeddings, the images' features in the places of the image tokens, in their order.

        images: ``pixel_values`` [S, numbers of a patch] and ``image_grid_thw`` [distinct, 3], the patches of each image in
        time, height and width; ``order`` [I], which of them, default each once. Raises InputError if places and features
        differ in number.
        """
        features = None
        if images is not None:
            grids = images["image_grid_thw"]
            features = self.model.visual(images["pixel_values"], grids, self.gradient_checkpointing)
            if "order" in images:
                parts = features.split((grids.prod(1) // self.config.vision.spatial_merge_size**2).tolist())
                features = torch.cat([parts[i] for i in images["order"].tolist()])
        return put_features(self.decoder.embed_tokens(tokens), tokens == self.config.image_token, features)

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

    def _rope(self, turns: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [B, 1, T, D]: some rotary pairs turn by time, some by height, some by width."""
        if turns.dim() == 2:
            turns = turns.expand(3, -1, -1)
        sections = torch.tensor(self.config.sections, device=turns.device)
        axis = torch.arange(3, device=turns.device).repeat_interleave(sections)  # [D / 2]
        angles = turns[axis].movedim(0, -1)[:, None].float() * rope_frequencies(self.config).to(turns.device)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class Groups(NamedTuple):
    """Patches that attend to each other. index: [G, L] into the patches, padded; real: [G, L], what is not padding."""

    index: Tensor
    real: Tensor


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
        if int(grids.prod(1).sum()) != len(pixels):
            raise InputError(f"{len(pixels)} patches, where the images' grids hold {int(grids.prod(1).sum())}")
        weight = self.patch_embed.proj.weight
        x = F.linear(pixels.to(weight.dtype), weight.flatten(1))
        rows, columns, frame, window = self._places(grids)
        rope = self._rope(rows, columns, x.dtype)
        whole, windows = _groups(frame), _groups(window)
        for number, block in enumerate(self.blocks):
            groups = whole if number in self.config.fullatt_block_indexes else windows
            x = run_layer(block, x, rope, groups, recompute=recompute)
        return self.merger.mlp(self.merger.ln_q(x).view(-1, self.merger.mlp[0].in_features))

    def _places(self, grids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[S] each: row, column, number of the frame, number of the window."""
        merge = self.config.spatial_merge_size
        side = self.config.window_size // self.config.patch_size  # patches of a window
        parts, frames, windows = [], 0, 0
        for count, height, width in grids.tolist():
            row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            squares = (height // merge, merge, width // merge, merge)
            by_square = [place.reshape(squares).transpose(1, 2).flatten() for place in (row, column)]
            across = -(-width // side)
            inside = by_square[0] // side * across + by_square[1] // side
            for _ in range(count):
                parts.append(torch.stack((*by_square, torch.full_like(inside, frames), inside + windows)))
                frames += 1
                windows += -(-height // side) * across
        return tuple(torch.cat(parts, 1).to(grids.device))

    def _rope(self, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [S, D]: the first half of the rotary pairs turns by the row, the second by the column."""
        quarter = self.config.hidden_size // self.config.num_heads // 4
        frequency = 1.0 / THETA ** (torch.arange(quarter, device=rows.device).float() / quarter)
        angles = torch.cat((rows[:, None] * frequency, columns[:, None] * frequency), -1)
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _groups(number: Tensor) -> Groups:
    """The patches of equal number together."""
    order = number.argsort(stable=True)
    _, counts = number.unique(return_counts=True)
    longest = int(counts.max())
    real = torch.arange(longest, device=number.device) < counts[:, None]
    return Groups(torch.zeros_like(real, dtype=torch.int64).masked_scatter(real, order), real)


class PatchBlock(nn.Module):
    """Attention within groups and a gated network, each after a norm and added to what came in."""

    def __init__(self, config: PatchesConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_heads
        self.norm1, self.norm2 = RMSNorm(width, EPS), RMSNorm(width, EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict(
            {"gate_proj": nn.Linear(width, inner), "up_proj": nn.Linear(width, inner), "down_proj": nn.Linear(inner, width)}
        )

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], groups: Groups) -> Tensor:
        """[S, width]"""
        x = x + self.attn["proj"](self._attend(self.attn["qkv"](self.norm1(x)), rope, groups))
        y = self.norm2(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](y)) * self.mlp["up_proj"](y))

    def _attend(self, qkv: Tensor, rope: tuple[Tensor, Tensor], groups: Groups) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)  # [heads, S, D] each
        q, k = rotate(q, *rope), rotate(k, *rope)
        q, k, v = (part[:, groups.index].transpose(0, 1) for part in (q, k, v))  # [G, heads, L, D]
        mask = None if groups.real.all() else groups.real[:, None, None, :]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)  # [G, L, width]
        result = qkv.new_zeros(len(qkv), attended.shape[-1])
        return result.index_copy(0, groups.index[groups.real], attended[groups.real])

"""The image encoder of Llama 3.2 Vision: a vision transformer over up to four tiles of an image.

The features are the last state and those of some earlier layers, concatenated. Parameter names are those of
transformers' MllamaVisionModel.

Legend: I images, K tiles of an image, P patches of a tile with its class token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.clip import ACTIVATIONS, LayerStack, attend_in_heads
from mint.models.recompute import Recompute, run_layer
from mint.models.settings import check_choice, check_heads, read_settings

PATCH_MULTIPLE = 8  # patches of a tile are padded to a multiple of it


@dataclass(frozen=True)
class TilesConfig:
    """The settings of the image encoder."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_global_layers: int = 8
    attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 448
    patch_size: int = 14
    max_num_tiles: int = 4
    norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    intermediate_layers_indices: tuple[int, ...] = (3, 7, 15, 23, 30)
    ratios: int = 8  # supported aspect ratios; id 0 is no image

    @classmethod
    def from_dict(cls, raw: dict) -> TilesConfig:
        """From ``vision_config``. Raises InputError for an unsupported setting."""
        ratios = raw.get("supported_aspect_ratios")
        config = read_settings(cls, raw, "mllama", **({"ratios": len(ratios)} if ratios else {}))
        check_choice("mllama", "hidden_act", config.hidden_act, ACTIVATIONS)
        check_heads("mllama", config.hidden_size, config.attention_heads)
        if not all(0 <= index < config.num_hidden_layers for index in config.intermediate_layers_indices):
            raise InputError("mllama: intermediate_layers_indices are outside the image tower")
        return config

    @property
    def patches(self) -> int:
        """Of a tile, with the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def output_size(self) -> int:
        return self.hidden_size * (1 + len(self.intermediate_layers_indices))


class TiledTower(nn.Module):
    """A vision transformer over all tiles of an image, followed by a second one with gated layers."""

    def __init__(self, config: TilesConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, config.patch_size, config.patch_size, bias=False)
        self.gated_positional_embedding = PatchEmbedding(config)
        self.pre_tile_positional_embedding = TileEmbedding(config)
        self.post_tile_positional_embedding = TileEmbedding(config)
        self.layernorm_pre = nn.LayerNorm(width, 1e-5)
        self.layernorm_post = nn.LayerNorm(width, 1e-5)
        self.transformer = LayerStack(TileLayer(config) for _ in range(config.num_hidden_layers))
        self.global_transformer = LayerStack(TileLayer(config, gated=True) for _ in range(config.num_global_layers))

    def forward(self, pixels: Tensor, ratio_ids: Tensor, tile_mask: Tensor, recompute: Recompute = False) -> Tensor:
        """[I, K, P, output_size]: the last state and those of ``intermediate_layers_indices``, concatenated.

        pixels: [I, K, 3, side, side].     ratio_ids: [I], the aspect ratio of each image.     tile_mask: [I, K], 1 for
        tiles of the image, 0 for padding.     recompute: activation checkpointing.
        """
        images, tiles = pixels.shape[:2]
        side, patches = self.config.image_size, self.config.patches
        if pixels.shape[-2:] != (side, side) or tiles != self.config.max_num_tiles:
            found = f"{tiles} tiles of {tuple(pixels.shape[-2:])} pixels"
            raise InputError(f"images of {found}; this model reads {self.config.max_num_tiles} of {side} x {side}")
        x = self.patch_embedding(pixels.flatten(0, 1)).flatten(2).mT.unflatten(0, (images, tiles))
        x = self._add_tile(self.pre_tile_positional_embedding, x, ratio_ids)
        x = torch.cat((self.class_embedding.expand(images, tiles, 1, -1), x), 2)
        x = self.layernorm_pre(x + self._positions(ratio_ids))
        padding = -patches % PATCH_MULTIPLE
        x = F.pad(x, (0, 0, 0, padding)).flatten(1, 2)  # [I, K * padded P, width]
        absent = 1 - tile_mask[:, :, None].expand(-1, -1, patches + padding).float()
        absent[:, :, patches:] = 1
        absent = absent.flatten(1).bool()
        mask = ~(absent[:, None, :, None] & absent[:, None, None, :])  # padding does not attend to padding
        states = {}
        for depth, layer in enumerate(self.transformer.layers):
            states[depth] = x = run_layer(layer, x, mask, recompute=recompute)
        x = self.layernorm_post(x).unflatten(1, (tiles, -1))
        x = self._add_tile(self.post_tile_positional_embedding, x, ratio_ids).flatten(1, 2)
        for layer in self.global_transformer.layers:
            x = run_layer(layer, x, mask, recompute=recompute)
        middle = torch.stack([states[depth] for depth in self.config.intermediate_layers_indices], -1).flatten(2)
        return torch.cat((x, middle), -1).unflatten(1, (tiles, -1))[:, :, :patches]

    def distinct_tiles(self, pixels: Tensor, ratio_ids: Tensor, tile_mask: Tensor) -> Tensor:
        """[I]: how many tiles of an image have states of their own; the arguments are those of :meth:`forward`.

        These are its real tiles, and one padding tile for all of them where they have equal pixels and embeddings. In
        published checkpoints they do: the embeddings of tiles that an aspect ratio does not have are zero.
        """
        embeddings = [self.pre_tile_positional_embedding.embedding, self.post_tile_positional_embedding.embedding]
        embeddings.append(self.gated_positional_embedding.tile_embedding)
        counts, tiles = [], pixels.shape[1]
        for image, ratio, real in zip(pixels, ratio_ids.tolist(), tile_mask.sum(1).tolist(), strict=True):
            of_tile = [image, *(embedding.weight[ratio].view(tiles, -1) for embedding in embeddings)]
            alike = all(torch.equal(x[real:], x[-1:].expand_as(x[real:])) for x in of_tile)
            counts.append(min(real + 1, tiles) if alike else tiles)
        return torch.tensor(counts, device=pixels.device)

    def _add_tile(self, part: TileEmbedding, x: Tensor, ratio_ids: Tensor) -> Tensor:
        """x [I, K, P, width] with the embedding of each tile's place added."""
        embedded = part.embedding(ratio_ids).unflatten(-1, (self.config.max_num_tiles, 1, -1))
        return x + embedded * part.gate.tanh()

    def _positions(self, ratio_ids: Tensor) -> Tensor:
        """[I, K, P, width]: the patch's place in its tile, and in the image."""
        part = self.gated_positional_embedding
        tiles = part.tile_embedding(ratio_ids).unflatten(-1, (self.config.max_num_tiles, self.config.patches, -1))
        return (1 - part.gate.tanh()) * part.embedding + part.gate.tanh() * tiles


class TileEmbedding(nn.Module):
    """Of the places of tiles in their image, by aspect ratio."""

    def __init__(self, config: TilesConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.ratios + 1, config.max_num_tiles * config.hidden_size)
        self.gate = nn.Parameter(torch.zeros(1))


class PatchEmbedding(nn.Module):
    """Of the places of patches in their tile, and in the image by aspect ratio."""

    def __init__(self, config: TilesConfig):
        super().__init__()
        width, tiles = config.hidden_size, config.max_num_tiles
        self.gate = nn.Parameter(torch.zeros(1))
        self.embedding = nn.Parameter(torch.zeros(config.patches, width))
        self.tile_embedding = nn.Embedding(config.ratios + 1, tiles * config.patches * width)


class TileLayer(nn.Module):
    """A pre-norm transformer layer; gated: both branches are scaled by tanh of a learned number."""

    def __init__(self, config: TilesConfig, gated: bool = False):
        super().__init__()
        width = config.hidden_size
        self.heads, self.activation, self.gated = config.attention_heads, ACTIVATIONS[config.hidden_act], gated
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width, bias=False) for name in "qkvo"})
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, config.intermediate_size), "fc2": nn.Linear(config.intermediate_size, width)}
        )
        self.input_layernorm = nn.LayerNorm(width, config.norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(width, config.norm_eps)
        if gated:
            self.gate_attn, self.gate_ffn = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[I, K * P, width]. mask: bool [I, 1, K * P, K * P]."""
        normed = self.input_layernorm(x)
        q, k, v = (self.self_attn[f"{name}_proj"](normed) for name in "qkv")
        attended = self.self_attn["o_proj"](attend_in_heads(q, k, v, self.heads, attn_mask=mask))
        x = x + (self.gate_attn.tanh() * attended if self.gated else attended)
        inner = self.mlp["fc2"](self.activation(self.mlp["fc1"](self.post_attention_layernorm(x))))
        return x + (self.gate_ffn.tanh() * inner if self.gated else inner)

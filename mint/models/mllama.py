"""Llama 3.2 Vision: a tiled image tower, and a Llama whose cross-attention layers look at its states (arXiv 2407.21783).

An image is cut into up to four tiles. The tower reads all of them together; its last state and those of some layers on
the way, side by side, are projected to the decoder's width. Image tokens are ordinary tokens: what follows one sees the
image through the cross-attention layers. Parameter names are those of transformers' MllamaForConditionalGeneration;
``OLDER_NAMES`` are the checkpoints'.

A token before all images of its sample attends, as in transformers, to all their tiles, padding tiles included, and the
feed-forward network of these layers is off for it. Without images these layers are skipped.

Legend: B rows, T row length, R samples, M images of a sample, I = R * M, K tiles, F tiles of all images, P patches of a
tile with its class token, H the decoder's width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.clip import ACTIVATIONS
from mint.models.cross_attention import ImageTiles, Sight, attend_to_tiles, divide_rows
from mint.models.llama import MLP, CausalLM, DecoderLayer, KeyValueCache, LlamaConfig, RMSNorm, is_tied
from mint.models.recompute import run_layer

OLDER_NAMES = (  # pattern, replacement
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^(vision_model|multi_modal_projector)\.", r"model.\1."),
)
EXTRA_TOKENS = 8  # rows of the embedding after the vocabulary; the image token is the first of them
PATCH_MULTIPLE = 8  # patches of a tile are padded to a multiple of it
VISION_DEFAULTS = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "attention_heads": 16,
    "num_channels": 3,
    "image_size": 448,
    "patch_size": 14,
    "max_num_tiles": 4,
    "norm_eps": 1e-5,
    "hidden_act": "gelu",
    "intermediate_layers_indices": (3, 7, 15, 23, 30),
}
RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
TEXT_DEFAULTS = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 131_072,
    "cross_attention_layers": (3, 8, 13, 18, 23, 28, 33, 38),
}


@dataclass(frozen=True)
class TilesConfig:
    """The settings of the image tower."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_global_layers: int
    attention_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    max_num_tiles: int
    norm_eps: float
    hidden_act: str
    intermediate_layers_indices: tuple[int, ...]
    ratios: int  # supported aspect ratios; id 0 stands for no image

    @classmethod
    def from_dict(cls, raw: dict) -> TilesConfig:
        """From ``vision_config``. Raises InputError for an unsupported setting."""
        values = {name: raw.get(name, default) for name, default in VISION_DEFAULTS.items()}
        values["intermediate_layers_indices"] = tuple(values["intermediate_layers_indices"])
        config = cls(**values, ratios=len(raw.get("supported_aspect_ratios") or RATIOS))
        if config.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"mllama: hidden_act {config.hidden_act!r} is not supported; known are {', '.join(ACTIVATIONS)}"
            )
        if config.hidden_size % config.attention_heads:
            raise InputError(f"mllama: {config.attention_heads} heads do not divide a width of {config.hidden_size}")
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


@dataclass(frozen=True)
class MllamaConfig(LlamaConfig):
    """The decoder's settings, and those of what it looks at."""

    vision: TilesConfig = None
    cross_attention_layers: tuple[int, ...] = ()
    image_token: int = 0

    @classmethod
    def from_dict(cls, raw: dict) -> MllamaConfig:
        """From the content of ``config.json``. Raises InputError for a missing or unsupported setting."""
        text, vision = raw.get("text_config"), raw.get("vision_config")
        if not isinstance(text, dict) or not isinstance(vision, dict):
            raise InputError("config.json of an mllama model needs text_config and vision_config")
        own_rope = {"rope_theta": None} if "rope_parameters" in text else {}
        text = {**TEXT_DEFAULTS, **own_rope, **text}
        decoder = LlamaConfig.from_dict({**text, "model_type": "llama", "tie_word_embeddings": is_tied(raw)})
        layers = tuple(text["cross_attention_layers"])
        if not all(0 <= layer < decoder.num_hidden_layers for layer in layers):
            raise InputError(
                f"mllama: cross_attention_layers {layers} are outside a decoder of {decoder.num_hidden_layers}"
            )
        return cls(
            **{
                field.name: getattr(decoder, field.name) for field in dataclasses.fields(decoder) if field.name != "raw"
            },
            raw=dict(raw),
            vision=TilesConfig.from_dict(vision),
            cross_attention_layers=layers,
            image_token=raw.get("image_token_index", 128256),
        )


class Mllama(CausalLM):
    """``mllama(tokens, images)`` -> logits; every image has one token in ``tokens``."""

    older_names = OLDER_NAMES

    def __init__(self, config: MllamaConfig):
        super().__init__(config)
        self.model = nn.Module()
        self.model.vision_model = TiledTower(config.vision)
        self.model.language_model = _decoder(config)
        self.model.multi_modal_projector = nn.Linear(config.vision.output_size, config.hidden_size)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def decoder(self) -> nn.Module:
        return self.model.language_model

    @property
    def image_slots(self) -> tuple[int, int]:
        """(the token that stands for an image, how many of it an image has)."""
        return self.config.image_token, 1

    @property
    def tower(self) -> TiledTower:
        return self.model.vision_model

    def _encode(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """``features`` [F, P, the tower's width] and ``tile_counts`` [I], how many of the F tiles each image has.

        images: as in :meth:`look`. Without gradients, padding tiles that are alike are kept once.
        """
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        pixels, ratio_ids, real = (images[name].flatten(0, 1) for name in names)
        pixels = pixels.to(self.tower.class_embedding.dtype)
        features = self.tower(pixels, ratio_ids, real, self.gradient_checkpointing)
        counts = torch.full_like(ratio_ids, features.shape[1])
        if not torch.is_grad_enabled():
            counts = self.tower.distinct_tiles(pixels, ratio_ids, real)
        kept = torch.arange(features.shape[1], device=counts.device) < counts[:, None]
        return {"features": features[kept], "tile_counts": counts}

    def look(self, tokens: Tensor, images: dict[str, Tensor] | None, segments: Tensor | None = None) -> Sight | None:
        """What each token sees of the images.

        images: with their ``features``, as :meth:`encode_images` gives them: of ``pixel_values`` [R, M, K, 3, side, side],
        ``aspect_ratio_ids`` [R, M] and ``aspect_ratio_mask`` [R, M, K], the images of R samples, which are the rows of
        ``tokens``; id 0 is no image. Or, with ``order``, of the distinct images of a batch, and which of them each
        image token stands for. segments: [B, T], the pair of a token is its segment // 3; without them a row is one sample.
        Raises InputError if image tokens and images differ in number.
        """
        places = tokens == self.config.image_token
        if images is None:
            if bool(places.any()):
                raise InputError(f"the text has {int(places.sum())} image tokens, and there are no images")
            return None
        columns = [row.nonzero().flatten().tolist() for row in places.cpu()]
        numbers = _number_images(columns, images)
        runs = list(divide_rows(columns, numbers, _image_tiles(images), tokens.shape[1], segments))
        return Sight.of(self.model.multi_modal_projector(images["features"]), runs, len(tokens))


def _number_images(columns: list[list[int]], images: dict[str, Tensor]) -> list[list[int]]:
    """For each row the images of its image tokens, which are in ``columns``, and any others that the row has.

    Raises InputError if image tokens and images do not agree.
    """
    total, order = sum(map(len, columns)), images["order"].tolist() if "order" in images else None
    if order is not None:
        if total != len(order):
            raise InputError(f"the text has {total} image tokens, there are {len(order)} images")
        following = iter(order)
        return [[next(following) for _ in row] for row in columns]
    given = (images["aspect_ratio_ids"] > 0).tolist()
    most, longest = len(given[0]), max(map(len, columns))
    if len(given) != len(columns):
        raise InputError(f"images of {len(given)} samples for {len(columns)} rows")
    if longest > most:
        raise InputError(f"a row has {longest} image tokens, and at most {most} images")
    if given != [[number < len(row) for number in range(most)] for row in columns]:
        found = sum(map(sum, given))
        raise InputError(f"the text has {total} image tokens, the rows have {found} images in other places")
    return [list(range(row * most, (row + 1) * most)) for row in range(len(given))]


def _image_tiles(images: dict[str, Tensor]) -> list[ImageTiles]:
    """Where the tiles of each image are among the F tiles; a padding tile kept once counts as often as it occurs."""
    mask = images["aspect_ratio_mask"].flatten(0, 1)
    tiles, first = [], 0
    for count, real in zip(images["tile_counts"].tolist(), mask.sum(1).tolist(), strict=True):
        end = first + count
        repeated = ((end - 1, end),) * (mask.shape[1] - count)
        tiles.append(ImageTiles((first, first + real), ((first, end), *repeated)))
        first = end
    return tiles


def _decoder(config: MllamaConfig) -> nn.Module:
    decoder = nn.Module()
    decoder.embed_tokens = nn.Embedding(config.vocab_size + EXTRA_TOKENS, config.hidden_size)
    decoder.layers = nn.ModuleList(
        CrossAttentionLayer(config, i) if i in config.cross_attention_layers else DecoderLayer(config, i)
        for i in range(config.num_hidden_layers)
    )
    decoder.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    return decoder


class CrossAttentionLayer(nn.Module):
    """Attention from the text to the images' states, and a feed-forward network, with gates that start closed."""

    def __init__(self, config: MllamaConfig, layer: int):
        super().__init__()
        self.cross_attn = CrossAttention(config, layer)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.cross_attn_attn_gate = nn.Parameter(torch.zeros(1))
        self.mlp = MLP(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.cross_attn_mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, sight: Sight, cache: KeyValueCache | None = None) -> Tensor:
        x = x + self.cross_attn_attn_gate.tanh() * self.cross_attn(self.input_layernorm(x), sight, cache)
        return x + self.cross_attn_mlp_gate.tanh() * self.mlp(self.post_attention_layernorm(x)) * sight.has_prior_image


class CrossAttention(nn.Module):
    """Grouped-query attention without positions; queries and keys are normalised in every head."""

    def __init__(self, config: MllamaConfig, layer: int):
        super().__init__()
        self.head_dim, self.layer = config.head_dim, layer
        width, query = config.hidden_size, config.num_attention_heads * config.head_dim
        key = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, query, bias=False)
        self.k_proj, self.v_proj = nn.Linear(width, key, bias=False), nn.Linear(width, key, bias=False)
        self.o_proj = nn.Linear(query, width, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(config.head_dim, config.rms_norm_eps) for _ in range(2))

    def forward(self, x: Tensor, sight: Sight, cache: KeyValueCache | None = None) -> Tensor:
        q = self.q_norm(self._heads(self.q_proj, x))
        if sight.states is None:
            k, v = cache.images[self.layer]
        else:
            k, v = self.k_norm(self._heads(self.k_proj, sight.states)), self._heads(self.v_proj, sight.states)
            if cache is not None:
                cache.images[self.layer] = k, v
        return self.o_proj(attend_to_tiles(q, k, v, sight).flatten(2))

    def _heads(self, proj: nn.Module, x: Tensor) -> Tensor:
        return proj(x).unflatten(-1, (-1, self.head_dim))


class TiledTower(nn.Module):
    """A vision transformer over all tiles of an image, followed by a second one with gates."""

    def __init__(self, config: TilesConfig):
        super().__init__()
        self.config = config
        width, tiles = config.hidden_size, config.max_num_tiles
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, config.patch_size, config.patch_size, bias=False)
        self.gated_positional_embedding = nn.Module()
        self.gated_positional_embedding.gate = nn.Parameter(torch.zeros(1))
        self.gated_positional_embedding.embedding = nn.Parameter(torch.zeros(config.patches, width))
        self.gated_positional_embedding.tile_embedding = nn.Embedding(config.ratios + 1, tiles * config.patches * width)
        self.pre_tile_positional_embedding = _tile_embedding(config)
        self.post_tile_positional_embedding = _tile_embedding(config)
        self.layernorm_pre = nn.LayerNorm(width, 1e-5)
        self.layernorm_post = nn.LayerNorm(width, 1e-5)
        self.transformer, self.global_transformer = nn.Module(), nn.Module()
        self.transformer.layers = nn.ModuleList(TileLayer(config) for _ in range(config.num_hidden_layers))
        self.global_transformer.layers = nn.ModuleList(
            TileLayer(config, gated=True) for _ in range(config.num_global_layers)
        )

    def forward(self, pixels: Tensor, ratio_ids: Tensor, tile_mask: Tensor, recompute: bool = False) -> Tensor:
        """[I, K, P, output_size]: the last state and those on the way, side by side.

        pixels: [I, K, 3, side, side].     ratio_ids: [I], the aspect ratio of each image.     tile_mask: [I, K], 1 for tiles
        that the image has.     recompute: activation checkpointing.
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
        mask = ~(absent[:, None, :, None] & absent[:, None, None, :])  # what is absent does not see what is absent
        between = {}
        for depth, layer in enumerate(self.transformer.layers):
            between[depth] = x = run_layer(layer, x, mask, recompute=recompute)
        x = self.layernorm_post(x).unflatten(1, (tiles, -1))
        x = self._add_tile(self.post_tile_positional_embedding, x, ratio_ids).flatten(1, 2)
        for layer in self.global_transformer.layers:
            x = run_layer(layer, x, mask, recompute=recompute)
        on_the_way = torch.stack([between[depth] for depth in self.config.intermediate_layers_indices], -1).flatten(2)
        return torch.cat((x, on_the_way), -1).unflatten(1, (tiles, -1))[:, :, :patches]

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

    def _add_tile(self, part: nn.Module, x: Tensor, ratio_ids: Tensor) -> Tensor:
        """x [I, K, P, width] with the embedding of each tile's place added."""
        embedded = part.embedding(ratio_ids).unflatten(-1, (self.config.max_num_tiles, 1, -1))
        return x + embedded * part.gate.tanh()

    def _positions(self, ratio_ids: Tensor) -> Tensor:
        """[I, K, P, width]: the patch's place in its tile, and in the image."""
        part = self.gated_positional_embedding
        tiles = part.tile_embedding(ratio_ids).unflatten(-1, (self.config.max_num_tiles, self.config.patches, -1))
        return (1 - part.gate.tanh()) * part.embedding + part.gate.tanh() * tiles


def _tile_embedding(config: TilesConfig) -> nn.Module:
    module = nn.Module()
    module.embedding = nn.Embedding(config.ratios + 1, config.max_num_tiles * config.hidden_size)
    module.gate = nn.Parameter(torch.zeros(1))
    return module


class TileLayer(nn.Module):
    """Attention and a two-layer network, each after a norm, behind a gate or not, and added to what came in."""

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
        q, k, v = (
            self.self_attn[f"{name}_proj"](normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in "qkv"
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        attended = self.self_attn["o_proj"](attended)
        x = x + (self.gate_attn.tanh() * attended if self.gated else attended)
        inner = self.mlp["fc2"](self.activation(self.mlp["fc1"](self.post_attention_layernorm(x))))
        return x + (self.gate_ffn.tanh() * inner if self.gated else inner)

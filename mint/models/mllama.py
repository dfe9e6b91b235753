"""Llama 3.2 Vision: a tiled image encoder, and a Llama with cross-attention to its states (arXiv 2407.21783).

The encoder's features are projected to the decoder's width. Image tokens are ordinary tokens; the tokens after one
attend to the image in the cross-attention layers. Parameter names: transformers' MllamaForConditionalGeneration;
``OLDER_NAMES`` are the checkpoints'.

A token before all images of its sample attends, as in transformers, to all their tiles, padding tiles included, and the
feed-forward network of these layers is off for it. Without images these layers are skipped.

Legend: B rows, T row length, R samples, M images of a sample, I = R * M, F tiles of all images, P patches of a tile
with its class token, H the decoder's width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.cross_attention import CrossAttentionInputs, ImageTiles, attend_to_tiles, divide_rows
from mint.models.llama import MLP, Decoder, DecoderLayer, KeyValueCache, RMSNorm
from mint.models.tiled_tower import TiledTower, TilesConfig
from mint.models.vision_language import VisionLanguageConfig, VisionLanguageModel, nested_settings
from mint.ops.transfer import upload

OLDER_NAMES = (  # pattern, replacement
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^(vision_model|multi_modal_projector)\.", r"model.\1."),
)
EXTRA_TOKENS = 8  # rows of the embedding after the vocabulary; the image token is the first of them
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


@dataclass(frozen=True, kw_only=True)
class MllamaConfig(VisionLanguageConfig):
    """The settings of decoder and image encoder."""

    vision: TilesConfig
    cross_attention_layers: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, raw: dict) -> MllamaConfig:
        """From the content of ``config.json``. Raises InputError for a missing or unsupported setting."""
        text, vision = nested_settings(raw, "mllama")
        own_rope = {"rope_theta": None} if "rope_parameters" in text else {}
        text = {**TEXT_DEFAULTS, **own_rope, **text, "model_type": "llama"}
        layers, depth = tuple(text["cross_attention_layers"]), text["num_hidden_layers"]
        config = cls.around(
            text,
            raw,
            vision=TilesConfig.from_dict(vision),
            cross_attention_layers=layers,
            image_token=raw.get("image_token_index", 128256),
        )
        if not all(0 <= layer < depth for layer in layers):
            raise InputError(f"mllama: cross_attention_layers {layers} are outside a decoder of {depth}")
        return config


class Mllama(VisionLanguageModel[TiledTower]):
    """A tiled image encoder, and a Llama with cross-attention layers; every image has one token in ``tokens``."""

    config: MllamaConfig
    older_names = OLDER_NAMES
    tower_name = "vision_model"

    def __init__(self, config: MllamaConfig):
        super().__init__(
            config,
            vision_model=TiledTower(config.vision),
            language_model=_decoder(config),
            multi_modal_projector=nn.Linear(config.vision.output_size, config.hidden_size),
        )

    @property
    def image_slots(self) -> tuple[int, int]:
        """(the token that stands for an image, how many of it an image has)."""
        return self.config.image_token, 1

    def _encode(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """``features`` [F, P, the tower's width] and ``tile_counts`` [I], how many of the F tiles each image has.

        images: as in :meth:`vision_inputs`. Of a frozen tower, padding tiles that are alike are kept once.
        """
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        pixels, ratio_ids, real = (images[name].flatten(0, 1) for name in names)
        pixels = pixels.to(self.tower.class_embedding.dtype)
        on_device = (upload(x, pixels.device) for x in (ratio_ids, real))
        features = self.tower(pixels, *on_device, self.gradient_checkpointing)
        if torch.is_grad_enabled() or not self.vision_is_frozen:  # features that are not kept: used in this pass alone
            counts = torch.full_like(ratio_ids, features.shape[1])
            return {"features": features.flatten(0, 1), "tile_counts": counts}
        counts = self.tower.distinct_tiles(pixels, ratio_ids, real)
        kept = torch.arange(features.shape[1], device=counts.device) < counts[:, None]
        return {"features": features[kept], "tile_counts": counts}

    def embed(self, tokens: Tensor, images: dict[str, Tensor] | None = None, on_host: Tensor | None = None) -> Tensor:
        """[B, T, H]: embeddings of the tokens; the images reach the cross-attention layers only."""
        return self.decoder.embed_tokens(tokens)

    def vision_inputs(
        self, tokens: Tensor, images: dict[str, Tensor] | None, segments: Tensor | None = None
    ) -> CrossAttentionInputs | None:
        """The inputs of the cross-attention layers.

        images: the result of :meth:`encode_images` for ``pixel_values`` [R, M, K, 3, side, side], ``aspect_ratio_ids``
        [R, M] and ``aspect_ratio_mask`` [R, M, K] of R samples, the rows of ``tokens``; id 0 is no image. With
        ``order``, for the distinct images of a batch, ``order`` being the image of each image token. segments: [B, T],
        the pair of a token is its segment // 3; without them a row is one sample.
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
        return CrossAttentionInputs.of(self.projector(images["features"]), runs, len(tokens))


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


def _decoder(config: MllamaConfig) -> Decoder:
    layers = (
        CrossAttentionLayer(config, i) if i in config.cross_attention_layers else DecoderLayer(config, i)
        for i in range(config.num_hidden_layers)
    )
    return Decoder(config, layers, EXTRA_TOKENS)


class CrossAttentionLayer(nn.Module):
    """Attention from the text to the images' states, and a feed-forward network, with gates that start closed."""

    def __init__(self, config: MllamaConfig, layer: int):
        super().__init__()
        self.cross_attn = CrossAttention(config, layer)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.cross_attn_attn_gate = nn.Parameter(torch.zeros(1))
        self.mlp = MLP(config.hidden_size, config.intermediate_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.cross_attn_mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, vision: CrossAttentionInputs, cache: KeyValueCache | None = None) -> Tensor:
        x = x + self.cross_attn_attn_gate.tanh() * self.cross_attn(self.input_layernorm(x), vision, cache)
        return x + self.cross_attn_mlp_gate.tanh() * self.mlp(self.post_attention_layernorm(x)) * vision.has_prior_image


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

    def forward(self, x: Tensor, vision: CrossAttentionInputs, cache: KeyValueCache | None = None) -> Tensor:
        q = self.q_norm(self._heads(self.q_proj, x))
        if vision.states is None:  # the images' keys and values are cached
            assert cache is not None
            k, v = cache.images[self.layer]
        else:
            k, v = self.k_norm(self._heads(self.k_proj, vision.states)), self._heads(self.v_proj, vision.states)
            if cache is not None:
                cache.images[self.layer] = k, v
        return self.o_proj(attend_to_tiles(q, k, v, vision).flatten(2))

    def _heads(self, proj: nn.Module, x: Tensor) -> Tensor:
        return proj(x).unflatten(-1, (-1, self.head_dim))

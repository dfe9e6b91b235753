"""ViLT, the fusion classifier: one transformer over a text and an image, and a head over the classes.

As in arXiv 2102.03334: words and image patches are embedded linearly, told apart by a modality embedding, and read by
one pre-norm transformer; the first word's state is pooled and classified. Parameter names are those of
``dandelin/vilt-b32-*`` checkpoints with the head of transformers' ViltForQuestionAnswering.

Legend: B rows, L words, P patches, H width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.clip import attend_in_heads
from mint.models.names import Pretrained
from mint.models.settings import check_choice, read_settings

HEADS = ("classifier.", "mlm_score.", "rank_output.")  # of the published checkpoints; here the first is used
SUPPORTED = {"hidden_act": "gelu", "qkv_bias": True, "num_images": -1, "max_image_length": -1}


@dataclass(frozen=True)
class ViltConfig:
    """The settings of ``config.json`` that shape the network; ``raw`` is the file as it was read."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    type_vocab_size: int = 2
    modality_type_vocab_size: int = 2
    max_position_embeddings: int = 40
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    num_channels: int = 3
    initializer_range: float = 0.02
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    raw: dict = field(repr=False, compare=False, default_factory=dict)

    @classmethod
    def from_dict(cls, raw: dict) -> ViltConfig:
        """From the content of ``config.json``. Raises InputError for a missing or unsupported setting."""
        for name, only in SUPPORTED.items():
            check_choice("vilt", name, raw.get(name, only), (only,))
        names = raw.get("id2label")
        own: dict[str, dict | tuple] = {"raw": raw}
        try:
            if names:
                own["labels"] = tuple(names[str(i)] for i in range(len(names)))
        except KeyError as error:
            raise InputError(f"id2label of a vilt model lacks {error}") from None
        config = read_settings(cls, raw, "vilt", **own)
        if config.hidden_size % config.num_attention_heads or config.image_size < config.patch_size:
            raise InputError("vilt: the heads must divide the width, and a patch must fit into the image")
        return config


class Vilt(Pretrained):
    """``vilt(tokens, images)`` -> class logits; the classes' names are ``config.labels``."""

    config: ViltConfig

    def __init__(self, config: ViltConfig):
        super().__init__()
        self.config = config
        self.vilt = _Encoder(config)
        width = config.hidden_size
        self.classifier = nn.Sequential(
            nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, len(config.labels))
        )

    def forward(self, tokens: Tensor, images: dict[str, Tensor], attention_mask: Tensor | None = None) -> Tensor:
        """[B, C] logits.

        tokens: [B, L] int64, L at most ``max_position_embeddings``. attention_mask: [B, L], 1 for words, 0 for padding.
        images: ``pixel_values`` [B, 3, height, width] and, where images of a batch differ in size, ``pixel_mask``
        [B, height, width], 1 for the image (at the top left) and 0 for padding.
        """
        return self.classifier(self.vilt(tokens, images["pixel_values"], images.get("pixel_mask"), attention_mask))


class _Encoder(nn.Module):
    def __init__(self, config: ViltConfig):
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Layers(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.pooler = Dense(config.hidden_size, config.hidden_size)

    def forward(self, tokens: Tensor, pixels: Tensor, pixel_mask: Tensor | None, text_mask: Tensor | None) -> Tensor:
        hidden, seen = self.embeddings(tokens, pixels, pixel_mask, text_mask)
        mask = None if seen is None else seen[:, None, None, :]  # [B, 1, 1, L + 1 + P], over keys
        for layer in self.encoder.layer[:-1]:
            hidden = layer(hidden, mask, hidden)
        first = self.encoder.layer[-1](hidden[:, :1], mask, hidden)  # of the last layer nothing else is used
        return torch.tanh(self.pooler.dense(self.layernorm(first[:, 0])))


class _Embeddings(nn.Module):
    def __init__(self, config: ViltConfig):
        super().__init__()
        width = config.hidden_size
        self.text_embeddings = TextEmbeddings(config)
        self.side = config.image_size // config.patch_size  # patches along an edge of the grid that was trained on
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.side**2 + 1, width))
        patches = nn.Conv2d(config.num_channels, width, config.patch_size, config.patch_size)
        self.patch_embeddings = nn.ModuleDict({"projection": patches})
        self.token_type_embeddings = nn.Embedding(config.modality_type_vocab_size, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, tokens: Tensor, pixels: Tensor, pixel_mask: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """([B, L + 1 + P, H] words, image token, patches; [B, L + 1 + P] which are real, None if all are)."""
        modality = self.token_type_embeddings.weight
        text = self.text_embeddings(tokens)
        patches = self.patch_embeddings["projection"](pixels)  # [B, H, rows, columns]
        rows, columns = patches.shape[-2:]
        real = None
        if pixel_mask is not None:
            real = F.interpolate(pixel_mask[:, None].float(), size=(rows, columns))[:, 0].bool()
        image = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches.flatten(2).mT], 1)
        image = self.dropout(image + self._positions(rows, columns, real))
        hidden = torch.cat([text + modality[0], image + modality[1]], 1)
        if real is None and text_mask is None:
            return hidden, None
        text_seen = torch.ones_like(tokens, dtype=torch.bool) if text_mask is None else text_mask.bool()
        image_seen = text_seen.new_ones(len(pixels), 1 + rows * columns)
        if real is not None:
            image_seen[:, 1:] = real.flatten(1)
        return hidden, torch.cat([text_seen, image_seen], 1)

    def _positions(self, rows: int, columns: int, real: Tensor | None) -> Tensor:
        """[B or 1, 1 + rows * columns, H]: the trained grid stretched over each image's own patches, 0 beyond them."""
        first, rest = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        grid = rest.mT.unflatten(-1, (self.side, self.side))  # [1, H, side, side]

        def stretch(height: int, width: int) -> Tensor:
            if (height, width) != (self.side, self.side):
                return F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=True)
            return grid

        if real is None:
            stretched = stretch(rows, columns)
        else:
            sizes = torch.stack([real[:, :, 0].sum(1), real[:, 0].sum(1)], 1).tolist()
            own = {
                size: F.pad(stretch(*size), (0, columns - size[1], 0, rows - size[0]))
                for size in set(map(tuple, sizes))
            }
            stretched = torch.cat([own[tuple(size)] for size in sizes])
        return torch.cat([first.expand(len(stretched), -1, -1), stretched.flatten(2).mT], 1)


class TextSettings(Protocol):
    """The settings of embedded words: ViLT's and BERT's."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def type_vocab_size(self) -> int: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def hidden_dropout_prob(self) -> float: ...


class TextEmbeddings(nn.Module):
    """[B, L] tokens -> [B, L, H]: the sum of word, place and type 0, normed."""

    def __init__(self, config: TextSettings):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: tokens.shape[1]]
        return self.dropout(
            self.LayerNorm(self.word_embeddings(tokens) + self.token_type_embeddings.weight[0] + positions)
        )


class _Layer(nn.Module):
    """Attention and a two-layer network, each after a norm and added to what came in."""

    def __init__(self, config: ViltConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.drop_weights = config.attention_probs_dropout_prob
        self.attention = _Attention(width)
        self.intermediate = Dense(width, inner)
        self.output = Dense(inner, width)
        self.layernorm_before = nn.LayerNorm(width, config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, mask: Tensor | None, context: Tensor) -> Tensor:
        """[B, T, H]: ``hidden`` after the layer.

        context: [B, S, H], keys and values: all states, of which ``hidden`` are the first T. mask: [B, 1, 1, S] bool,
        True for states to attend to, or None for all.
        """
        normed = self.layernorm_before(context)
        query, key, value = (self.attention.attention[name] for name in ("query", "key", "value"))
        attended = attend_in_heads(
            query(normed[:, : hidden.shape[1]]),
            key(normed),
            value(normed),
            self.heads,
            attn_mask=mask,
            dropout_p=self.drop_weights if self.training else 0.0,
        )
        hidden = hidden + self.dropout(self.attention.output.dense(attended))
        inner = F.gelu(self.intermediate.dense(self.layernorm_after(hidden)))
        return hidden + self.dropout(self.output.dense(inner))


class Dense(nn.Module):
    """A linear layer called ``dense`` in a module of its own, as the checkpoint has it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)


class _Attention(nn.Module):
    """The projections of attention, under the checkpoint's names."""

    def __init__(self, width: int):
        super().__init__()
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = Dense(width, width)


class _Layers(nn.Module):
    def __init__(self, config: ViltConfig):
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))


def small_config(
    labels: list[str],
    vocab_size: int,
    image_size: int = 112,
    patch_size: int = 16,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    text_length: int = 64,
    dropout: float = 0.1,
) -> dict:
    """``config.json`` of a ViLT that trains from scratch on two cores."""
    return {
        "model_type": "vilt",
        "architectures": ["ViltForQuestionAnswering"],
        "vocab_size": vocab_size,
        "max_position_embeddings": text_length,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": 0.0,
        "image_size": image_size,
        "patch_size": patch_size,
        "initializer_range": 0.06,
        **label_settings(labels),
    }


def label_settings(labels: list[str]) -> dict:
    """The settings of ``config.json`` that hold the classes' names."""
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }

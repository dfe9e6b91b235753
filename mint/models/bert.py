"""BERT, the encoder of sentences: a post-norm transformer over words.

As in arXiv 1810.04805. Parameter names are those of transformers' BertModel. Its pooler, which sentence encoders do not
use, is loaded and not run.

Legend: B rows, L words, H width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from mint.models.clip import attend_in_heads
from mint.models.names import Pretrained
from mint.models.settings import check_choice, check_heads, read_settings
from mint.models.vilt import Dense, TextEmbeddings

SUPPORTED = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


@dataclass(frozen=True)
class BertConfig:
    """The settings of ``config.json`` that shape the network; ``raw`` is the file as it was read."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    raw: dict = field(repr=False, compare=False, default_factory=dict)

    @classmethod
    def from_dict(cls, raw: dict) -> BertConfig:
        """From the content of ``config.json``. Raises InputError for a missing or unsupported setting."""
        for name, only in SUPPORTED.items():
            check_choice("bert", name, raw.get(name, only), (only,))
        config = read_settings(cls, raw, "bert", raw=raw)
        check_heads("bert", config.hidden_size, config.num_attention_heads)
        return config


class Bert(Pretrained):
    """``bert(tokens)`` -> the last layer's states."""

    config: BertConfig
    older_names = (
        (r"^bert\.", ""),
        (r"LayerNorm\.gamma\.", "LayerNorm.weight."),
        (r"LayerNorm\.beta\.", "LayerNorm.bias."),
    )

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.encoder = _Layers(config)
        self.pooler = Dense(config.hidden_size, config.hidden_size)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[B, L, H] states.

        tokens: [B, L] int64, L at most ``max_position_embeddings``. attention_mask: [B, L], 1 for words, 0 for padding.
        """
        hidden = self.embeddings(tokens)
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]  # over keys
        for layer in self.encoder.layer:
            hidden = layer(hidden, mask)
        return hidden


class _Layers(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))


class _Layer(nn.Module):
    """Attention and a two-layer network, each added to what came in, with a norm after it."""

    def __init__(self, config: BertConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.attention = _Attention(config)
        self.intermediate = Dense(width, inner)
        self.output = _Output(inner, width, config)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (self.attention.self[name](hidden) for name in ("query", "key", "value"))
        attended = attend_in_heads(query, key, value, self.heads, attn_mask=mask)
        hidden = self.attention.output(attended, hidden)
        return self.output(F.gelu(self.intermediate.dense(hidden)), hidden)


class _Attention(nn.Module):
    """The projections of attention, under the checkpoint's names."""

    def __init__(self, config: BertConfig):
        super().__init__()
        width = config.hidden_size
        self.self = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = _Output(width, width, config)


class _Output(Dense):
    """A linear layer whose output is added to ``residual``, and the norm of the sum."""

    def __init__(self, inputs: int, outputs: int, config: BertConfig):
        super().__init__(inputs, outputs)
        self.LayerNorm = nn.LayerNorm(outputs, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dropout(self.dense(inner)))


FAMILY = (Bert, BertConfig, "BertModel")

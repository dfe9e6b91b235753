"""Retrieval by meaning: passages and notes embedded by a BERT, as in MINT's comparison with retrieval.

An encoder is a directory of sentence-transformers: a BERT, its tokenizer, ``1_Pooling/config.json`` (the first state or
the mean of all; without the file the mean) and ``sentence_bert_config.json`` (the longest text).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mint.data.retrieval import Index, Passage
from mint.data.text_encoder import TextEncoder
from mint.errors import InputError
from mint.files import read_json
from mint.models import load_model
from mint.models.bert import Bert
from mint.progress import Progress

POOLING, LENGTH = "1_Pooling/config.json", "sentence_bert_config.json"
BATCH = 32  # texts encoded at a time


class SentenceEncoder:
    """Texts as vectors of unit length. limit: most ids of a text, with the two at its ends."""

    def __init__(self, name: str | Path, device: torch.device | str = "cpu"):
        """name: a directory or hub id. Raises InputError if it holds no BERT, or pools in another way."""
        model = load_model(name, device=device)
        if not isinstance(model, Bert):
            raise InputError(f"{name} is no sentence encoder (model_type bert)")
        folder = model.source_dir
        settings = read_json(folder / POOLING) if (folder / POOLING).is_file() else {"pooling_mode_mean_tokens": True}
        ways = [key.removeprefix("pooling_mode_") for key, on in settings.items() if on is True and "_mode_" in key]
        if ways not in (["cls_token"], ["mean_tokens"]):
            raise InputError(f"{folder / POOLING}: pooling by {', '.join(ways) or 'nothing'} is not supported")
        self.mean = ways == ["mean_tokens"]
        limits = read_json(folder / LENGTH) if (folder / LENGTH).is_file() else {}
        longest = model.config.max_position_embeddings
        self.model, self.limit = model, min(limits.get("max_seq_length") or longest, longest)
        self.text = TextEncoder(folder, self.limit)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], progress: bool = False) -> Tensor:
        """[texts, H] float32 on the CPU. Texts longer than ``limit`` are cut: see :meth:`pieces`."""
        rows = [self.text.encode(text)[0] for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        vectors = torch.zeros(len(rows), self.model.config.hidden_size)
        device = self.model.embeddings.word_embeddings.weight.device
        bar = Progress(total=len(rows), desc="embedding", unit="passage", show=progress)
        for start in range(0, len(order), BATCH):
            members = order[start : start + BATCH]
            tokens, mask = self.text.batch([rows[i] for i in members])
            states = self.model(tokens.to(device), None if mask is None else mask.to(device)).cpu()
            vectors[members] = F.normalize(self._pool(states, mask), dim=-1)
            bar.update(len(members))
        bar.close()
        return vectors

    def _pool(self, states: Tensor, mask: Tensor | None) -> Tensor:
        if not self.mean:
            return states[:, 0]
        if mask is None:
            return states.mean(1)
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def pieces(self, text: str, size: int, overlap: int = 0) -> list[str]:
        """The text in pieces of at most ``size`` ids that :meth:`encode` does not cut."""
        return self.text.pieces(text, min(size, self.limit - 2), overlap)


class DenseRetriever(Index):
    """Passages by the cosine of their vectors to a note's; of a note in several pieces, the best piece counts."""

    def __init__(
        self, passages: Sequence[Passage], encoder: SentenceEncoder, size: int, overlap: int, least: float = -1.0
    ):
        """size, overlap: of the pieces that passages are cut into, in ids; least: the cosine of a passage at least.

        Raises InputError if there is no passage, or pieces that would not advance.
        """
        if not 0 <= overlap < size:
            raise InputError(f"pieces of {size} tokens cannot overlap by {overlap}")
        self.encoder, self.size, self.least = encoder, size, least
        self.passages = [Passage(id, piece) for id, text in passages for piece in encoder.pieces(text, size, overlap)]
        if not self.passages:
            raise InputError("there are no passages to retrieve from")
        self.vectors = encoder.encode([passage.text for passage in self.passages], progress=True)

    def scores(self, note: str) -> np.ndarray:
        pieces = self.encoder.pieces(note, self.size) or [note]
        return (self.vectors @ self.encoder.encode(pieces).T).amax(1).numpy()

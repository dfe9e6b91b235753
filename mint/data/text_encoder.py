"""Tokenizers of encoder models: ViLT's and CLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mint.data.encoders import PlainEncoders, encode_text, tokenizer_errors
from mint.errors import InputError
from mint.files import parse_json

# begin, end and padding of a text, in BERT's form and in CLIP's
MARKS = (("[CLS]", "[SEP]", "[PAD]"), ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>"))


class TextEncoder:
    """Token ids of texts between begin and end tokens; text never becomes a control token."""

    def __init__(self, folder: str | Path, limit: int):
        """limit: most ids of a text. Raises InputError if ``tokenizer.json`` is missing, damaged or lacks a token."""
        self._path = path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{folder} has no tokenizer.json")
        with tokenizer_errors(path):
            content = path.read_text(encoding="utf-8")
            tokenizer = Tokenizer.from_str(content)
            self._plain = PlainEncoders(parse_json(content)).start
        marks = [[i for token in tokens if (i := tokenizer.token_to_id(token)) is not None] for tokens in MARKS]
        complete = [ids for ids in marks if len(ids) == len(MARKS[0])]
        if not complete:
            raise InputError(f"{path} lacks {', or '.join(', '.join(tokens) for tokens in MARKS)}")
        self.first, self.last, self.padding = complete[0]
        self.limit = limit

    def encode(self, text: str) -> tuple[list[int], bool]:
        """(ids, whether the text was cut)."""
        ids = encode_text(self._plain, text, self._path).ids
        return [self.first, *ids[: self.limit - 2], self.last], len(ids) > self.limit - 2

    def pieces(self, text: str, size: int, overlap: int = 0) -> list[str]:
        """The text in pieces of whole words, of at most ``size`` ids each; a longer word is a piece of its own.

        A piece begins with the last words of the one before, of at most ``overlap`` ids together.
        """
        encoded = encode_text(self._plain, text, self._path)
        words: list[tuple[int, int, int]] = []  # ids, first character, the one after the last
        for _, ids in groupby(range(len(encoded.ids)), key=encoded.word_ids.__getitem__):
            places = list(ids)
            words.append((len(places), encoded.offsets[places[0]][0], encoded.offsets[places[-1]][1]))
        found, piece = [], list[tuple[int, int, int]]()
        for word in words:
            if piece and sum(ids for ids, *_ in piece) + word[0] > size:
                found.append(text[piece[0][1] : piece[-1][2]])
                room = min(overlap, size - word[0])
                while piece and sum(ids for ids, *_ in piece) > room:
                    del piece[0]
            piece.append(word)
        return found + ([text[piece[0][1] : piece[-1][2]]] if piece else [])

    def batch(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor | None]:
        """([B, L] tokens, [B, L] mask; None where no row is padded)."""
        length = max(map(len, rows))
        tokens = torch.full((len(rows), length), self.padding)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
        mask = torch.arange(length) < torch.tensor([len(ids) for ids in rows])[:, None]
        return tokens, None if mask.all() else mask

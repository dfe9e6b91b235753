"""Spans: the phrases of an answer that carry the reward, written in the text as ``<mask>...</mask>``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mint.errors import InputError

TAG = re.compile(r"</?mask>", re.IGNORECASE)
Span = tuple[int, int]  # first character, and the one after the last


def parse_spans(text: str) -> tuple[str, list[Span]]:
    """The text without its tags, and the marked spans as character ranges of that text.

    Spaces at the edges of a span do not belong to it: a token that shares only a space with it would be the next word.
    Empty spans are dropped. Raises InputError if the tags are nested or not balanced.
    """
    plain: list[str] = []
    spans: list[Span] = []
    length, last, opened = 0, 0, None
    for tag in TAG.finditer(text):
        piece = text[last : tag.start()]
        plain.append(piece)
        length, last = length + len(piece), tag.end()
        closing = tag.group().startswith("</")
        if closing == (opened is None):
            problem = "</mask> without <mask>" if closing else "<mask> inside <mask>"
            raise InputError(f"{problem} at character {tag.start()}")
        if closing:
            start = opened + len(piece) - len(piece.lstrip())
            stop = opened + len(piece.rstrip())
            spans += [(start, stop)] if stop > start else []
        opened = None if closing else length
    if opened is not None:
        raise InputError("<mask> without </mask>")
    return "".join(plain) + text[last:], spans


def span_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For every token, given its character range, whether it shares a character with a span."""
    return [any(start < b and a < end for a, b in spans) for start, end in offsets]

"""Spans: the phrases of an answer that carry the reward, written in the text as ``<mask>...</mask>``, or found by
comparing the two answers word by word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from mint.errors import InputError

TAG = re.compile(r"</?mask>", re.IGNORECASE)
WORD = re.compile(r"\w+(?:[.,'’/-]\w+)*|[^\w\s]")  # a word with what joins its parts ("1.5", "X-ray"), or a mark
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


def mark_changes(first: str, second: str) -> tuple[str, str]:
    """Both texts with ``<mask>`` around the phrases in which they differ, whatever tags they had.

    Words are compared as they are written, punctuation counts as a word. Changes with a single word between them are one
    phrase, on both sides. A side where something is only missing has no span there. Texts of the same words are
    returned without any.
    """
    texts = [TAG.sub("", text) for text in (first, second)]
    places = [[match.span() for match in WORD.finditer(text)] for text in texts]
    words = [[text[a:b] for a, b in spans] for text, spans in zip(texts, places, strict=True)]
    blocks = [
        [a0, a1, b0, b1]
        for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes()
        if kind != "equal"
    ]
    phrases: list[list[int]] = []
    for block in blocks:
        if phrases and block[0] - phrases[-1][1] == 1 and words[0][phrases[-1][1]][0].isalnum():
            phrases[-1][1], phrases[-1][3] = block[1], block[3]
        else:
            phrases.append(block)
    ranges = [[(p[0], p[1]) for p in phrases], [(p[2], p[3]) for p in phrases]]
    return tuple(_tagged(*side) for side in zip(texts, places, ranges, strict=True))


def _tagged(text: str, places: Sequence[Span], ranges: Sequence[Span]) -> str:
    """The text with tags around these ranges of words."""
    for start, stop in reversed([span for span in ranges if span[1] > span[0]]):
        a, b = places[start][0], places[stop - 1][1]
        text = f"{text[:a]}<mask>{text[a:b]}</mask>{text[b:]}"
    return text

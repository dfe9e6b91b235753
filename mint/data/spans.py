"""Answers and their spans: the phrases that carry the reward.

Preference files mark spans in the text, as ``<mask>...</mask>``. ``Answer.parse`` reads the tags once; everything after
it works with character ranges. ``mark_changes`` finds spans by comparing two answers word by word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mint.errors import InputError

TAG = re.compile(r"</?mask>", re.IGNORECASE)
WORD = re.compile(
    r"\w+(?:[.,'’/-]\w+)*|[^\w\s]"
)  # a word with inner punctuation ("1.5", "X-ray"), or a punctuation mark
Span = tuple[int, int]  # first character, and the one after the last


@dataclass(frozen=True)
class Answer:
    """text: without tags. spans: character ranges of ``text``, in order, not empty, without overlap."""

    text: str
    spans: tuple[Span, ...] = ()

    @classmethod
    def parse(cls, tagged: str) -> Answer:
        """The answer that a preference file holds.

        Spaces at the edges of a span do not belong to it: a token that shares only a space with it would be the next
        word. Empty spans are dropped. Raises InputError if the tags are nested or not balanced.
        """
        plain, spans = "", []
        last, opened = 0, -1
        for tag in TAG.finditer(tagged):
            piece = tagged[last : tag.start()]
            plain, last = plain + piece, tag.end()
            closing = tag.group().startswith("</")
            if closing == (opened < 0):
                problem = "</mask> without <mask>" if closing else "<mask> inside <mask>"
                raise InputError(f"{problem} at character {tag.start()}")
            if closing and piece.strip():
                spans.append((opened + len(piece) - len(piece.lstrip()), opened + len(piece.rstrip())))
            opened = -1 if closing else len(plain)
        if opened >= 0:
            raise InputError("<mask> without </mask>")
        return cls(plain + tagged[last:], tuple(spans))

    @property
    def tagged(self) -> str:
        """The text with ``<mask>`` tags around its spans, for writing to a preference file."""
        text = self.text
        for start, stop in reversed(self.spans):
            text = f"{text[:start]}<mask>{text[start:stop]}</mask>{text[stop:]}"
        return text


def span_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For every token, given its character range, whether it shares a character with a span."""
    return [any(start < b and a < end for a, b in spans) for start, end in offsets]


def mark_changes(first: str, second: str) -> tuple[Answer, Answer]:
    """Both texts, without any tags, with spans over the phrases in which they differ.

    Words are compared as they are written; punctuation counts as a word. Changes with a single word between them are
    one phrase, on both sides. A side that only lacks something has no span there. Texts of the same words have none.
    """
    texts = [TAG.sub("", text) for text in (first, second)]
    places = [[match.span() for match in WORD.finditer(text)] for text in texts]
    words = [[text[a:b] for a, b in spans] for text, spans in zip(texts, places, strict=True)]
    blocks = [
        [a0, a1, b0, b1]
        for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes()
        if kind != "equal"
    ]
    phrases: list[list[int]] = []
    for block in blocks:
        if phrases and block[0] - phrases[-1][1] == 1 and words[0][phrases[-1][1]][0].isalnum():
            phrases[-1][1], phrases[-1][3] = block[1], block[3]
        else:
            phrases.append(block)
    ranges = [[(p[0], p[1]) for p in phrases], [(p[2], p[3]) for p in phrases]]
    spans = [
        tuple((words[start][0], words[stop - 1][1]) for start, stop in some if stop > start)
        for words, some in zip(places, ranges, strict=True)
    ]
    return Answer(texts[0], spans[0]), Answer(texts[1], spans[1])

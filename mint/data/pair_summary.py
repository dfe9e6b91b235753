"""Statistics of encoded preference pairs, and one pair as the text that the model reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from mint.data.batch import EncodedPair
from mint.data.chat import ChatTokenizer
from mint.data.encode import EncodeReport

PARTS = ("prompt", "chosen", "rejected")
COLOURS = {"prompt": "36", "chosen": "32", "rejected": "31"}  # ANSI codes: cyan, green, red


def summarize_pairs(pairs: Sequence[EncodedPair], report: EncodeReport | None = None) -> str:
    """Lengths, length gap, duplicates and spans of at least one pair, a few lines of text.

    Lengths are in tokens; those of answers include the token that ends them. Percentiles are interpolated linearly. A
    duplicate has the prompt and images of an earlier pair, and for a duplicate pair its answers too. report: the
    outcome of encoding; its counts of kept, dropped and truncated records become the first line.
    """
    roles = PARTS if any(pair.rejected for pair in pairs) else PARTS[:2]
    lines = [] if report is None else [str(report)]
    lines.append(f"{'tokens':<10}{'median':>8}{'95 %':>8}{'max':>8}")
    for role in roles:
        lengths = [len(getattr(pair, role)) for pair in pairs]
        median, high = np.percentile(lengths, (50, 95))
        lines.append(f"{role:<10}{median:>8.0f}{high:>8.0f}{max(lengths):>8}")
    compared = [pair for pair in pairs if pair.rejected]
    if compared:
        gaps = np.array([len(pair.chosen) - len(pair.rejected) for pair in compared])
        lines.append(
            f"length gap, chosen - rejected: mean {gaps.mean():+.1f} tokens; "
            f"chosen longer in {100 * (gaps > 0).mean():.0f} %, "
            f"rejected longer in {100 * (gaps < 0).mean():.0f} % of pairs"
        )
    prompts = [(tuple(pair.prompt), pair.images) for pair in pairs]
    answers = [(tuple(pair.chosen), tuple(pair.rejected)) for pair in pairs]
    repeated = len(pairs) - len(set(zip(prompts, answers, strict=True)))
    identical = sum(pair.chosen == pair.rejected for pair in compared)
    lines.append(
        f"duplicates: {len(pairs) - len(set(prompts))} prompts, {repeated} pairs; {identical} pairs with equal answers"
    )
    marked = [pair for pair in pairs if pair.chosen_span is not None]
    if marked:
        inside = sum(sum(pair.chosen_span or ()) + sum(pair.rejected_span or ()) for pair in marked)
        total = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
        lines.append(f"spans: {100 * inside / total:.0f} % of answer tokens, in {len(marked)} of {len(pairs)} pairs")
    return "\n".join(lines)


def render_pair(pair: EncodedPair, tokenizer: ChatTokenizer, colours: bool = False) -> str:
    """The pair under a heading for each role, special tokens included; ``[[ ]]`` encloses spans.

    A run of image tokens is written as one, with its length. colours: for a terminal; each role has its colour, and
    spans are in reverse video.
    """
    lines = [f"pair {pair.id}"]
    lines += [f"images: {', '.join(pair.images)}"] if pair.images else []
    lines += [f"corrupted images: {', '.join(pair.twin.images)}"] if pair.twin else []
    for role in PARTS if pair.rejected else PARTS[:2]:
        ids, span = getattr(pair, role), getattr(pair, f"{role}_span", None)
        marks = [token == pair.image_token for token in ids] if role == "prompt" else span or [False] * len(ids)
        text = ""
        for marked, count, piece in _pieces(ids, marks, [] if role == "prompt" else pair.prompt, tokenizer):
            if not marked:
                text += _printable(piece) if colours else piece
            elif role == "prompt":
                text += f"{tokenizer.decode([pair.image_token], skip_special=False)} x {count}"
            else:
                text += f"\x1b[7m{_printable(piece)}\x1b[27m" if colours else f"[[{piece}]]"
        spans = f", {sum(span)} in spans" if span is not None else ""
        block = f"--- {role}: {len(ids)} tokens{spans} ---\n{text}"
        lines.append(f"\x1b[{COLOURS[role]}m{block}\x1b[0m" if colours else block)
    return "\n".join(lines)


def _printable(text: str) -> str:
    """The text without characters that control a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _pieces(
    ids: Sequence[int], marks: Sequence[bool], before: Sequence[int], tokenizer: ChatTokenizer
) -> Iterator[tuple[bool, int, str]]:
    """(mark, number of tokens, text) of each run of tokens with one mark, where ``before`` precedes ``ids``.

    A run is decoded with all tokens before it: alone, a decoder may drop its first space.
    """
    done = len(before)
    whole = [*before, *ids]
    for mark, run in groupby(marks):
        start, done = done, done + len(list(run))
        known = tokenizer.decode(whole[:start], skip_special=False)
        yield mark, done - start, tokenizer.decode(whole[:done], skip_special=False)[len(known) :]

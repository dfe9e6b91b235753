"""Hostile content made from good content, by a random number generator alone: the same seed, the same bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable

RAW = "raw-json-"  # before text that goes into a JSON file as it is
NAMES = ("../outside.png", "/etc/hostname", "link.png", "loop.png", "folder", "x" * 5000, "a\0b", "..", ".", "~", "a/b")
NUMBERS = (0, -1, 1, 2, 3, 0.5, -0.5, 1e308, 2**31, 2**53 + 1, 2**63, 2**70, 10**6, 10**9, 10**40, 10**299)
TEXTS = (
    "",
    " ",
    "\n",
    "NaN",
    "1e999",
    "\ud800",
    "\x1b[2J",
    "<mask>",
    "</mask><mask>",
    "x" * 70_000,
    "é" * 300,
    "HP:0000001",
)
WORDS = ("true", "null", "-", "{{", "{%", "<|eot_id|>", "\ue000", "\u202e", "=", "'", '"', "\t", ";", "|")
LITERALS = tuple(
    RAW + text
    for text in (
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "1" * 5000,
        "[" * 100_000,
        '{"a":' * 5_000,
        "01",
        "'a'",
    )
)
OTHERS = (None, True, False, [], {}, [[]], [None], {"": None}, [True], ["a"], [1, 2], {"a": {"a": {}}}, [[1], [2]])
BYTES = (
    b"\0",
    b"\xff" * 8,
    b"\n",
    b"\r",
    b"\xef\xbb\xbf",
    b'"',
    b"[" * 3000,
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"9" * 40,
)


def hostile(rng: random.Random):
    """A value that does not belong there."""
    (kind,) = rng.choices((NAMES, NUMBERS, TEXTS, WORDS, OTHERS, LITERALS), (4, 6, 4, 4, 6, 1))
    return copy.deepcopy(rng.choice(kind))


def damage_bytes(rng: random.Random, content: bytes, most: int = 4) -> bytes:
    """The content with up to ``most`` places overwritten, cut out, doubled, or filled with other bytes."""
    for _ in range(rng.randint(1, most)):
        place, length = rng.randint(0, len(content)), min(len(content), int(2 ** rng.uniform(0, 9)))
        kind = rng.randrange(6)
        before, after = content[:place], content[place:]
        if kind == 0:
            content = before + bytes(rng.randrange(256) for _ in range(min(length, 16))) + after[length:]
        elif kind == 1:
            content = before + after[length:]
        elif kind == 2:
            content = before + after[:length] * rng.choice((2, 3, 50)) + after[length:]
        elif kind == 3:
            content = before + rng.choice(BYTES) + after
        elif kind == 4:
            content = before + rng.choice(BYTES) + after[length:]
        elif rng.random() < 0.3:
            content = before
    return content


def damage_value(rng: random.Random, value, most: int = 3):
    """A copy of a JSON value in which up to ``most`` places hold something else, are missing, or are there twice."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, most)):
        owner, key = rng.choice(_places(value) or [(None, None)])
        if owner is None or rng.random() < 0.03:
            return hostile(rng)
        kind = rng.randrange(8)
        if kind == 0:
            del owner[key]
        elif kind == 1 and isinstance(owner, list):
            owner.insert(key, copy.deepcopy(owner[key]))
        elif kind == 2 and isinstance(owner, dict):
            owner[str(rng.choice((*TEXTS[:6], *NAMES[:2], key)))] = hostile(rng)
        elif kind == 3 and isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
            owner[key] = rng.choice(
                (-owner[key], owner[key] * 1000, owner[key] + 0.5, str(owner[key]), owner[key] * 2**40)
            )
        else:
            owner[key] = hostile(rng)
    return value


def _places(value) -> list[tuple]:
    found: list[tuple] = []
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict | list):
            keys = one if isinstance(one, dict) else range(len(one))
            found += [(one, key) for key in keys]
            stack += one.values() if isinstance(one, dict) else one
    return found


def dump(value, rng: random.Random | None = None) -> bytes:
    """JSON, in which texts that begin with RAW stand as they are; with ``rng``, sometimes with damaged bytes."""
    text = json.dumps(value)
    while (start := text.find(f'"{RAW}')) >= 0:
        inner, end = json.JSONDecoder().raw_decode(text, start)
        text = text[:start] + inner.removeprefix(RAW) + text[end:]
    content = text.encode()
    return damage_bytes(rng, content, 2) if rng is not None and rng.random() < 0.2 else content


def damage_json(rng: random.Random, value) -> bytes:
    """A JSON file like that of ``value``, damaged in its values or its bytes."""
    return dump(damage_value(rng, value), rng) if rng.random() < 0.85 else damage_bytes(rng, dump(value))


def damage_rows(rng: random.Random, rows: list[dict], separator: bytes = b"\n") -> bytes:
    """A JSON Lines file in which one or several rows are damaged."""
    return separator.join(damage_json(rng, row) if rng.random() < 0.4 else dump(row) for row in rows) + separator


def damage_table(rng: random.Random, rows: list[list[str]], between: str = "\t") -> bytes:
    """A table whose cells, or bytes, are damaged."""
    rows = copy.deepcopy(rows)
    for _ in range(rng.randint(0, 3)):
        row = rng.choice(rows)
        value = hostile(rng)
        text = value.removeprefix(RAW) if isinstance(value, str) else json.dumps(value)
        if row:
            row[rng.randrange(len(row))] = text
    content = "\n".join(between.join(row) for row in rows).encode("utf-8", "surrogatepass") + b"\n"
    return damage_bytes(rng, content, 2) if rng.random() < 0.5 else content


def damage_text(rng: random.Random, text: str, pieces: tuple[str, ...] = WORDS, most: int = 4) -> str:
    """A text with parts cut out, doubled, moved, or replaced by ``pieces``."""
    changes: tuple[Callable[[str, str, int], str], ...] = (
        lambda before, after, n: before + after[n:],
        lambda before, after, n: before + after[:n] * 2 + after[n:],
        lambda before, after, n: before + rng.choice(pieces) + after,
        lambda before, after, n: before + rng.choice(pieces) + after[n:],
    )
    for _ in range(rng.randint(1, most)):
        place = rng.randint(0, len(text))
        text = rng.choice(changes)(text[:place], text[place:], rng.randint(1, 12))
    return text

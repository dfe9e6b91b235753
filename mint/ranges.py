"""Ranges of numbers from files and command lines, checked before anything is computed or allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from mint.errors import InputError

SHOWN = 60  # characters of a value in a message


class Range(NamedTuple):
    """From ``least`` to ``most``, both included. whole: whole numbers alone."""

    least: float
    most: float
    whole: bool = True


SEED = Range(0, 2**63 - 1)
SHARE = Range(0, 1, whole=False)


def check_number(name: str, value: object, allowed: Range) -> None:
    """Raises InputError, with ``name``, for a value that is no number, not finite, or out of range.

    True and False are no numbers.
    """
    if isinstance(value, bool) or not isinstance(value, int if allowed.whole else int | float):
        kind = "a whole number" if allowed.whole else "a number"
        raise InputError(f"{name} must be {kind}, not {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, not {value}")
    if value < allowed.least:
        raise InputError(f"{name} must be at least {allowed.least:g}, not {shown(value)}")
    if value > allowed.most:
        raise InputError(f"{name} must be at most {allowed.most:g}, not {shown(value)}")


def check_numbers(where: object, values: Mapping, ranges: Mapping[str, Range]) -> None:
    """:func:`check_number` of every entry that ``ranges`` has a range for; null counts as absent.

    where: the file, for messages.
    """
    for name, allowed in ranges.items():
        if values.get(name) is not None:
            check_number(f"{where}: {name}", values[name], allowed)


def shown(value: object) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

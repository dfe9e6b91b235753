"""Packing by length: several pairs to a row, and the pairs of a step to batches."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """First-fit packing, longest first: rows of indices whose lengths sum to at most ``row_length``."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, room in enumerate(free) if lengths[index] <= room), None)
        if row is None:
            row = len(rows)
            rows.append([])
            free.append(row_length)
        rows[row].append(index)
        free[row] -= lengths[index]
    return rows


def divide(lengths: Sequence[int], most: int) -> list[list[int]]:
    """As few groups as hold all indices, of lengths that sum to at most ``most`` and are about equal between groups.

    The longest goes first, each to the group with the smallest sum. One that is longer than ``most`` is a group alone.
    """
    alone = [[index] for index, length in enumerate(lengths) if length > most]
    longest_first = sorted((i for i, n in enumerate(lengths) if n <= most), key=lambda i: (-lengths[i], i))
    groups: list[tuple[int, int, list[int]]] = []  # sum, number, members
    for count in range(math.ceil(sum(lengths[i] for i in longest_first) / most), len(longest_first) + 1):
        groups = [(0, number, []) for number in range(count)]
        for index in longest_first:
            total, number, members = groups[0]
            heapq.heapreplace(groups, (total + lengths[index], number, [*members, index]))
        if max(groups, default=(0,))[0] <= most:
            break
    return [sorted(members) for _, _, members in sorted(groups, key=lambda group: group[1])] + alone

"""Shared by the image encoders of Qwen-VL: patch coordinates, 2-D rotary positions, attention groups.

Legend: I images, S patches of all images, G groups of at most L patches, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mint.errors import InputError
from mint.models.rotary import cos_sin
from mint.ops.elementwise import rotate
from mint.ops.transfer import upload

THETA = 10_000.0  # of the rotary positions


class Patches(NamedTuple):
    """Coordinates of the patches of all images, [S] each; an image's patches are ordered square by square."""

    row: Tensor
    column: Tensor
    frame: Tensor  # number of the frame, over all images
    rows: Tensor  # of the patch's image
    columns: Tensor

    def to(self, device: torch.device) -> Patches:
        return Patches(*upload(torch.stack(self), device))


def place_patches(grids: Tensor, merge: int, pixels: Tensor) -> Patches:
    """On the CPU, which reads ``grids`` [I, 3]. merge: side of the squares.

    Raises InputError if grids and ``pixels`` differ in patches.
    """
    if int(grids.prod(1).sum()) != len(pixels):
        raise InputError(f"{len(pixels)} patches, where the images' grids hold {int(grids.prod(1).sum())}")
    parts, frames = [], 0
    for count, height, width in grids.tolist():
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        squares = (height // merge, merge, width // merge, merge)
        row, column = (place.reshape(squares).transpose(1, 2).flatten() for place in (row, column))
        for frame in range(frames, frames + count):
            parts.append(torch.stack([row, column, *(torch.full_like(row, value) for value in (frame, height, width))]))
        frames += count
    return Patches(*torch.cat(parts, 1))


def patch_rope(places: Patches, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [S, D]: the first half of the rotary pairs rotates by the row, the second by the column."""
    quarter = head_dim // 4
    frequency = 1.0 / THETA ** (torch.arange(quarter, device=places.row.device).float() / quarter)
    angles = torch.cat((places.row[:, None] * frequency, places.column[:, None] * frequency), -1)
    return cos_sin(angles, dtype)


class Groups(NamedTuple):
    """Patches that attend to each other. places: [G, L] of the patches, padded; cells: [S], where each is in G * L.

    mask: [G, 1, 1, L], False at padding; None where there is none.
    """

    places: Tensor
    cells: Tensor
    mask: Tensor | None


def group_patches(number: Tensor, device: torch.device) -> Groups:
    """The patches of equal number [S] together. number: on the CPU; the groups are on ``device``."""
    order = number.argsort(stable=True)
    _, counts = number.unique(return_counts=True)
    real = torch.arange(int(counts.max())) < counts[:, None]
    places = torch.zeros_like(real, dtype=torch.int64).masked_scatter(real, order)
    cells = torch.empty_like(order).index_copy(0, order, real.flatten().nonzero().squeeze(1))
    mask = None if real.all() else upload(real[:, None, None, :], device)
    return Groups(upload(places, device), upload(cells, device), mask)


def attend_in_groups(qkv: Tensor, heads: int, rope: tuple[Tensor, Tensor], groups: Groups) -> Tensor:
    """[S, width]: attention of patches to those of their group. qkv: [S, 3 * width], all heads concatenated."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)  # [heads, S, D] each
    q, k = rotate(q, *rope), rotate(k, *rope)
    q, k, v = (part[:, groups.places].transpose(0, 1) for part in (q, k, v))  # [G, heads, L, D]
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=groups.mask).transpose(1, 2)  # [G, L, heads, D]
    return attended.flatten(2).flatten(0, 1)[groups.cells]

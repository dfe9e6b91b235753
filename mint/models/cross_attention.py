"""Cross-attention from packed text to image tiles: every token attends to the tiles of its own images.

The cells of a batch, row by row, are divided into runs of tokens that attend to the same tiles. Each run is one call of
``scaled_dot_product_attention`` without a mask, so its cost is proportional to the tiles of its own images. The query
heads that share a key/value head are placed one after the other along the query axis: neither a mask nor grouped heads
keep a CUDA device from its fused kernels, and no key is copied.

Legend: B rows, T row length, F tiles of all images, P patches of a tile, H width, N heads, K key/value heads, D head
size, S patches that a run attends to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mint.ops.pair_attention import pair_layout
from mint.ops.transfer import upload
from mint.ops.uncompiled import uncompiled

Range = tuple[int, int]  # tiles [start, stop) of the F tiles


class ImageTiles(NamedTuple):
    """The tiles of one image. real: without padding tiles.     all: with them, a tile as often as it counts."""

    real: Range
    all: tuple[Range, ...]


class Run(NamedTuple):
    """``length`` tokens in a row that attend to the same ``tiles``; without tiles the result of attention is zero.

    prior_image: they come after an image of their own.
    """

    length: int
    tiles: tuple[Range, ...] = ()
    prior_image: bool = False


@dataclass
class CrossAttentionInputs:
    """Inputs of the cross-attention layers in one forward pass.

    states: [F, P, H], None where the cache holds their keys and values.     runs: of all B * T cells, none across rows.
    has_prior_image: [B, T, 1], 1 where a token comes after an image of its own, else 0.
    """

    states: Tensor | None
    runs: tuple[Run, ...]
    has_prior_image: Tensor

    @classmethod
    def of(cls, states: Tensor, runs: Sequence[Run], rows: int) -> CrossAttentionInputs:
        """From states and runs, for a batch of ``rows``."""
        lengths = torch.tensor([run.length for run in runs])
        prior = torch.tensor([run.prior_image for run in runs]).repeat_interleave(lengths)
        return cls(states, tuple(runs), upload(prior.view(rows, -1, 1), states.device).to(states.dtype))

    def last(self) -> CrossAttentionInputs:
        """Of the tokens that follow: they attend as the last one of their row does."""
        runs, cells, length = [], 0, self.has_prior_image.shape[1]
        for run in self.runs:
            cells += run.length
            if cells % length == 0:
                runs.append(run._replace(length=1))
        return CrossAttentionInputs(None, tuple(runs), self.has_prior_image[:, -1:])

    def of_rows(self, rows: Tensor) -> CrossAttentionInputs:
        """Of some rows, [N] indices, where each row is one run (:meth:`last`)."""
        return CrossAttentionInputs(self.states, tuple(self.runs[row] for row in rows), self.has_prior_image[rows])


def divide_rows(
    columns: Sequence[Sequence[int]],
    numbers: Sequence[Sequence[int]],
    tiles: Sequence[ImageTiles],
    length: int,
    segments: Tensor | None = None,
) -> Iterator[Run]:
    """The runs of a batch of rows of ``length`` tokens.

    columns: for each row, where its image tokens are.     numbers: for each row, the images that these stand for, as
    indices into ``tiles``, and after them any others that the row has.     segments: [B, T], as in
    ``mint.models.attention``; without them a row is one sample.

    A token attends to the real tiles of the last image before it; images whose tokens are adjacent count as one. A
    token before all images of its sample attends to all their tiles.
    """
    samples: list[list[Range]] = [[] if segments is not None else [(0, length)] for _ in columns]
    if segments is not None:
        for row, start, _, _, end in pair_layout(segments.cpu()).bounds.tolist():
            samples[row].append((start, end))
    for row, bounds in enumerate(samples):
        cell = 0
        for start, end in bounds:
            if start > cell:
                yield Run(start - cell)
            own = [(c, n) for c, n in zip(columns[row], numbers[row], strict=False) if start <= c < end]
            others = numbers[row][len(columns[row]) :] if segments is None else ()
            yield from _divide_sample(start, end, own, others, tiles)
            cell = end
        if cell < length:
            yield Run(length - cell)


def _divide_sample(
    start: int, end: int, own: Sequence[tuple[int, int]], others: Iterable[int], tiles: Sequence[ImageTiles]
) -> Iterator[Run]:
    """The runs of cells [start, end). own: (column, image) of each image token; others: images without a token."""
    stops = [column for column, _ in own[1:]] + [end]
    first = own[0][0] if own else end
    if first > start:
        images = [image for _, image in own] + list(others)
        yield Run(first - start, tuple(part for image in images for part in tiles[image].all))
    adjacent: list[Range] = []
    for index, (column, image) in enumerate(own):
        if index and own[index - 1][0] != column - 1:
            adjacent = []
        adjacent.append(tiles[image].real)
        yield Run(stops[index] - column, tuple(adjacent), True)


@uncompiled  # the runs differ from batch to batch; compiled code that read them would be compiled each time
def attend_to_tiles(q: Tensor, k: Tensor, v: Tensor, vision: CrossAttentionInputs) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the tiles of each run: [B, T, N, D], zero where a run has none.

    q: [B, T, N, D]; query head n reads key/value head n // (N / K).     k, v: [F, P, K, D].
    """
    parts, lengths = [], [run.length for run in vision.runs]
    for run, own in zip(vision.runs, q.flatten(0, 1).split(lengths), strict=True):
        if not run.tiles:
            parts.append(torch.zeros_like(own))
            continue
        keys, values = (_select(x, run.tiles) for x in (k, v))
        queries = own.unflatten(1, (k.shape[2], -1)).permute(1, 2, 0, 3).flatten(1, 2)  # [K, N / K * length, D]
        part = F.scaled_dot_product_attention(queries[None], keys[None], values[None])[0]
        parts.append(part.unflatten(1, (-1, run.length)).permute(2, 0, 1, 3).flatten(1, 2))
    return torch.cat(parts).view(q.shape)


def _select(x: Tensor, tiles: Sequence[Range]) -> Tensor:
    """[K, S, D]: of x [F, P, K, D] the patches of some tiles; a view of x where they are one range."""
    parts = [x[start:stop] for start, stop in tiles]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(0, 1).transpose(0, 1)

"""The packed batch: rows of whole pairs, each laid out as ``prompt | chosen | rejected``.

The prompt is stored and computed once for both answers. Both answers continue at position len(prompt), and the
attention rule (``mint.models.attention``) keeps the rejected answer from seeing the chosen one. Padding is known by
its segment, -1, never by a token id.

Legend: B rows, T row length, P pairs, N predicted positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PROMPT, CHOSEN, REJECTED = 0, 1, 2  # roles; a segment is 3 * pair + role
SIDES = {  # argument of a loss -> (role of its tokens, whether under the corrupted image)
    "prompt": (PROMPT, False),
    "chosen": (CHOSEN, False),
    "rejected": (REJECTED, False),
    "corrupted_chosen": (CHOSEN, True),
    "corrupted_rejected": (REJECTED, True),
}
ROW_STEP = 8  # a single row's length is a multiple of it: matrix products of odd sizes are 10 % slower


@dataclass(frozen=True)
class EncodedPair:
    """One record as token ids. ``rejected`` is empty where there is none; spans are None where nothing is marked.

    ``images``: files, in the order of their tokens in the prompt; ``image_token``: the id of an image token.
    ``twin``: the same answers after the same prompt with corrupted images, for losses that need them.
    ``fields``: the record's numbers that the loss needs, by name.
    """

    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    chosen_span: list[bool] | None = None
    rejected_span: list[bool] | None = None
    images: tuple[str, ...] = ()
    image_token: int = -1
    twin: EncodedPair | None = None
    fields: dict[str, float] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def lengths(self) -> list[int]:
        """The lengths of the pair and of its twin."""
        return [len(self)] if self.twin is None else [len(self), len(self.twin)]


@dataclass(frozen=True)
class Batch:
    """P packed pairs, with index tensors over the N predicted positions.

    tokens, positions, segments: [B, T] int64 (see the module).        predict: [N] index into B * T.
    targets: [N] token ids.   pair: [N] in [0, P).   side: [N] role of the target.   column: [N] place in its answer.
    span: [N] bool, or None where no answer of the batch marks one.    ids: the records' ids.
    twins: [W], the pair that each corrupted twin belongs to; twin w is numbered P + w in ``pair`` and ``segments``.
    image_files: in the order of their image tokens in ``tokens``.     images: the tensors of these files
    (``mint.data.image_features``), None until they are read, and for text.
    fields: the records' numbers that the loss needs, each [P] float32, by name.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    predict: Tensor
    targets: Tensor
    pair: Tensor
    side: Tensor
    column: Tensor
    span: Tensor | None
    ids: tuple[str, ...]
    twins: Tensor
    image_files: tuple[str, ...] = ()
    images: dict[str, Tensor] | None = None
    fields: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def pairs(self) -> int:
        return len(self.ids)

    @property
    def clean(self) -> Tensor:
        """[N] bool: not a corrupted twin's."""
        return self.pair < self.pairs

    @property
    def token_total(self) -> int:
        """Tokens that are not padding."""
        return int((self.segments >= 0).sum())

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        for name in ("images", "fields"):
            if (tensors := getattr(self, name)) is not None:
                moved[name] = {key: value.to(device, non_blocking=True) for key, value in tensors.items()}
        return dataclasses.replace(self, **moved)


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


def collate(
    pairs: Sequence[EncodedPair], row_length: int | None = None, rows: int | None = None, prompt_targets: bool = False
) -> Batch:
    """Packs pairs, and after them their corrupted twins, into a batch.

    row_length: T, default the longest pair, or with ``rows=1`` all pairs, rounded up to ROW_STEP. rows: B, default
    as many as are needed; fixed values of both give every batch the same shape. prompt_targets: predict the prompt's
    own tokens too. Raises ValueError if the pairs do not fit.
    """
    ids, count = tuple(pair.id for pair in pairs), len(pairs)
    twins = [index for index, pair in enumerate(pairs) if pair.twin is not None]
    pairs = [*pairs, *(pair.twin for pair in pairs if pair.twin is not None)]
    lengths = [len(pair) for pair in pairs]
    if row_length is None:
        row_length = math.ceil(sum(lengths) / ROW_STEP) * ROW_STEP if rows == 1 else max(lengths)
    if max(lengths) > row_length:
        raise ValueError(f"a pair of {max(lengths)} tokens does not fit a row of {row_length}")
    packed = pack(lengths, row_length)
    if rows is not None and len(packed) > rows:
        raise ValueError(f"{len(pairs)} pairs need {len(packed)} rows, more than {rows}")
    shape = (rows or len(packed), row_length)
    tokens, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    segments = torch.full(shape, -1, dtype=torch.int64)
    targets: list[tuple[int, ...]] = []  # predict, target, pair, side, column, span
    for row, members in enumerate(packed):
        start = 0
        for index in members:
            pair, end = pairs[index], start + lengths[index]
            prompt = len(pair.prompt)
            ends = (prompt, prompt + len(pair.chosen), len(pair))
            tokens[row, start:end] = torch.tensor(pair.prompt + pair.chosen + pair.rejected)
            positions[row, start:end] = torch.tensor([*range(ends[1]), *range(prompt, prompt + len(pair.rejected))])
            for role, (a, b) in enumerate(((0, ends[0]), (ends[0], ends[1]), (ends[1], ends[2]))):
                segments[row, start + a : start + b] = 3 * index + role
            targets += _targets(pair, index, row * row_length + start, prompt_targets and index < count)
            start = end
    predict, target, pair_of, side, column, span = torch.tensor(targets, dtype=torch.int64).T.contiguous().unbind()
    marked = any(pair.chosen_span is not None for pair in pairs)
    return Batch(
        tokens,
        positions,
        segments,
        predict,
        target,
        pair_of,
        side,
        column,
        span.bool() if marked else None,
        ids,
        torch.tensor(twins, dtype=torch.int64),
        tuple(file for members in packed for index in members for file in pairs[index].images),
        fields={name: torch.tensor([pair.fields[name] for pair in pairs[:count]]) for name in pairs[0].fields},
    )


def _targets(pair: EncodedPair, index: int, start: int, prompt_targets: bool) -> Iterator[tuple[int, ...]]:
    """(predict, target, pair, side, column, span) of every predicted token; ``start`` is the pair's first cell."""
    last = start + len(pair.prompt) - 1  # the last prompt position predicts the first token of BOTH answers
    if prompt_targets:
        for column, token in enumerate(pair.prompt[1:]):
            if token != pair.image_token:
                yield start + column, token, index, PROMPT, column, 0
    for role, answer, marks, cell in (
        (CHOSEN, pair.chosen, pair.chosen_span, last + 1),
        (REJECTED, pair.rejected, pair.rejected_span, last + 1 + len(pair.chosen)),
    ):
        for column, token in enumerate(answer):
            predict = last if column == 0 else cell + column - 1
            yield predict, token, index, role, column, int(marks is None or marks[column])


def tokens_per_pair(pairs: Sequence[EncodedPair], prompt_targets: bool = False) -> dict[str, float]:
    """The mean number of predicted tokens per pair of each side (the keys of ``SIDES``), over the pairs of an update.

    These are the tokens that ``collate`` predicts; the prompt is included if ``prompt_targets``.
    """
    twins = [pair.twin for pair in pairs if pair.twin is not None]
    totals = {
        "chosen": sum(len(pair.chosen) for pair in pairs),
        "rejected": sum(len(pair.rejected) for pair in pairs),
        "corrupted_chosen": sum(len(twin.chosen) for twin in twins),
        "corrupted_rejected": sum(len(twin.rejected) for twin in twins),
    }
    if prompt_targets:
        totals["prompt"] = sum(token != pair.image_token for pair in pairs for token in pair.prompt[1:])
    return {side: total / len(pairs) for side, total in totals.items()}


def make_batches(
    pairs: Sequence[EncodedPair],
    batch_size: int,
    row_length: int | None = None,
    rows: int | None = None,
    prompt_targets: bool = False,
) -> Iterator[Batch]:
    """Every pair once, in the given order, ``batch_size`` pairs at a time; the arguments are those of ``collate``."""
    for start in range(0, len(pairs), batch_size):
        yield collate(pairs[start : start + batch_size], row_length, rows, prompt_targets)

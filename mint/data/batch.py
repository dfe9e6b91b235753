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
from typing import NamedTuple

import torch
from torch import Tensor

from mint.data.encode import EncodedPair
from mint.data.packing import divide, pack
from mint.ops.transfer import upload

PROMPT, CHOSEN, REJECTED = 0, 1, 2  # roles; a segment is 3 * pair + role
SIDES = {  # argument of a loss -> (role of its tokens, whether under the corrupted image)
    "prompt": (PROMPT, False),
    "chosen": (CHOSEN, False),
    "rejected": (REJECTED, False),
    "corrupted_chosen": (CHOSEN, True),
    "corrupted_rejected": (REJECTED, True),
}
INDICES = ("tokens", "positions", "segments", "predict", "targets", "pair", "side", "column", "twins")
ROW_STEP = 8  # a single row's length is a multiple of it: matrix products of odd sizes are 10 % slower


class Side(NamedTuple):
    """The n predicted tokens of one side, as a table [P, L] of answers; all that places them there.

    at: [n] in [0, N).     cells: [n] in [0, P * L).     length: L, of the longest answer, at least 1.
    """

    at: Tensor
    cells: Tensor
    length: int


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
    sides: by role and whether under the corrupted images (``SIDES``). token_total: tokens that are not padding.
    kl_positions: [N] bool, always on the CPU: the positions of the chosen answer, "all" or those in a "span".
    host: the batch on the CPU, of which this one is a copy on a device; None on the CPU.
    records: the P pairs. reference: values of the reference where they are known (``mint.objective.reference_values``).
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
    sides: dict[tuple[int, bool], Side] = dataclasses.field(default_factory=dict)
    kl_positions: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    token_total: int = 0
    host: Batch | None = None
    records: tuple[EncodedPair, ...] = ()
    reference: dict[str, Tensor] | None = None

    @property
    def pairs(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``. Integers are transferred together, and nothing waits for the device.

        The integers of ``images`` stay on the CPU, as sizes of images are read there.
        """
        device = torch.device(device)
        if device == self.tokens.device:
            return self
        own = [getattr(self, name) for name in INDICES] + [x for side in self.sides.values() for x in side[:2]]
        flat = upload(torch.cat([x.flatten() for x in own]), device).split([x.numel() for x in own])
        moved = iter(part.view(x.shape) for part, x in zip(flat, own, strict=True))
        return dataclasses.replace(
            self,
            **{name: next(moved) for name in INDICES},
            sides={key: Side(next(moved), next(moved), side.length) for key, side in self.sides.items()},
            span=None if self.span is None else upload(self.span, device),
            images=None if self.images is None else _upload_floats(self.images, device),
            fields=_upload_floats(self.fields, device),
            reference=self.reference and {name: upload(x, device) for name, x in self.reference.items()},
            host=self.host or self,
        )


def _upload_floats(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: upload(x, device) if x.is_floating_point() else x for name, x in tensors.items()}


def collate(
    pairs: Sequence[EncodedPair],
    row_length: int | None = None,
    rows: int | None = None,
    prompt_targets: bool = False,
    multiple: int = ROW_STEP,
) -> Batch:
    """Packs pairs, and after them their corrupted twins, into a batch.

    row_length: T, default the longest pair, or with ``rows=1`` all pairs, rounded up to a ``multiple``. rows: B,
    default as many as are needed; fixed values of both give every batch the same shape. prompt_targets: predict the
    prompt's own tokens too. Raises ValueError if the pairs do not fit.
    """
    ids, count, records = tuple(pair.id for pair in pairs), len(pairs), tuple(pairs)
    twins = [index for index, pair in enumerate(pairs) if pair.twin is not None]
    pairs = [*pairs, *(pair.twin for pair in pairs if pair.twin is not None)]
    lengths = [len(pair) for pair in pairs]
    if row_length is None:
        row_length = math.ceil(sum(lengths) / multiple) * multiple if rows == 1 else max(lengths)
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
    clean = pair_of < count
    of_answer = torch.tensor([*range(count), *twins])[pair_of]  # the pair, or the pair of the twin
    chosen = clean & (side == CHOSEN)
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
        sides={key: _side((side == key[0]) & (clean != key[1]), of_answer, column) for key in SIDES.values()},
        kl_positions={"all": chosen, "span": chosen & span.bool() if marked else chosen},
        token_total=sum(lengths),
        records=records,
    )


def _side(own: Tensor, pair: Tensor, column: Tensor) -> Side:
    """own: [N] bool, the side's positions.     pair, column: [N], where each is in the table of answers."""
    at = own.nonzero().squeeze(1)
    length = int(column[at].max()) + 1 if len(at) else 1
    return Side(at, pair[at] * length + column[at], length)


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
    pairs: Sequence[EncodedPair], batch_size: int, *, prompt_targets: bool = False, budget: int = 0, **shape: int
) -> Iterator[Batch]:
    """Every pair once, in batches of ``batch_size`` pairs in the given order; ``shape``: arguments of ``collate``.

    budget: if given, the pairs are divided by their tokens instead, into as few batches of at most so many tokens as
    possible; a pair that with its twin has more is one alone.
    """
    for group in _groups(pairs, batch_size, budget):
        yield collate([pairs[i] for i in group], prompt_targets=prompt_targets, **shape)


def batch_count(pairs: Sequence[EncodedPair], batch_size: int, budget: int = 0, **shape: int) -> int:
    """The number of batches that ``make_batches`` makes."""
    return len(_groups(pairs, batch_size, budget))


def _groups(pairs: Sequence[EncodedPair], batch_size: int, budget: int) -> Sequence[Sequence[int]]:
    """The indices of the pairs of each batch."""
    if budget:
        return divide([sum(pair.lengths) for pair in pairs], budget)
    everything = range(len(pairs))
    return [everything[start : start + batch_size] for start in everything[::batch_size]]

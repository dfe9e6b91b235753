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

from mint.data.chat import ChatTokenizer
from mint.data.preferences import Preference
from mint.data.record_images import ImageSlots, encode_with_images
from mint.data.spans import Answer, span_tokens
from mint.errors import InputError
from mint.progress import Progress

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


@dataclass
class EncodeReport:
    """The outcome of encoding: how many records were kept, and the ids of the others.

    image_tokens: of the records with images that are too long, (image tokens, all tokens) of the prompt with the longer
    answer.     resizable: the number of image tokens depends on the size of an image.
    """

    kept: int = 0
    twins: int | None = None
    dropped: list[str] = dataclasses.field(default_factory=list)
    image_tokens: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    resizable: bool = False
    truncated: list[str] = dataclasses.field(default_factory=list)
    spanless: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.kept} pairs" + ("" if self.twins is None else f", {self.twins} with a corrupted image")]
        for ids, outcome in (
            (self.dropped, "dropped as longer than --max-length"),
            (self.truncated, "with their prompt cut to --max-length"),
            (self.spanless, "dropped as neither answer marks a span"),
        ):
            if ids:
                more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
                lines.append(f"{len(ids)} {outcome}: {', '.join(map(self._describe, ids[:10]))}{more}")
        return "; ".join(lines) + self.advice

    @property
    def advice(self) -> str:
        """How to make records shorter, where their image tokens can be made fewer."""
        return "; a lower --max-pixels gives fewer image tokens" if self.resizable and self.image_tokens else ""

    def _describe(self, name: str) -> str:
        images, total = self.image_tokens.get(name, (0, 0))
        return f"{name} ({images} of {total} tokens are image tokens)" if images else name


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
    records: tuple[EncodedPair, ...] = ()
    reference: dict[str, Tensor] | None = None

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
        for name in ("images", "fields", "reference"):
            if (tensors := getattr(self, name)) is not None:
                moved[name] = {key: value.to(device, non_blocking=True) for key, value in tensors.items()}
        return dataclasses.replace(self, **moved)


def encode_pairs(
    preferences: Sequence[Preference],
    tokenizer: ChatTokenizer,
    max_length: int,
    overlength: str = "drop",
    drop_spanless: bool = False,
    slots: ImageSlots | None = None,
    corrupted: Sequence[str] = (),
    fields: Sequence[str] = (),
) -> tuple[list[EncodedPair], EncodeReport]:
    """Token ids of every record, the prompt encoded once and the answers appended as ids.

    max_length: limit of prompt + the longer answer, in tokens. overlength: for longer records: ``drop`` the
    record, raise an ``error`` naming all of them, or ``truncate-prompt``: keep the first token and the end of the
    prompt. Answers and images are never cut: such a record is dropped. drop_spanless: leave out records without spans,
    if any record has one. slots: the image tokens, for models that read images. corrupted: the answers ("chosen",
    "rejected") that the loss needs under the corrupted images too. fields: names of numbers that the loss needs; every
    record has them (``read_preferences`` checks that). Raises InputError if nothing is left, and for images without
    ``slots``.
    """
    pairs: list[EncodedPair] = []
    too_long: list[str] = []
    report = EncodeReport(resizable=slots is not None and slots.count is None)
    marked = drop_spanless and any(answer.spans for p in preferences for answer in (p.chosen, p.rejected) if answer)
    if slots is None and any(preference.images for preference in preferences):
        raise InputError(
            "the records have images, which this model does not read: leave the field out, or take another model"
        )
    for preference in Progress(preferences, desc="tokens", unit="record", leave=False):
        pair = _encode(preference, tokenizer, slots, corrupted)
        longest = max(len(pair.chosen), len(pair.rejected))
        room = max_length - longest
        longer = max((pair.prompt, pair.twin.prompt if pair.twin else []), key=len)
        prompt = len(longer)
        if marked and pair.chosen_span is None:
            report.spanless.append(pair.id)
            continue
        if prompt > room:
            if pair.images:
                report.image_tokens[pair.id] = longer.count(pair.image_token), prompt + longest
            if overlength == "error":
                of_images = f", {longer.count(pair.image_token)} of them image tokens" if pair.images else ""
                too_long.append(f"line {preference.line} ({pair.id}): {prompt + longest} tokens{of_images}")
                continue
            if overlength == "drop" or room < 2 or pair.images:
                report.dropped.append(pair.id)
                continue
            pair = dataclasses.replace(pair, prompt=pair.prompt[:1] + pair.prompt[len(pair.prompt) - room + 1 :])
            report.truncated.append(pair.id)
        pairs.append(dataclasses.replace(pair, fields={name: float(preference.extra[name]) for name in fields}))
    if too_long:
        shown = "\n  ".join(too_long[:50]) + (f"\n  and {len(too_long) - 50} more" if len(too_long) > 50 else "")
        raise InputError(f"{len(too_long)} pairs are longer than --max-length {max_length}{report.advice}:\n  {shown}")
    report.kept = len(pairs)
    report.twins = sum(pair.twin is not None for pair in pairs) if corrupted else None
    if not pairs:
        raise InputError(f"no pair is left to train on ({report}); raise --max-length, now {max_length}")
    return pairs, report


def _encode(
    preference: Preference, tokenizer: ChatTokenizer, slots: ImageSlots | None, corrupted: Sequence[str]
) -> EncodedPair:
    chat = bool(preference.images) or not isinstance(preference.prompt, str)
    answers = (_encode_answer(answer, tokenizer, chat) for answer in (preference.chosen, preference.rejected))
    (chosen, chosen_marks), (rejected, rejected_marks) = answers
    marked = any(chosen_marks) or any(rejected_marks)
    spans = (chosen_marks if marked else None, rejected_marks if marked else None)
    try:
        if slots is None or not preference.images:
            return EncodedPair(preference.id, tokenizer.encode_prompt(preference.prompt), chosen, rejected, *spans)
        prompts = [
            encode_with_images(tokenizer, preference.prompt, files, slots) if files else []
            for files in (preference.images, preference.corrupted_images if corrupted else ())
        ]
    except InputError as error:
        raise InputError(f"line {preference.line} ({preference.id}): {error}") from None
    pair = EncodedPair(preference.id, prompts[0], chosen, rejected, *spans, preference.images, slots.token)
    if not prompts[1]:
        return pair
    twin = dataclasses.replace(pair, prompt=prompts[1], images=preference.corrupted_images)
    if "chosen" not in corrupted:
        twin = dataclasses.replace(twin, chosen=[], chosen_span=[] if marked else None)
    if "rejected" not in corrupted:
        twin = dataclasses.replace(twin, rejected=[], rejected_span=[] if marked else None)
    return dataclasses.replace(pair, twin=twin)


def _encode_answer(answer: Answer | None, tokenizer: ChatTokenizer, chat: bool) -> tuple[list[int], list[bool]]:
    """(ids, whether each is in a span); the token that ends an answer never is."""
    if answer is None:
        return [], []
    ids, offsets = tokenizer.answer_offsets(answer.text, chat=chat)
    return [*ids, tokenizer.answer_end(chat)], [*span_tokens(offsets, answer.spans), False]


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
    ids, count, records = tuple(pair.id for pair in pairs), len(pairs), tuple(pairs)
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
        records=records,
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

"""Preference records to token ids: the prompt is encoded once, each answer continues it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from mint.data.chat import ChatTokenizer
from mint.data.preferences import Preference
from mint.data.record_images import ImageSlots, encode_with_images
from mint.data.spans import Answer, span_tokens
from mint.errors import InputError
from mint.progress import Progress


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
    encoder = PairEncoder(tokenizer, max_length, overlength, slots, corrupted, fields)
    report = encoder.report
    marked = drop_spanless and any(preference.has_spans for preference in preferences)
    pairs: list[EncodedPair] = []
    for preference in Progress(preferences, desc="tokens", unit="record", leave=False):
        if marked and not preference.has_spans:
            report.spanless.append(preference.id)
        elif (pair := encoder(preference)) is not None:
            pairs.append(pair)
    if too_long := encoder.too_long:
        shown = "\n  ".join(too_long[:50]) + (f"\n  and {len(too_long) - 50} more" if len(too_long) > 50 else "")
        raise InputError(f"{len(too_long)} pairs are longer than --max-length {max_length}{report.advice}:\n  {shown}")
    report.kept = len(pairs)
    report.twins = sum(pair.twin is not None for pair in pairs) if corrupted else None
    if not pairs:
        raise InputError(f"no pair is left to train on ({report}); raise --max-length, now {max_length}")
    return pairs, report


class PairEncoder:
    """Encodes records one by one; the arguments are those of :func:`encode_pairs`.

    report: the outcome so far. too_long: the lines that ``overlength="error"`` complains of.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        max_length: int,
        overlength: str = "drop",
        slots: ImageSlots | None = None,
        corrupted: Sequence[str] = (),
        fields: Sequence[str] = (),
    ):
        self.tokenizer, self.max_length, self.overlength = tokenizer, max_length, overlength
        self.slots, self.corrupted, self.fields = slots, corrupted, fields
        self.report = EncodeReport(resizable=slots is not None and slots.count is None)
        self.too_long: list[str] = []

    def __call__(self, preference: Preference) -> EncodedPair | None:
        """The record as token ids; None if it is too long. Raises InputError for images without ``slots``."""
        if self.slots is None and preference.images:
            raise InputError(
                "the records have images, which this model does not read: leave the field out, or take another model"
            )
        pair = _encode(preference, self.tokenizer, self.slots, self.corrupted)
        pair = dataclasses.replace(pair, fields={name: float(preference.extra[name]) for name in self.fields})
        longest = max(len(pair.chosen), len(pair.rejected))
        longer = max((pair.prompt, pair.twin.prompt if pair.twin else []), key=len)
        room, total = self.max_length - longest, len(longer) + longest
        if len(longer) <= room:
            return pair
        if pair.images:
            self.report.image_tokens[pair.id] = longer.count(pair.image_token), total
        if self.overlength == "error":
            of_images = f", {longer.count(pair.image_token)} of them image tokens" if pair.images else ""
            self.too_long.append(f"line {preference.line} ({pair.id}): {total} tokens{of_images}")
            return None
        if self.overlength == "drop" or room < 2 or pair.images:
            self.report.dropped.append(pair.id)
            return None
        self.report.truncated.append(pair.id)
        return dataclasses.replace(pair, prompt=pair.prompt[:1] + pair.prompt[len(pair.prompt) - room + 1 :])


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
    if not answer.spans:
        ids = tokenizer.encode_answer(answer.text, chat=chat)
        return ids, [False] * len(ids)
    ids, offsets = tokenizer.answer_offsets(answer.text, chat=chat)
    return [*ids, tokenizer.answer_end(chat)], [*span_tokens(offsets, answer.spans), False]

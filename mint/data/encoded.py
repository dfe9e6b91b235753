"""Records as token ids, and the report of their encoding."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


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

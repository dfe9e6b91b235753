"""What every loss receives and returns, and how it says what it needs.

Shapes: P pairs, L answer length (the longest answer of the batch; shorter ones are masked).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mint.errors import InputError

STATISTICS = ("chosen", "rejected", "prompt", "corrupted_chosen", "corrupted_rejected")
LEAST_COUNT = 1e-30  # of tokens, so that the mean over a side without any is 0


@dataclass(frozen=True)
class AnswerStats:
    """Per-token numbers of one side (a name in ``STATISTICS``) of P pairs; every tensor is [P, L].

    logps: log pi(token), natural logarithm, <= 0.          mask: bool, True on real tokens.
    ref_logps: the same under the frozen reference.          span: bool, True on tokens that carry the reward.
    kl_forward: KL(ref || pi) at the token's position.       kl_reverse: KL(pi || ref). Both on the chosen side only.
    token_count: what a mean over tokens divides by; default the number of real tokens. The training loop sets it
        when an update is split into micro-batches: this batch's share (by pairs) of the side's tokens in the whole
        update, so that the accumulated update equals that of one large batch.
    Values outside the mask are never read.
    """

    logps: Tensor
    mask: Tensor
    ref_logps: Tensor | None = None
    span: Tensor | None = None
    kl_forward: Tensor | None = None
    kl_reverse: Tensor | None = None
    token_count: float | None = None

    def total(self, values: Tensor, where: Tensor | None = None) -> Tensor:
        """[P]: the sum of ``values`` over the real tokens (of ``where``, if given) of each answer."""
        keep = self.mask if where is None else self.mask & where
        return torch.where(keep, values, 0.0).sum(-1)

    @property
    def lengths(self) -> Tensor:
        """[P]: real tokens of each answer, at least 1 so that means are defined."""
        return self.mask.sum(-1).clamp(min=1)

    @property
    def logp_sum(self) -> Tensor:
        """[P]: log pi(y) = sum over tokens."""
        return self.total(self.logps)

    @property
    def logp_mean(self) -> Tensor:
        """[P]: log pi(y) / |y|."""
        return self.logp_sum / self.lengths

    @property
    def log_ratio(self) -> Tensor:
        """[P, L]: log pi(token) - log ref(token)."""
        return self.logps - self.ref_logps

    @property
    def span_or_all(self) -> Tensor:
        """[P, L]: the span, or every token where none was marked."""
        return self.mask if self.span is None else self.span

    @property
    def tokens(self) -> float | Tensor:
        """What a mean over tokens divides by (see ``token_count``), > 0."""
        if self.token_count is None:
            return self.mask.sum().clamp(min=LEAST_COUNT)
        return max(self.token_count, LEAST_COUNT)


@dataclass(frozen=True)
class LossOutput:
    """A scalar loss, and metrics for the log: a flat dict of floats or detached scalar tensors."""

    loss: Tensor
    metrics: dict[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """What a loss asks to be computed for it; nothing else is paid for. Raises InputError for a contradiction."""

    rejected: bool = True  # a second answer
    reference: bool = False  # ref_logps
    kl_forward: bool = False  # on the chosen side, KL(ref || pi) ...
    kl_reverse: bool = False  # ... and KL(pi || ref) ...
    kl_over: str = "span"  # ... at "span" tokens, or at "all" tokens
    spans: bool = False  # marked phrases
    corrupted_image: bool = False  # the same answers under a corrupted image ...
    corrupted_rejected: bool = True  # ... both, or the chosen one alone
    prompt: bool = False  # can use the prompt's own tokens
    fields: tuple[str, ...] = ()  # numbers of the records, each a [P] tensor under its name

    def __post_init__(self):
        if (self.kl_forward or self.kl_reverse) and not self.reference:
            raise InputError("a loss that needs a KL divergence needs the reference too: @needs(reference=True, ...)")
        if self.kl_over not in ("span", "all"):
            raise InputError(f"a loss needs the KL over 'span' or 'all' tokens, not over {self.kl_over!r}")
        if isinstance(self.fields, str) or not all(str.isidentifier(name) for name in self.fields):
            raise InputError(f'the fields that a loss needs are a tuple of names, as ("weight",), not {self.fields!r}')

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names in ``STATISTICS`` that the loss is called with."""
        both = self.corrupted_image and self.corrupted_rejected
        wanted = (True, self.rejected, self.prompt, self.corrupted_image, both)
        return tuple(name for name, want in zip(STATISTICS, wanted, strict=True) if want)


def needs(by_settings: Callable[..., dict] | None = None, **wants) -> Callable:
    """Decorator for a loss: ``@needs(reference=True)``. The fields are those of :class:`Needs`.

    by_settings: from the loss's settings to the fields that they change, such as a term whose weight is 0.
    Raises InputError for a name that is no field of Needs.
    """
    if unknown := set(wants) - set(Needs.__dataclass_fields__):
        known = ", ".join(Needs.__dataclass_fields__)
        raise InputError(f"@needs has no {', '.join(sorted(unknown))}; a loss can ask for: {known}")

    def mark(function: Callable) -> Callable:
        function.needs, function.needs_by_settings = Needs(**wants), by_settings
        return function

    return mark


LOSSES: dict[str, Callable[..., LossOutput]] = {}
PRESETS: dict[str, tuple[Callable[..., LossOutput], dict]] = {}  # name -> a loss, and settings that the name fixes


def register(name: str, **fixed) -> Callable:
    """Decorator that makes a loss available as ``--loss NAME``.

    fixed: settings that the name stands for, for a second name of a loss. Raises ValueError for a name that is taken.
    """

    def add(function: Callable) -> Callable:
        taken = LOSSES.get(name) or PRESETS.get(name, (None,))[0]
        if taken is not None and taken.__module__ != function.__module__:
            raise ValueError(f"{taken.__module__} and {function.__module__} both register a loss as {name!r}")
        if fixed:
            PRESETS[name] = (function, fixed)
        else:
            LOSSES[name] = function
        return function

    return add


def nll(*sides: AnswerStats) -> Tensor:
    """Mean negative log-likelihood over all real tokens of the given sides, a scalar."""
    return -sum(side.logp_sum.sum() for side in sides) / sum(side.tokens for side in sides)


def reward_metrics(chosen_rewards: Tensor, rejected_rewards: Tensor) -> dict[str, Tensor]:
    """The four reward metrics of the field from per-pair rewards [P]."""
    chosen_rewards, rejected_rewards = chosen_rewards.detach(), rejected_rewards.detach()
    return {
        "rewards/chosen": chosen_rewards.mean(),
        "rewards/rejected": rejected_rewards.mean(),
        "rewards/margins": (chosen_rewards - rejected_rewards).mean(),
        "rewards/accuracies": (chosen_rewards > rejected_rewards).float().mean(),
    }


def logp_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Mean log-probability of both sides, whichever way ([P], summed or averaged) the loss uses them."""
    return {"logps/chosen": chosen.detach().mean(), "logps/rejected": rejected.detach().mean()}

"""The interface of a loss: its inputs, its output, and the declaration of what it needs.

Shapes: P pairs, L answer length (the longest answer of the batch; shorter ones are masked).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mint.errors import InputError

STATISTICS = ("chosen", "rejected", "prompt", "corrupted_chosen", "corrupted_rejected")
KL_OVER = ("span", "all")  # tokens at which a KL is computed: those of the marked phrases, or every one
LEAST_COUNT = 1e-30  # of tokens, so that the mean over no tokens is 0


@dataclass(frozen=True)
class AnswerStats:
    """Per-token numbers of one side (a name in ``STATISTICS``) of P pairs; every tensor is [P, L].

    logps: log pi(token), natural logarithm, <= 0.          mask: bool, True on real tokens.
    ref_logps: the same under the frozen reference.          span: bool, True on tokens that carry the reward.
    kl_forward: KL(ref || pi) at the token's position.       kl_reverse: KL(pi || ref). Both on the chosen side only.
    token_count: divisor of a mean over tokens; default: the number of real tokens. With gradient accumulation the
        training loop sets it to this batch's share (by pairs) of the side's tokens in the whole update, so that the
        accumulated gradient equals that of one large batch.
    Values outside the mask are ignored.
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
        """[P, L]: log pi(token) - log ref(token). The loss must need the reference."""
        assert self.ref_logps is not None, "the reference was not computed: add @needs(reference=True)"
        return self.logps - self.ref_logps

    @property
    def span_or_all(self) -> Tensor:
        """[P, L]: the span, or every token where none was marked."""
        return self.mask if self.span is None else self.span

    @property
    def tokens(self) -> float | Tensor:
        """Divisor of a mean over tokens (see ``token_count``), > 0."""
        if self.token_count is None:
            return self.mask.sum().clamp(min=LEAST_COUNT)
        return max(self.token_count, LEAST_COUNT)


@dataclass(frozen=True)
class LossOutput:
    """A scalar loss, and metrics for the log: a dict of floats or detached scalar tensors."""

    loss: Tensor
    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """The statistics that a loss needs; no others are computed. Raises InputError for a contradiction."""

    rejected: bool = True  # a second answer
    reference: bool = False  # ref_logps
    kl_forward: bool = False  # KL(ref || pi), chosen side only
    kl_reverse: bool = False  # KL(pi || ref), chosen side only
    kl_over: str = "span"  # of KL_OVER
    spans: bool = False  # marked phrases
    corrupted_image: bool = False  # the same answers given a corrupted image
    corrupted_chosen: bool = True  # with corrupted_image: whether the chosen answer is needed under it
    corrupted_rejected: bool = True  # the same for the rejected answer
    prompt: bool = False  # can use the prompt's tokens
    fields: tuple[str, ...] = ()  # numbers of the records, each a [P] tensor of that name

    def __post_init__(self):
        if (self.kl_forward or self.kl_reverse) and not self.reference:
            raise InputError("a loss that needs a KL divergence needs the reference too: @needs(reference=True, ...)")
        if self.kl_over not in KL_OVER:
            raise InputError(f"a loss needs the KL over 'span' or 'all' tokens, not over {self.kl_over!r}")
        if self.corrupted_image and not (self.corrupted_chosen or self.corrupted_rejected):
            raise InputError("a loss that needs a corrupted image needs an answer under it: corrupted_chosen=True, ...")
        if isinstance(self.fields, str) or not all(str.isidentifier(name) for name in self.fields):
            raise InputError(f'the fields that a loss needs are a tuple of names, as ("weight",), not {self.fields!r}')

    @property
    def corrupted_answers(self) -> tuple[str, ...]:
        """The answers ("chosen", "rejected") that are needed under a corrupted image."""
        wanted = {"chosen": self.corrupted_chosen, "rejected": self.corrupted_rejected}
        return tuple(name for name, want in wanted.items() if want and self.corrupted_image)

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names in ``STATISTICS`` that the loss is called with."""
        corrupted = (name in self.corrupted_answers for name in ("chosen", "rejected"))
        wanted = (True, self.rejected, self.prompt, *corrupted)
        return tuple(name for name, want in zip(STATISTICS, wanted, strict=True) if want)


def needs(by_settings: Callable[..., dict] | None = None, **wants) -> Callable:
    """Decorator that declares what a loss needs: ``@needs(reference=True)``. The arguments are the fields of ``Needs``.

    by_settings: function from the loss's settings to the fields that they change, e.g. for a term with weight 0.
    Raises InputError for an unknown field.
    """
    if unknown := set(wants) - set(Needs.__dataclass_fields__):
        known = ", ".join(Needs.__dataclass_fields__)
        raise InputError(f"@needs has no {', '.join(sorted(unknown))}; a loss can ask for: {known}")

    def mark(function: Any) -> Any:
        function.needs, function.needs_by_settings = Needs(**wants), by_settings
        return function

    return mark


LOSSES: dict[str, Callable[..., LossOutput]] = {}
PRESETS: dict[str, tuple[Callable[..., LossOutput], dict]] = {}  # name -> loss, and the settings that it fixes


def register(name: str, **fixed) -> Callable:
    """Decorator that makes a loss available as ``--loss NAME``.

    fixed: settings that this name fixes, for a variant of a loss. Raises ValueError if the name is taken.
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
    """Mean negative log-likelihood over all real tokens of the sides, a scalar."""
    return -torch.stack([side.logp_sum.sum() for side in sides]).sum() / sum(side.tokens for side in sides)


def reward_metrics(chosen_rewards: Tensor, rejected_rewards: Tensor) -> dict[str, Tensor]:
    """The usual reward metrics, from per-pair rewards [P]."""
    chosen_rewards, rejected_rewards = chosen_rewards.detach(), rejected_rewards.detach()
    return {
        "rewards/chosen": chosen_rewards.mean(),
        "rewards/rejected": rejected_rewards.mean(),
        "rewards/margins": (chosen_rewards - rejected_rewards).mean(),
        "rewards/accuracies": (chosen_rewards > rejected_rewards).float().mean(),
    }


def logp_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Mean log-probability of both sides, from per-answer values [P] (sums or means, as the loss uses them)."""
    return {"logps/chosen": chosen.detach().mean(), "logps/rejected": rejected.detach().mean()}

"""What every loss receives and returns, and how it says what it needs.

Shapes: P pairs, L answer length (the longest answer of the batch; shorter ones are masked).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnswerStats:
    """Per-token numbers of one side (chosen, rejected or prompt) of P pairs; every tensor is [P, L].

    logps: log pi(token), natural logarithm, <= 0.          mask: bool, True on real tokens.
    ref_logps: the same under the frozen reference.          span: bool, True on tokens that carry the reward.
    kl_forward: KL(ref || pi) at the token's position.       kl_reverse: KL(pi || ref).
    token_count: what a mean over tokens divides by; default the number of real tokens. The training loop sets it
        when a step is split into micro-batches, so that the accumulated update equals that of one large batch.
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
        """What a mean over tokens divides by (see ``token_count``)."""
        return self.mask.sum().clamp(min=1) if self.token_count is None else self.token_count


@dataclass(frozen=True)
class LossOutput:
    """A scalar loss, and metrics for the log: a flat dict of floats or detached scalar tensors."""

    loss: Tensor
    metrics: dict[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """What a loss asks to be computed for it; nothing else is paid for."""

    rejected: bool = True  # a second answer
    reference: bool = False  # ref_logps
    kl_forward: bool = False  # on the chosen side, KL(ref || pi) ...
    kl_reverse: bool = False  # ... and KL(pi || ref) ...
    kl_over: str = "span"  # ... at "span" tokens, or at "all" tokens
    spans: bool = False  # marked phrases
    corrupted_image: bool = False  # the same answers under a corrupted image ...
    corrupted_rejected: bool = True  # ... both, or the chosen one alone
    prompt: bool = False  # can use the prompt's own tokens


def needs(by_settings: Callable[..., dict] | None = None, **wants) -> Callable:
    """Decorator for a loss: ``@needs(reference=True)``. The fields are those of :class:`Needs`.

    by_settings: from the loss's settings to the fields that they change, such as a term whose weight is 0.
    """

    def mark(function: Callable) -> Callable:
        function.needs, function.needs_by_settings = Needs(**wants), by_settings
        return function

    return mark


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

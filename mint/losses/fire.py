"""FiRe-MPO: rewards and a two-way token-wise KL on the changed words, and a visual contrast (arXiv 2606.12590)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mint.errors import InputError
from mint.losses.interface import KL_OVER, AnswerStats, LossOutput, logp_metrics, needs, register, reward_metrics

VISUAL = {  # form of the visual term -> the side whose reward should be higher, the other one
    "flip": ("corrupted_rejected", "corrupted_chosen"),
    "v1": ("chosen", "corrupted_chosen"),
    "v2": ("chosen", "corrupted_rejected"),
}


def _needs(*, alpha: float, gamma: float, lam: float, visual: str, kl_over: str, **_) -> dict:
    """A term with weight 0 needs no statistics."""
    _check(visual, kl_over)
    return {
        "kl_over": kl_over,
        "kl_forward": alpha > 0 and lam > 0,
        "kl_reverse": alpha > 0 and lam < 1,
        "corrupted_image": gamma > 0,
        "corrupted_chosen": "corrupted_chosen" in VISUAL[visual],
        "corrupted_rejected": "corrupted_rejected" in VISUAL[visual],
    }


def _check(visual: str, kl_over: str) -> None:
    if visual not in VISUAL:
        raise InputError(f"the visual pair {visual!r} is none of {', '.join(VISUAL)}")
    if kl_over not in KL_OVER:
        raise InputError(f"kl_over={kl_over!r} is none of {', '.join(KL_OVER)}")


@register("mask-dpo", alpha=0.0, gamma=0.0)
@register("fire")
@needs(_needs, reference=True, spans=True, corrupted_image=True)
def fire_loss(
    chosen: AnswerStats,
    rejected: AnswerStats,
    corrupted_chosen: AnswerStats | None = None,
    corrupted_rejected: AnswerStats | None = None,
    *,
    beta: float = 0.1,
    alpha: float = 0.01,
    gamma: float = 0.1,
    lam: float = 0.5,
    visual: str = "flip",
    kl_over: str = "span",
) -> LossOutput:
    """L = L_rank + alpha * L_KL, mean over pairs.

    R(v, y) = beta * sum over span tokens of (log pi - log ref), no length normalisation
    L_rank = -log sigmoid(R(v, y+) - R(v, y-)) - gamma * w * log sigmoid(R(v', y-) - R(v', y+))
    L_KL = sum over span tokens of y+ of lam * KL(ref || pi) + (1 - lam) * KL(pi || ref)

    corrupted_*: the same answers given the corrupted image v'; w = 1 for pairs that have one, else 0 (then its mask is
    empty). beta > 0; alpha, gamma >= 0; lam in [0, 1]. A KL that is None counts as 0. Without marked spans every token
    counts.
    visual: the rewards that the visual term compares. ``flip``: as above, the paper's loss. Its two ablations:
    ``v1``: -log sigmoid(R(v, y+) - R(v', y+)), without ``corrupted_rejected``; ``v2``: -log sigmoid(R(v, y+) -
    R(v', y-)), without ``corrupted_chosen``.
    kl_over: ``all`` takes the KL over every token of y+, as RRPO does, and not over the spans alone.
    Raises InputError for another ``visual`` or ``kl_over``.
    """
    _check(visual, kl_over)

    def reward(side: AnswerStats) -> Tensor:
        return beta * side.total(side.log_ratio, side.span_or_all)

    rewards = reward(chosen), reward(rejected)
    ranking = -F.logsigmoid(rewards[0] - rewards[1])
    losses = ranking
    metrics = {
        "ranking_loss": ranking.detach().mean(),
        **reward_metrics(*rewards),
        **logp_metrics(chosen.logp_sum, rejected.logp_sum),
    }
    for direction, share, values in (("forward", lam, chosen.kl_forward), ("reverse", 1 - lam, chosen.kl_reverse)):
        if values is not None:
            divergence = chosen.total(values, chosen.span_or_all if kl_over == "span" else None)
            losses = losses + alpha * share * divergence
            metrics[f"kl/{direction}"] = divergence.detach().mean()
    sides = {"chosen": chosen, "corrupted_chosen": corrupted_chosen, "corrupted_rejected": corrupted_rejected}
    higher, lower = (sides[name] for name in VISUAL[visual])
    if gamma and higher is not None and lower is not None:
        exists = lower.mask.any(-1)  # w
        contrast = torch.where(exists, -F.logsigmoid(reward(higher) - reward(lower)), 0.0)
        losses = losses + gamma * contrast
        metrics["visual_loss"] = contrast.detach().mean()
    return LossOutput(losses.mean(), metrics)

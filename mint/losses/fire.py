"""FiRe-MPO: rewards and a two-way token-wise KL on the changed words, and a visual contrast (arXiv 2606.12590)."""

import torch
import torch.nn.functional as F

from mint.losses.base import AnswerStats, LossOutput, logp_metrics, needs, reward_metrics


@needs(reference=True, spans=True, kl_forward=True, kl_reverse=True, kl_over="span", corrupted_image=True)
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
) -> LossOutput:
    """L = L_rank + alpha * L_KL, mean over pairs.

    R(v, y) = beta * sum over span tokens of (log pi - log ref), no length normalisation
    L_rank = -log sigmoid(R(v, y+) - R(v, y-)) - gamma * w * log sigmoid(R(v', y-) - R(v', y+))
    L_KL = sum over span tokens of y+ of lam * KL(ref || pi) + (1 - lam) * KL(pi || ref)

    corrupted_*: the same answers under the corrupted image v'; w = 1 for pairs that have one, 0 for those whose
    corrupted mask is empty, and for all if none is given. beta > 0; alpha, gamma >= 0; lam in [0, 1].
    Without marked spans every token counts.
    """
    rewards = [beta * side.total(side.log_ratio, side.span_or_all) for side in (chosen, rejected)]
    ranking = -F.logsigmoid(rewards[0] - rewards[1])
    kl_forward = chosen.total(chosen.kl_forward, chosen.span_or_all)
    kl_reverse = chosen.total(chosen.kl_reverse, chosen.span_or_all)
    losses = ranking + alpha * (lam * kl_forward + (1 - lam) * kl_reverse)
    metrics = {
        "ranking_loss": ranking.detach().mean(),
        "kl/forward": kl_forward.detach().mean(),
        "kl/reverse": kl_reverse.detach().mean(),
        **reward_metrics(*rewards),
        **logp_metrics(chosen.logp_sum, rejected.logp_sum),
    }
    if corrupted_chosen is not None and corrupted_rejected is not None:
        blind = [beta * side.total(side.log_ratio, side.span_or_all) for side in (corrupted_chosen, corrupted_rejected)]
        exists = corrupted_chosen.mask.any(-1)  # w
        visual = torch.where(exists, -F.logsigmoid(blind[1] - blind[0]), 0.0)  # the preference flips
        losses = losses + gamma * visual
        metrics["visual_loss"] = visual.detach().mean()
    return LossOutput(losses.mean(), metrics)

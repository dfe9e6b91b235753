"""RRPO: rewards on the differing phrases, KL on the whole chosen answer (Sarkar et al., arXiv 2504.12083)."""

import torch.nn.functional as F

from mint.losses.interface import AnswerStats, LossOutput, logp_metrics, needs, register, reward_metrics


def _needs(*, alpha: float, **_) -> dict:
    """A KL with weight 0 is not computed."""
    return {"kl_forward": alpha != 0}


@register("rrpo")
@needs(_needs, reference=True, spans=True, kl_forward=True, kl_over="all")
def rrpo_loss(chosen: AnswerStats, rejected: AnswerStats, *, beta: float = 0.1, alpha: float = 0.01) -> LossOutput:
    """L = -log sigmoid(u) + alpha * sum over chosen tokens of KL(ref || pi), u = beta * (d(y+) - d(y-)) over spans.

    beta: scale of the reward, > 0. alpha: weight of the KL, >= 0; with 0 the KL is not needed.
    Without marked spans every token counts.
    """
    rewards = [beta * side.total(side.log_ratio, side.span_or_all) for side in (chosen, rejected)]
    losses = -F.logsigmoid(rewards[0] - rewards[1])
    metrics = {**reward_metrics(*rewards), **logp_metrics(chosen.logp_sum, rejected.logp_sum)}
    if alpha:
        assert chosen.kl_forward is not None
        kl = chosen.total(chosen.kl_forward)  # [P]
        losses = losses + alpha * kl
        metrics["kl/forward"] = kl.detach().mean()
    return LossOutput(losses.mean(), metrics)

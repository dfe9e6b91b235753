"""mDPO: DPO on answers and on images, with an anchor on the chosen answer's reward (Wang et al., arXiv 2406.11839)."""

import torch
import torch.nn.functional as F

from mint.losses.interface import AnswerStats, LossOutput, logp_metrics, needs, register, reward_metrics


@register("mdpo")
@needs(reference=True, corrupted_image=True, corrupted_rejected=False)
def mdpo_loss(
    chosen: AnswerStats, rejected: AnswerStats, corrupted_chosen: AnswerStats | None = None, *, beta: float = 0.1
) -> LossOutput:
    """L = -log sigmoid(R(v, y+) - R(v, y-)) - w log sigmoid(R(v, y+) - R(v', y+)) - log sigmoid(R(v, y+)).

    The mean over pairs. R(v, y) = beta * (log pi(y | v) - log ref(y | v)), summed over tokens. v': the corrupted image;
    w = 1 for pairs that have one, else 0. beta > 0.
    """
    rewards = [beta * side.total(side.log_ratio) for side in (chosen, rejected)]
    anchor = -F.logsigmoid(rewards[0])
    losses = -F.logsigmoid(rewards[0] - rewards[1]) + anchor
    metrics = {
        "anchor_loss": anchor.detach().mean(),
        **reward_metrics(*rewards),
        **logp_metrics(chosen.logp_sum, rejected.logp_sum),
    }
    if corrupted_chosen is not None:
        corrupted = beta * corrupted_chosen.total(corrupted_chosen.log_ratio)
        visual = torch.where(corrupted_chosen.mask.any(-1), -F.logsigmoid(rewards[0] - corrupted), 0.0)
        losses = losses + visual
        metrics["visual_loss"] = visual.detach().mean()
    return LossOutput(losses.mean(), metrics)

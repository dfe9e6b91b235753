"""SimPO: a length-normalised reward with a target margin and no reference (Meng et al., arXiv 2405.14734)."""

import torch.nn.functional as F

from mint.losses.interface import AnswerStats, LossOutput, logp_metrics, needs, register, reward_metrics


@register("simpo")
@needs()
def simpo_loss(chosen: AnswerStats, rejected: AnswerStats, *, beta: float = 2.0, gamma: float = 0.5) -> LossOutput:
    """L = -log sigmoid(beta * log pi(y+)/|y+| - beta * log pi(y-)/|y-| - gamma) (eq. 6).

    beta: scale of the reward, > 0. gamma: target margin between the two rewards, >= 0.
    """
    rewards = beta * chosen.logp_mean, beta * rejected.logp_mean
    loss = -F.logsigmoid(rewards[0] - rewards[1] - gamma).mean()
    return LossOutput(loss, {**reward_metrics(*rewards), **logp_metrics(chosen.logp_mean, rejected.logp_mean)})

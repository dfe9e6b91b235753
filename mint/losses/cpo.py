"""CPO: contrastive preference optimisation, DPO with a uniform reference plus SFT (Xu et al., arXiv 2401.08417)."""

import torch.nn.functional as F

from mint.losses.interface import AnswerStats, LossOutput, logp_metrics, needs, nll, register, reward_metrics


@register("cpo")
@needs()
def cpo_loss(chosen: AnswerStats, rejected: AnswerStats, *, beta: float = 0.1, alpha: float = 1.0) -> LossOutput:
    """L = -log sigmoid(beta * (log pi(y+) - log pi(y-))) + alpha * NLL(y+), sums over answer tokens (eq. 5-6).

    beta: scale of the reward, > 0. alpha: weight of the behaviour-cloning term, >= 0.
    """
    rewards = beta * chosen.logp_sum, beta * rejected.logp_sum
    nll_loss = nll(chosen)
    loss = -F.logsigmoid(rewards[0] - rewards[1]).mean() + alpha * nll_loss
    return LossOutput(
        loss,
        {"nll_loss": nll_loss.detach(), **reward_metrics(*rewards), **logp_metrics(chosen.logp_sum, rejected.logp_sum)},
    )

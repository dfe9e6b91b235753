"""ORPO: odds-ratio preference optimisation without a reference model (Hong et al., arXiv 2403.07691)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mint.losses.interface import AnswerStats, LossOutput, logp_metrics, needs, nll, register, reward_metrics

# Mean log-probabilities are clamped to this: at 0, log(1 - p) is -inf and its gradient infinite.
CERTAIN = -1e-10


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p <= 0, finite with a finite gradient everywhere.

    log(1 - p) is computed as log(-expm1(log p)), which is accurate for p near 1. log p is clamped to ``CERTAIN``.
    """
    logp = logp.clamp(max=CERTAIN)
    return logp - torch.log(-torch.expm1(logp))


@register("orpo")
@needs(prompt=True)
def orpo_loss(
    chosen: AnswerStats, rejected: AnswerStats, *, beta: float = 0.1, prompt: AnswerStats | None = None
) -> LossOutput:
    """L = NLL(chosen) - beta * log sigmoid(log odds(y+) - log odds(y-)), odds of the per-token mean (eqs. 4-7).

    beta: weight of the odds-ratio term (lambda in the paper), >= 0.
    prompt: if given, the NLL is over prompt and chosen answer, as in TRL.
    """
    ratio = log_odds(chosen.logp_mean) - log_odds(rejected.logp_mean)  # [P]
    nll_loss = nll(chosen) if prompt is None else nll(chosen, prompt)
    preference = F.logsigmoid(ratio)
    loss = nll_loss - beta * preference.mean()  # eq. 6
    return LossOutput(
        loss,
        {
            "nll_loss": nll_loss.detach(),
            "log_odds_ratio": preference.detach().mean(),
            "log_odds_chosen": ratio.detach().mean(),
            **reward_metrics(beta * chosen.logp_mean, beta * rejected.logp_mean),
            **logp_metrics(chosen.logp_mean, rejected.logp_mean),
        },
    )

"""A loss of your own: copy this file, change the equation, and run its unit test.

    python train.py --loss examples/custom_loss.py:truncated_quadratic --loss-arg tau=2
    python -m pytest examples

``docs/extending.md`` explains the parts.
"""

import torch

from mint.errors import InputError
from mint.losses import AnswerStats, LossOutput, needs


@needs(reference=True)
def truncated_quadratic(chosen: AnswerStats, rejected: AnswerStats, *, tau: float = 1.0) -> LossOutput:
    """L = max(0, 1 - (d(y+) - d(y-)) / tau)^2, mean over pairs; d(y) = log pi(y) - log ref(y), summed over tokens.

    The truncated quadratic member of the family in Tang et al., arXiv 2402.05749: unlike in DPO, a pair whose margin
    has reached tau no longer contributes a gradient.
    tau: the margin to reach, in nats, > 0 (1 / beta in the paper). Raises InputError for another one.
    """
    if tau <= 0:
        raise InputError(f"tau must be positive, not {tau}")
    margin = chosen.total(chosen.log_ratio) - rejected.total(rejected.log_ratio)  # [P]
    losses = torch.relu(1 - margin / tau) ** 2
    reached = (margin.detach() >= tau).float()
    return LossOutput(losses.mean(), {"rewards/margins": margin.detach().mean(), "margin_reached": reached.mean()})

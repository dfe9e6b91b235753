"""DPO: direct preference optimisation (Rafailov et al., arXiv 2305.18290), with the IPO and hinge forms."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mint.errors import InputError
from mint.losses.interface import AnswerStats, LossOutput, logp_metrics, needs, register, reward_metrics

KINDS = ("sigmoid", "ipo", "hinge")


def pair_loss(margin: Tensor, label_smoothing: float) -> Tensor:
    """-log sigmoid(margin), [P]; label_smoothing: assumed share of flipped labels (conservative DPO)."""
    flipped = label_smoothing * F.logsigmoid(-margin) if label_smoothing else 0.0
    return -(1 - label_smoothing) * F.logsigmoid(margin) - flipped


@register("dpo")
@needs(reference=True)
def dpo_loss(
    chosen: AnswerStats,
    rejected: AnswerStats,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    kind: str = "sigmoid",
) -> LossOutput:
    """L = -log sigmoid(beta * (d(y+) - d(y-))), d(y) = log pi(y) - log ref(y) summed over tokens (eq. 7).

    beta: strength of the regularisation towards the reference, > 0. label_smoothing: in [0, 0.5), for ``sigmoid``.
    kind: ``sigmoid``; ``ipo``, (d(y+)/|y+| - d(y-)/|y-| - 1/(2 beta))^2 (Azar et al., arXiv 2310.12036, eq. 17, here
    on per-token means, so that the target does not depend on length); ``hinge``, max(0, 1 - beta * (d(y+) - d(y-))).
    Raises InputError for another kind, and for label smoothing with a kind other than ``sigmoid``.
    """
    if kind not in KINDS:
        raise InputError(f"DPO has no kind {kind!r}: use one of {', '.join(KINDS)}")
    if label_smoothing and kind != "sigmoid":
        raise InputError(f"label smoothing belongs to the sigmoid kind of DPO, not to {kind!r}")
    ratios = [side.total(side.log_ratio) for side in (chosen, rejected)]
    if kind == "ipo":
        ratios = [ratio / side.lengths for ratio, side in zip(ratios, (chosen, rejected), strict=True)]
    margin = ratios[0] - ratios[1]
    if kind == "sigmoid":
        losses = pair_loss(beta * margin, label_smoothing)
    elif kind == "ipo":
        losses = (margin - 1 / (2 * beta)) ** 2
    else:
        losses = torch.relu(1 - beta * margin)
    return LossOutput(
        losses.mean(),
        {**reward_metrics(beta * ratios[0], beta * ratios[1]), **logp_metrics(chosen.logp_sum, rejected.logp_sum)},
    )

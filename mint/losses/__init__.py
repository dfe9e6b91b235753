"""Losses: pure functions of per-token numbers, one file each; ``logprobs`` holds all vocabulary-sized work."""

from mint.losses.base import AnswerStats, LossOutput, Needs, needs
from mint.losses.cpo import cpo_loss
from mint.losses.dpo import dpo_loss
from mint.losses.fire import fire_loss
from mint.losses.mdpo import mdpo_loss
from mint.losses.orpo import orpo_loss
from mint.losses.registry import LOSSES, Loss, load_loss
from mint.losses.rrpo import rrpo_loss
from mint.losses.sft import sft_loss
from mint.losses.simpo import simpo_loss

__all__ = [
    "LOSSES",
    "AnswerStats",
    "Loss",
    "LossOutput",
    "Needs",
    "cpo_loss",
    "dpo_loss",
    "fire_loss",
    "mdpo_loss",
    "load_loss",
    "needs",
    "orpo_loss",
    "rrpo_loss",
    "sft_loss",
    "simpo_loss",
]

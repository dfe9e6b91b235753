"""Losses: pure functions of per-token statistics, one file each. ``logprobs`` computes these from the LM head.

Importing this package imports every module in it, so adding a loss takes one new file that registers it.
"""

import importlib
import pkgutil

from mint.losses.cpo import cpo_loss
from mint.losses.dpo import dpo_loss
from mint.losses.fire import fire_loss
from mint.losses.interface import LOSSES, AnswerStats, LossOutput, Needs, needs, nll, register
from mint.losses.mdpo import mdpo_loss
from mint.losses.orpo import orpo_loss
from mint.losses.registry import Loss, Setting, load_loss, loss_names
from mint.losses.rrpo import rrpo_loss
from mint.losses.sft import sft_loss
from mint.losses.simpo import simpo_loss

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "LOSSES",
    "AnswerStats",
    "Loss",
    "LossOutput",
    "Needs",
    "Setting",
    "cpo_loss",
    "dpo_loss",
    "fire_loss",
    "load_loss",
    "loss_names",
    "mdpo_loss",
    "needs",
    "nll",
    "orpo_loss",
    "register",
    "rrpo_loss",
    "sft_loss",
    "simpo_loss",
]

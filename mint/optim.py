"""The optimiser, its schedule, and gradient clipping."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn


class Settings(Protocol):
    """Settings of the optimiser: ``TrainConfig``, or any object with these fields."""

    lr: float
    warmup: float
    schedule: str
    weight_decay: float
    adam_beta2: float


def make_optimizer(model: nn.Module, config: Settings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; the decay acts on matrices, not on norms and biases."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.adam_beta2), fused=True)


def learning_rate(step: int, total: int, config: Settings) -> float:
    """The rate of optimiser step ``step`` (from 0) of ``total``: linear warm-up, then the schedule, down to zero."""
    warmup = config.warmup * total if config.warmup < 1 else config.warmup
    warmup = min(math.ceil(warmup), total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (1 - done) if config.schedule == "linear" else config.lr


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scales the gradients to a global norm of at most ``limit`` (0: as they are); returns the norm before."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded parameters

"""Activation checkpointing: a layer's inner states are computed again in the backward pass, not kept."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, *inputs, recompute: bool):
    """``layer(*inputs)``; with ``recompute``, where gradients are wanted, only ``inputs`` are kept for the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)

"""Activation checkpointing: a layer's activations are recomputed in the backward pass."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, *inputs, recompute: bool):
    """``layer(*inputs)``; with ``recompute``, only ``inputs`` are kept for the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)

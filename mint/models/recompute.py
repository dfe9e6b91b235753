"""Activation checkpointing: a layer's activations are recomputed in the backward pass, all or the cheap ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mint.models.lora import lora_layers

SELECTIVE = "selective"
Recompute = bool | str  # False: nothing; True: everything; SELECTIVE: all but matrix products and attention
KEPT = {  # names of operations
    "aten::mm",
    "aten::addmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
}


def run_layer(layer: nn.Module, *inputs, recompute: Recompute):
    """``layer(*inputs)``; with ``recompute``, only ``inputs`` are kept for the backward pass, or the products too.

    A compiled layer is called as it is for SELECTIVE: the compiler chooses what it keeps and what it recomputes.
    """
    if not recompute or not torch.is_grad_enabled():
        return layer(*inputs)
    if recompute != SELECTIVE:
        return checkpoint(layer, *inputs, use_reentrant=False)
    if layer._compiled_call_impl is not None:
        return layer(*inputs)
    return checkpoint(layer, *inputs, use_reentrant=False, context_fn=_contexts)


def _contexts():
    return create_selective_checkpoint_contexts(_policy)


def _policy(context, operation, *args, **kwargs) -> CheckpointPolicy:
    """Keeps products; but an ``addmm`` onto a matrix is the update of an adapter, of low rank or of a weight."""
    onto_matrix = operation is torch.ops.aten.addmm.default and args[0].dim() > 1
    keep = operation.name() in KEPT and not onto_matrix
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def set_recompute(model: Any, recompute: Recompute) -> None:
    """Chooses what a ``CausalLM`` recomputes. A product that is kept is not what its layer adds its update to."""
    model.gradient_checkpointing = recompute
    for layer in lora_layers(model).values():
        layer.in_place = recompute != SELECTIVE

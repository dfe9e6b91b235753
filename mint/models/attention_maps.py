"""Attention weights of selected tokens, which fused attention does not return."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mint.errors import InputError
from mint.models.llama import Attention, CausalLM


@torch.no_grad()
def attention_to(
    model: CausalLM, tokens: Tensor, queries: Tensor, keys: Tensor, images: dict[str, Tensor] | None = None
) -> Tensor:
    """[layers, Q, S]: attention weights from tokens at ``queries`` [Q] to tokens at ``keys`` [S], the mean over heads.

    tokens: [1, T], read causally as ``model(tokens, images)`` does. Raises InputError for
    a model with cross-attention to images: they are not among its tokens.
    """
    if any(hasattr(layer, "cross_attn") for layer in model.decoder.layers):
        kind = model.config.raw["model_type"]
        raise InputError(f"attention maps are of models whose images stand among their tokens; those of {kind} do not")
    found: list[Tensor] = []

    def note(module: Attention, inputs: tuple) -> None:
        x, rope, mask = inputs[:3]
        q, k, _ = module.project(x, rope)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = (q[:, :, queries] @ k.mT).float() / math.sqrt(module.head_dim)
        visible = torch.arange(k.shape[2], device=k.device) <= queries[:, None]
        if isinstance(mask, Tensor):
            visible = visible & mask[0, 0, queries]
        found.append(scores.masked_fill(~visible, -torch.inf).softmax(-1)[0, :, :, keys].mean(0))

    handles = [layer.get_submodule("self_attn").register_forward_pre_hook(note) for layer in model.decoder.layers]
    try:
        model(tokens, images)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found)

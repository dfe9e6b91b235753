"""A model with the adapter that the reference numbers were made with."""

import torch

from mint.models.lora import add_lora, lora_layers
from tests.reference.weights import drawn_adapter


def adapted(model, targets, seed):
    """``model`` with ``drawn_adapter`` on the linear layers under ``targets``, in place; returns it."""
    layers = lora_layers(add_lora(model, rank=2, alpha=4, targets=targets))
    ours = {f"{name}.{f}.weight": getattr(layer, f).weight for name, layer in layers.items() for f in ("lora_A", "lora_B")}
    factors = drawn_adapter({name: weight.shape for name, weight in ours.items()}, seed)
    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(factors[name])
    return model

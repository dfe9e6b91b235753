"""Parameter names of older checkpoints and adapters, as the models name them now."""

from __future__ import annotations

import re

from torch import nn


def current_name(model: nn.Module, name: str) -> str:
    """The model's own name of a parameter, or of a layer, that an older file calls ``name``.

    A model lists its renamings in ``older_names``: (pattern, replacement), applied in order. The patterns see a layer's
    name with the dot that a parameter's name would continue with.
    """
    dotted = f"{name}."
    for pattern, replacement in getattr(model, "older_names", ()):
        dotted = re.sub(pattern, replacement, dotted)
    return dotted.removesuffix(".")

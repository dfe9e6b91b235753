"""Rotary position embedding (arXiv 2104.09864): frequencies, their scaling, and the cosines and sines of the angles."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from mint.errors import InputError

SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


class RotaryConfig(Protocol):
    """The settings of the frequencies; ``rope_scaling`` as :func:`check_scaling` returns it."""

    @property
    def head_dim(self) -> int: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def rope_scaling(self) -> dict | None: ...


def check_scaling(scaling: dict) -> dict | None:
    """``rope_scaling`` with its ``rope_type``; None for no scaling. Raises InputError if it is not supported."""
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in SCALINGS:
        raise InputError(f"rope scaling {kind!r} is not supported; known are {', '.join(SCALINGS)}")
    missing = [name for name in SCALINGS[kind] if name not in scaling]
    if missing:
        raise InputError(f"rope scaling {kind!r} lacks {', '.join(missing)}")
    return None if kind == "default" else {**scaling, "rope_type": kind}


def rope_frequencies(config: RotaryConfig) -> Tensor:
    """[D / 2] float32: radians per position of each rotary pair, after scaling.

    ``llama3`` (Llama 3.1's long context): wavelengths beyond original / low_freq_factor are stretched by ``factor``,
    those below original / high_freq_factor stay, and between them the two are blended linearly.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequency = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    if scaling["rope_type"] == "linear":
        return frequency / scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    periods = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)  # in the original context
    keep = ((periods - low) / (high - low)).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling["factor"]


def cos_sin(angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [..., D] of angles [..., D / 2], for pairs (i, i + D / 2)."""
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)

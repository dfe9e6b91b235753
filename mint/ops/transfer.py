"""Transfers from the host to a device that do not wait for it."""

from __future__ import annotations

import torch
from torch import Tensor


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """``x``, on the CPU, in memory from which a transfer to ``device`` is asynchronous: for CUDA, pinned memory."""
    return x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x


def upload(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``; the host does not wait for what the device is doing."""
    return pinned(x, device).to(device, non_blocking=True)

"""Means over micro-batches, computed without waiting for the device in between."""

from __future__ import annotations

import torch
from torch import Tensor

from mint.losses import LossOutput


class MeanMetrics:
    """The loss and the metrics of micro-batches, weighted by their shares of the pairs.

    Tensors stay on their device until ``read``, which transfers all of them at once.
    """

    def __init__(self) -> None:
        self._shares: list[float] = []
        self._numbers: list[dict[str, float]] = []  # of each micro-batch: values that are on the host
        self._names: list[list[str]] = []
        self._tensors: list[Tensor] = []  # values of these names

    def add(self, output: LossOutput, share: float) -> None:
        """share: the micro-batch's pairs as a part of all pairs. A metric is a number or a tensor with one element."""
        device, values = output.loss.device, {"loss": output.loss, **output.metrics}
        tensors = {
            name: value.detach().reshape(())
            for name, value in values.items()
            if isinstance(value, Tensor) and value.device == device
        }
        self._shares.append(share)
        self._numbers.append({name: float(value) for name, value in values.items() if name not in tensors})
        self._names.append(list(tensors))
        self._tensors.append(torch.stack(list(tensors.values())))

    def include(self, name: str, value: Tensor) -> None:
        """A number of the whole step, on the device of the losses."""
        self._shares.append(1.0)
        self._numbers.append({})
        self._names.append([name])
        self._tensors.append(value.detach().reshape(1))

    def read(self) -> dict[str, float]:
        """The means by name; empty if nothing was added."""
        means: dict[str, float] = {}
        read = iter(torch.cat(self._tensors).tolist() if self._tensors else [])
        for share, numbers, names in zip(self._shares, self._numbers, self._names, strict=True):
            for name, value in [*((name, next(read)) for name in names), *numbers.items()]:
                means[name] = means.get(name, 0.0) + share * value
        return means

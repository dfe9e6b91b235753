"""Networks that are read from model directories, and their parameter names in older checkpoints and adapters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor, nn


class NetworkConfig(Protocol):
    """The settings of every network: the content of ``config.json``, and the deviation of new weights."""

    @property
    def raw(self) -> dict: ...

    @property
    def initializer_range(self) -> float: ...


class Pretrained(nn.Module):
    """A network that is loaded from a model directory.

    source_dir, source_name: the directory, and the hub id or directory as given; not set where the weights are random.
    """

    config: NetworkConfig
    source_dir: Path
    source_name: str
    older_names: ClassVar[tuple[tuple[str, str], ...]] = ()  # pattern, replacement
    initial_values: ClassVar[dict[str, float]] = {}  # of parameters that are not drawn


class PackedBatch(Protocol):
    """What a decoder reads of a batch (``mint.data.batch.Batch``)."""

    @property
    def tokens(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def segments(self) -> Tensor: ...
    @property
    def images(self) -> dict[str, Tensor] | None: ...
    @property
    def host(self) -> PackedBatch | None: ...


def current_name(model: nn.Module, name: str) -> str:
    """The model's own name of a parameter, or of a layer, that an older file calls ``name``.

    A model lists its renamings in ``older_names``: (pattern, replacement), applied in order. The patterns see a layer's
    name with the dot that a parameter's name would continue with.
    """
    dotted = f"{name}."
    for pattern, replacement in getattr(model, "older_names", ()):
        dotted = re.sub(pattern, replacement, dotted)
    return dotted.removesuffix(".")

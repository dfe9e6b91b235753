"""A small convolutional network that names the findings of a face: it sees, and knows nothing of diseases.

Four strided convolutions with batch normalisation, then two linear layers over all places of the face, since portraits
are aligned. Of 4,000 drawn faces it learns in two minutes what a vision transformer of that size does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint.errors import InputError
from mint.models.names import Pretrained

KERNELS = 5, 3  # of the first convolution and the others


@dataclass(frozen=True)
class FaceReaderConfig:
    """findings: (id, label), in the order of the logits. image_size: side in pixels, a multiple of 2 per width.

    widths: channels after each convolution. hidden_size: of the layer before the logits.
    """

    findings: tuple[tuple[str, str], ...]
    image_size: int
    widths: tuple[int, ...]
    hidden_size: int
    raw: dict
    initializer_range: float = 0.02

    @classmethod
    def from_dict(cls, raw: dict) -> FaceReaderConfig:
        """Reads ``config.json``. Raises InputError for missing settings and a size that cannot be halved that often."""
        try:
            size, hidden = int(raw["image_size"]), int(raw["hidden_size"])
            findings = tuple((str(term), str(label)) for term, label in raw["findings"])
            config = cls(findings, size, tuple(map(int, raw["widths"])), hidden, raw)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"config.json: a setting of the face reader is missing or no number ({error})") from None
        if not config.widths or config.image_size % 2 ** len(config.widths):
            raise InputError(f"config.json: image_size {size} cannot be halved {len(config.widths)} times")
        return config


class FaceReader(Pretrained):
    """images [B, 3, S, S] in [-1, 1] -> logits [B, findings]."""

    config: FaceReaderConfig

    def __init__(self, config: FaceReaderConfig):
        super().__init__()
        self.config = config
        widths = (3, *config.widths)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel := KERNELS[place > 0], stride=2, padding=kernel // 2, bias=False)
            for place, (before, after) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in config.widths)
        for norm in self.norms:  # a counter that only another momentum would need
            norm.register_buffer("num_batches_tracked", None)
        side = config.image_size // 2 ** len(config.widths)
        self.hidden = nn.Linear(widths[-1] * side**2, config.hidden_size)
        self.findings = nn.Linear(config.hidden_size, len(config.findings))

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            images = F.relu(norm(convolution(images)))
        return self.findings(F.relu(self.hidden(images.flatten(1))))


FAMILY = (FaceReader, FaceReaderConfig, "FaceReader")

"""The forward pass of training: pairs to micro-batches, micro-batches to losses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mint.data.batch import Batch, EncodedPair, make_batches, tokens_per_pair
from mint.data.image_features import ImageReader
from mint.losses import Loss, LossOutput
from mint.models.llama import CausalLM
from mint.objective import ReferenceHead, preference_loss, reference_values
from mint.ops.transfer import pinned
from mint.training.reference_store import ReferenceStore

MicroBatch = tuple[Batch, dict[str, float], float]  # batch, tokens per pair by side, share of the pairs


@dataclass(frozen=True)
class Forward:
    """``forward(batch, tokens)`` is the loss of one micro-batch.

    frozen: the reference as a model of its own, see :func:`mint.objective.preference_loss`. batch_size: pairs of a
    micro-batch. shape: of its rows, arguments of :func:`mint.data.batch.make_batches`. prompt_targets: whether the
    prompt's tokens are predicted too. images: reads the images of a batch. autocast: dtype of the products, where it is
    not that of the weights. reference: the values of the reference, computed before; ``frozen`` is then at most its
    head.
    """

    model: CausalLM
    loss: Loss
    batch_size: int
    frozen: CausalLM | ReferenceHead | None = None
    shape: dict[str, Any] = field(default_factory=dict)
    prompt_targets: bool = False
    images: ImageReader | None = None
    autocast: torch.dtype | None = None
    reference: ReferenceStore | None = None

    def __call__(self, batch: Batch, tokens: dict[str, float]) -> LossOutput:
        """tokens: per pair, by side, over all pairs that the batch is a part of."""
        if self.reference is not None and self.loss.needs.reference:
            batch = self.reference.add_to(batch)
        with self._precision():
            return preference_loss(self.model, self._load(batch), self.loss, self.frozen, tokens)

    def reference_values(self, batch: Batch) -> dict[str, Tensor]:
        """:func:`mint.objective.reference_values` of a batch."""
        with self._precision():
            return reference_values(self.model, self._load(batch), self.loss.needs)

    def _load(self, batch: Batch) -> Batch:
        """The batch on the model's device, with its images."""
        if self.images is not None and batch.image_files and batch.images is None:
            batch = replace(batch, images=self.images(batch.image_files))
        return batch.to(self.model.head_weight.device)

    def _precision(self) -> contextlib.AbstractContextManager:
        device = self.model.head_weight.device
        return torch.autocast(device.type, self.autocast) if self.autocast else contextlib.nullcontext()

    def collate(self, pairs: Sequence[EncodedPair]) -> tuple[Sequence[EncodedPair], list[MicroBatch]]:
        """``pairs`` and their micro-batches, ready for the device; for another thread, as the model does not run.

        Images that only the model can encode are left to the forward pass.
        """
        return pairs, [(self._with_images(batch), tokens, share) for batch, tokens, share in self.micro_batches(pairs)]

    def _with_images(self, batch: Batch) -> Batch:
        if self.images is None or not batch.image_files or not self.images.holds(batch.image_files):
            return batch
        device = self.model.head_weight.device
        images = {name: pinned(x, device) for name, x in self.images(batch.image_files).items()}
        return replace(batch, images=images)

    def micro_batches(self, pairs: Sequence[EncodedPair]) -> Iterator[MicroBatch]:
        """(batch, tokens, share of the pairs) of each part of ``pairs``.

        The losses of the parts, each times its share, sum to that of one large batch; so do the metrics.
        """
        tokens = tokens_per_pair(pairs, self.prompt_targets)
        for batch in make_batches(pairs, self.batch_size, **self.shape, prompt_targets=self.prompt_targets):
            yield batch, tokens, batch.pairs / len(pairs)

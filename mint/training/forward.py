"""The forward pass of training: pairs to micro-batches, micro-batches to losses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mint import parallel
from mint.data.batch import Batch, EncodedPair, batch_count, make_batches, tokens_per_pair
from mint.data.image_features import ImageReader
from mint.losses import Loss, LossOutput
from mint.models.llama import CausalLM
from mint.objective import ReferenceHead, preference_loss, reference_values
from mint.ops.transfer import pinned
from mint.training.reference_store import ReferenceStore

MicroBatch = tuple[Batch, dict[str, float], float]  # batch, tokens per pair by side, share of the pairs


@dataclass(frozen=True)
class CollatedPairs:
    """Pairs, of which this process has its ``own``, in micro-batches."""

    pairs: Sequence[EncodedPair]
    own: Sequence[EncodedPair]
    batches: Iterable[Batch]


@dataclass(frozen=True)
class Forward:
    """``forward(batch, tokens)`` is the loss of one micro-batch.

    frozen: the reference as a model of its own, see :func:`mint.objective.preference_loss`. batch_size: pairs of a
    micro-batch. shape: of its rows, arguments of :func:`mint.data.batch.make_batches`. prompt_targets: whether the
    prompt's tokens are predicted too. images: reads the images of a batch. autocast: dtype of the products, where it is
    not that of the weights. reference: the values of the reference, computed before; ``frozen`` is then at most its
    head. lockstep: every process computes as many micro-batches as the others, as FSDP needs.
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
    lockstep: bool = False

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

    def collate(self, pairs: Sequence[EncodedPair]) -> CollatedPairs:
        """This process's micro-batches of ``pairs``; for another thread, as neither the model nor other processes are
        asked. Images that only the model can encode are read here, and encoded in the forward pass.
        """
        own = list(parallel.part(pairs, self.batch_size))
        return CollatedPairs(pairs, own, [self._with_images(batch) for batch in self._batches(own)])

    def _batches(self, pairs: Sequence[EncodedPair]) -> Iterator[Batch]:
        return make_batches(pairs, self.batch_size, **self.shape, prompt_targets=self.prompt_targets)

    def _with_images(self, batch: Batch) -> Batch:
        if self.images is None or not batch.image_files:
            return batch
        if not self.images.holds(batch.image_files):
            self.images.read_ahead(batch.image_files)
            return batch
        device = self.model.head_weight.device
        images = {name: pinned(x, device) for name, x in self.images(batch.image_files).items()}
        return replace(batch, images=images)

    def micro_batches(self, pairs: Sequence[EncodedPair] | CollatedPairs) -> Iterator[MicroBatch]:
        """(batch, tokens, share of the pairs) of each part of ``pairs``; of several processes each has its own parts.

        The losses of all parts, each times its share, sum to that of one large batch; so do the metrics.
        """
        if not isinstance(pairs, CollatedPairs):
            own = list(parallel.part(pairs, self.batch_size))
            pairs = CollatedPairs(pairs, own, self._batches(own))
        total = len(pairs.pairs)
        tokens, lacking = self._agree(pairs.own, total)
        for batch in pairs.batches:
            yield batch, tokens, batch.pairs / total
        for _ in range(lacking):
            yield next(self._batches(pairs.pairs[:1])), tokens, 0.0

    def _agree(self, own: Sequence[EncodedPair], total: int) -> tuple[dict[str, float], int]:
        """(:func:`tokens_per_pair` of the ``total`` pairs of which each process has its ``own``; how many micro-batches
        this process has to add for ``lockstep``).
        """
        if parallel.size() == 1:
            return tokens_per_pair(own, self.prompt_targets), 0
        means = tokens_per_pair(own, self.prompt_targets) if own else {}
        count = batch_count(own, self.batch_size, **self.shape) if self.lockstep else 0
        found = parallel.gather(({side: mean * len(own) for side, mean in means.items()}, count))
        sums = parallel.sum_metrics(counts for counts, _ in found)
        return {side: tokens / total for side, tokens in sums.items()}, max(most for _, most in found) - count

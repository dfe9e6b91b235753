"""The forward pass of training: pairs to micro-batches, micro-batches to losses."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from mint import parallel
from mint.data.batch import Batch, EncodedPair, make_batches, tokens_per_pair
from mint.data.image_features import ImageReader
from mint.losses import Loss, LossOutput
from mint.models.llama import CausalLM
from mint.objective import preference_loss


@dataclass(frozen=True)
class Forward:
    """``forward(batch, tokens)`` is the loss of one micro-batch.

    frozen: the reference as a model of its own, see :func:`mint.objective.preference_loss`. batch_size: pairs of a
    micro-batch. shape: of its rows, arguments of :func:`mint.data.batch.make_batches`. prompt_targets: whether the
    prompt's tokens are predicted too. images: reads the images of a batch. autocast: dtype of the products, where it is
    not that of the weights. lockstep: every process computes as many micro-batches as the others, as FSDP needs.
    """

    model: CausalLM
    loss: Loss
    batch_size: int
    frozen: CausalLM | None = None
    shape: dict[str, int] = field(default_factory=dict)
    prompt_targets: bool = False
    images: ImageReader | None = None
    autocast: torch.dtype | None = None
    lockstep: bool = False

    def __call__(self, batch: Batch, tokens: dict[str, float]) -> LossOutput:
        """tokens: per pair, by side, over all pairs that the batch is a part of."""
        device = self.model.head_weight.device
        if self.images is not None and batch.image_files:
            batch = replace(batch, images=self.images(batch.image_files))
        with torch.autocast(device.type, self.autocast) if self.autocast else contextlib.nullcontext():
            return preference_loss(self.model, batch.to(device), self.loss, self.frozen, tokens)

    def micro_batches(self, pairs: Sequence[EncodedPair]) -> Iterator[tuple[Batch, dict[str, float], float]]:
        """(batch, tokens, share of the pairs) of each part of ``pairs``; of several processes each has its own parts.

        The losses of all parts, each times its share, sum to that of one large batch; so do the metrics.
        """
        own = list(parallel.part(pairs, self.batch_size))
        tokens = self._tokens_per_pair(own, len(pairs))
        for batch in make_batches(own, self.batch_size, **self.shape, prompt_targets=self.prompt_targets):
            yield batch, tokens, batch.pairs / len(pairs)
        most = math.ceil(math.ceil(len(pairs) / self.batch_size) / parallel.size())
        if self.lockstep and math.ceil(len(own) / self.batch_size) < most:
            for batch in make_batches(pairs[:1], 1, **self.shape, prompt_targets=self.prompt_targets):
                yield batch, tokens, 0.0

    def _tokens_per_pair(self, own: Sequence[EncodedPair], total: int) -> dict[str, float]:
        """:func:`tokens_per_pair` of the ``total`` pairs of which each process has its ``own``."""
        if parallel.size() == 1:
            return tokens_per_pair(own, self.prompt_targets)
        means = tokens_per_pair(own, self.prompt_targets) if own else {}
        sums = parallel.sum_metrics(parallel.gather({side: mean * len(own) for side, mean in means.items()}))
        return {side: tokens / total for side, tokens in sums.items()}

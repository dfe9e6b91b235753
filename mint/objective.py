"""From a model and a packed batch to a loss: the only bridge between models, data and losses.

Legend: B rows, T row length, H width, P pairs, L answer length, N predicted positions.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from mint.data.batch import CHOSEN, SIDES, Batch
from mint.losses import AnswerStats, Loss, LossOutput, Needs
from mint.losses.logprobs import TokenStats, token_stats
from mint.models.attention import Mask
from mint.models.llama import CausalLM
from mint.models.lora import reference


def preference_loss(
    model: CausalLM,
    batch: Batch,
    loss: Loss,
    frozen: CausalLM | None = None,
    tokens_per_pair: dict[str, float] | None = None,
) -> LossOutput:
    """The loss of one packed batch, with gradients to the trainable parameters of ``model``.

    frozen: the reference as a network of its own (full fine-tuning); by default the reference is ``model`` with its
    adapter as training found it. tokens_per_pair: predicted tokens per pair of each side, over all pairs of the update
    or evaluation that the batch is a part of (``mint.data.batch.tokens_per_pair``). The losses of the parts, weighted
    by their share of the pairs, then add up to the loss of all pairs at once. By default the batch is the whole.
    A side without tokens in this batch, such as a corrupted one where no pair has a twin, has an empty mask.
    """
    stats = predicted_stats(model, batch, loss.needs, frozen)
    with_prompt = len(batch.sides[SIDES["prompt"]].at) > 0 if tokens_per_pair is None else "prompt" in tokens_per_pair
    sides = {}
    for name in loss.needs.statistics:
        if name != "prompt" or with_prompt:
            count = None if tokens_per_pair is None else tokens_per_pair[name] * batch.pairs
            sides[name] = answer_stats(batch, stats, *SIDES[name], count)
            if not loss.needs.spans:
                sides[name] = replace(sides[name], span=None)
    return loss(**sides, **batch.fields)


def predicted_stats(model: CausalLM, batch: Batch, wants: Needs, frozen: CausalLM | None = None) -> TokenStats:
    """Per-token numbers at the N predicted positions: what a loss ``wants`` and nothing more."""
    if frozen is None and batch.images is not None and model.vision_is_frozen:
        with torch.no_grad():  # the same features for policy and reference
            batch = replace(batch, images=model.encode_images(batch.images))
    mask = model.attention_mask(batch)
    hidden = _predicting(model, batch, mask)
    ref_hidden = ref_head = ref_update = kl_positions = None
    if wants.reference:
        network = model if frozen is None else frozen
        with torch.no_grad(), reference(model) if frozen is None else nullcontext():
            ref_hidden, ref_head = _predicting(network, batch, mask), network.head_weight
            ref_update = network.head_update(ref_hidden)
    if wants.kl_forward or wants.kl_reverse:
        kl_positions = batch.kl_positions[wants.kl_over]
    return token_stats(
        hidden,
        model.head_weight,
        batch.targets,
        ref_hidden,
        ref_head,
        kl_forward=wants.kl_forward,
        kl_reverse=wants.kl_reverse,
        kl_positions=kl_positions,
        update=model.head_update(hidden),
        ref_update=ref_update,
    )


def _predicting(model: CausalLM, batch: Batch, mask: Mask) -> Tensor:
    """[N, H]: the final hidden states at the predicting positions."""
    return model.hidden_states(batch, mask).flatten(0, 1)[batch.predict]


def answer_stats(
    batch: Batch, stats: TokenStats, side: int, corrupted: bool = False, token_count: float | None = None
) -> AnswerStats:
    """The numbers of one side as dense [P, L] tensors; corrupted: under the corrupted images, empty for pairs without.

    token_count: as in ``AnswerStats``.
    """
    at, cells, length = batch.sides[side, corrupted]

    def dense(values: Tensor) -> Tensor:
        table = values.new_zeros(batch.pairs * length)
        return table.index_copy(0, cells, values[at]).view(batch.pairs, length)

    def optional(values: Tensor | None) -> Tensor | None:
        return None if values is None else dense(values)

    real = torch.ones_like(batch.targets, dtype=torch.bool)
    has_kl = side == CHOSEN and not corrupted  # where predicted_stats computes it
    return AnswerStats(
        logps=dense(stats.logps),
        mask=dense(real),
        ref_logps=optional(stats.ref_logps),
        span=optional(batch.span),
        kl_forward=optional(stats.kl_forward) if has_kl else None,
        kl_reverse=optional(stats.kl_reverse) if has_kl else None,
        token_count=token_count,
    )

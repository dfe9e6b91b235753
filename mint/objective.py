"""From a model and a packed batch to a loss: the only bridge between models, data and losses.

Legend: B rows, T row length, H width, P pairs, L answer length, N predicted positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mint.data.batch import CHOSEN, PROMPT, REJECTED, Batch
from mint.image_features import share_features
from mint.losses import AnswerStats, Loss, LossOutput
from mint.losses.logprobs import TokenStats, token_stats
from mint.models.lora import reference


def preference_loss(
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    frozen: nn.Module | None = None,
    tokens_per_pair: float | None = None,
) -> LossOutput:
    """The loss of one packed batch, with gradients to the trainable parameters of ``model``.

    frozen: the reference as a network of its own (full fine-tuning); by default the reference is ``model`` with its
    adapter as training found it. tokens_per_pair: predicted tokens on the NLL's side per pair over the whole update,
    when the batch is one of several micro-batches of equal size (see ``AnswerStats.token_count``).
    """
    stats = predicted_stats(model, batch, loss, frozen)
    sides = {"chosen": answer_stats(batch, stats, CHOSEN, tokens_per_pair)}
    if loss.needs.rejected:
        sides["rejected"] = answer_stats(batch, stats, REJECTED, tokens_per_pair)
    if loss.needs.corrupted_image and len(batch.twins):
        sides["corrupted_chosen"] = answer_stats(batch, stats, CHOSEN, corrupted=True)
        if loss.needs.corrupted_rejected:
            sides["corrupted_rejected"] = answer_stats(batch, stats, REJECTED, corrupted=True)
    if loss.needs.prompt and bool((batch.side == PROMPT).any()):
        sides["prompt"] = answer_stats(batch, stats, PROMPT, 0.0 if tokens_per_pair is not None else None)
    return loss(**sides)


def predicted_stats(model: nn.Module, batch: Batch, loss: Loss, frozen: nn.Module | None = None) -> TokenStats:
    """Per-token numbers at the N predicted positions: what ``loss`` needs and nothing more."""
    wants = loss.needs
    if frozen is None:
        batch = share_features(model, batch)
    hidden = _predicting(model, batch)
    ref_hidden = ref_head = kl_positions = None
    if wants.reference:
        with torch.no_grad():
            if frozen is not None:
                ref_hidden, ref_head = _predicting(frozen, batch), frozen.head_weight
            else:
                with reference(model):
                    ref_hidden, ref_head = _predicting(model, batch), model.head_weight
    if wants.kl_forward or wants.kl_reverse:
        kl_positions = (batch.side == CHOSEN) & batch.clean
        if wants.kl_over == "span" and batch.span is not None:
            kl_positions &= batch.span
    return token_stats(
        hidden,
        model.head_weight,
        batch.targets,
        ref_hidden,
        ref_head,
        kl_forward=wants.kl_forward,
        kl_reverse=wants.kl_reverse,
        kl_positions=kl_positions,
    )


def _predicting(model: nn.Module, batch: Batch) -> Tensor:
    """[N, H]: the final hidden states at the predicting positions."""
    return model.hidden_states(batch).flatten(0, 1)[batch.predict]


def answer_stats(
    batch: Batch, stats: TokenStats, side: int, tokens_per_pair: float | None = None, corrupted: bool = False
) -> AnswerStats:
    """The numbers of one side as dense [P, L] tensors; corrupted: under the corrupted images, empty for pairs without."""
    here = ((batch.side == side) & (batch.clean != corrupted)).nonzero().squeeze(1)
    pair, column = batch.pair[here], batch.column[here]
    if corrupted:
        pair = batch.twins[pair - batch.pairs]
    length = int(column.max()) + 1 if len(here) else 1

    def dense(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        table = values.new_zeros(batch.pairs, length)
        return table.index_put((pair, column), values[here])

    real = torch.ones_like(batch.targets, dtype=torch.bool)
    return AnswerStats(
        logps=dense(stats.logps),
        mask=dense(real),
        ref_logps=dense(stats.ref_logps),
        span=dense(batch.span),
        kl_forward=dense(stats.kl_forward),
        kl_reverse=dense(stats.kl_reverse),
        token_count=None if tokens_per_pair is None else tokens_per_pair * batch.pairs,
    )

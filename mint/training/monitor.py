"""Monitoring of the policy: evaluations, sample answers, and the order of the pairs before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mint import parallel
from mint.data.batch import EncodedPair
from mint.errors import quote
from mint.losses import AnswerStats, Loss, LossOutput, Needs
from mint.models.generate import generate
from mint.progress import Progress
from mint.training.forward import Forward
from mint.training.means import MeanMetrics
from mint.training.run_directory import RunDirectory
from mint.training.selection import check_metric
from mint.training.setup import Data
from mint.training.summary import describe_evaluation

COMPARED = 32  # training pairs whose order is measured before training
SAMPLED, MAX_TOKENS = 3, 128  # prompts that are answered, tokens of an answer


@torch.no_grad()
def evaluate(forward: Forward, pairs: Sequence[EncodedPair]) -> dict[str, float]:
    """Loss and metrics of the pairs, named ``eval/...``; they do not depend on the batch size."""
    training = forward.model.training
    forward.model.eval()
    mean = MeanMetrics()
    for batch, tokens, share in forward.micro_batches(pairs):
        mean.add(forward(batch, tokens), share)
    forward.model.train(training)
    means = parallel.sum_metrics(parallel.gather(mean.read()))
    return {f"eval/{name}": value for name, value in means.items()}


def evaluation_is_due(step: int, total: int, every: int) -> bool:
    """Before the first step, after the last, and every ``every`` steps (0: not in between)."""
    return step in (0, total) or every > 0 and step % every == 0


def log_evaluation(run: RunDirectory, forward: Forward, data: Data, step: int, best: str | None, bar: Progress) -> None:
    """Evaluates, logs and prints. Raises InputError if the metric ``best`` is not among the metrics."""
    row = {"step": step, **evaluate(forward, data.eval_pairs)}
    check_metric(row, best)
    run.log(row)
    bar.write(describe_evaluation(row))


def log_samples(run: RunDirectory, forward: Forward, data: Data, step: int, bar: Progress) -> None:
    """Greedy answers to the first ``SAMPLED`` evaluation (else training) pairs, in ``samples.jsonl`` and quoted."""
    if not parallel.is_main():
        return
    pairs = (data.eval_pairs or data.pairs)[:SAMPLED]

    def images(places: Sequence[int]) -> dict | None:
        files = [file for place in places for file in pairs[place].images]
        return forward.images(files) if files and forward.images else None

    prompts = [pair.prompt for pair in pairs]
    answers = generate(forward.model, data.tokenizer, prompts, MAX_TOKENS, images=images, batch_size=1)
    for pair, answer in zip(pairs, answers, strict=True):
        run.log_sample({"step": step, "id": pair.id, "answer": answer, "chosen": data.tokenizer.decode(pair.chosen)})
        bar.write(f"step {step}: {pair.id}: {quote(' '.join(answer.split()))}")


def _order(chosen: AnswerStats, rejected: AnswerStats) -> LossOutput:
    return LossOutput((chosen.logp_mean > rejected.logp_mean).float().mean())


def describe_order(forward: Forward, pairs: Sequence[EncodedPair]) -> str:
    """A sentence: for how many of the first ``COMPARED`` pairs the policy already prefers the chosen answer."""
    plain = [replace(pair, twin=None, fields={}) for pair in pairs[:COMPARED]]
    compare = replace(forward, loss=Loss("order", _order, Needs(), {}), frozen=None, prompt_targets=False)
    share = evaluate(compare, plain)["eval/loss"]
    return (
        f"before training, {100 * share:.0f} % of the first {len(plain)} pairs are in order: the chosen answer has "
        "the higher mean log-probability per token"
    )

"""Align a model on preference pairs: load, batch, forward, backward, step, log, save, in that order.

    python train.py --loss orpo                                      a demo; needs neither a model nor data
    python train.py --loss orpo --demo tissue                        the demo with images
    python train.py --loss fire --demo radiograph                    the demo of FiRe-MPO
    python train.py --loss orpo --model DIR --data pairs.jsonl       your model, your pairs

Read ``train_in`` from top to bottom. It imports the modules that need PyTorch, so that ``--help`` and mistakes in the
flags do not wait for them.
"""

from __future__ import annotations

import sys

try:
    import contextlib
    import math
    import time
    from collections.abc import Sequence
    from typing import TYPE_CHECKING

    from mint import parallel
    from mint.cli import StopSignal, choose_device, guard
    from mint.config import TrainConfig
    from mint.errors import InputError, Stopped
    from mint.flags import parse
    from mint.progress import Progress
    from mint.training.summary import describe_failure, describe_step
except KeyboardInterrupt:  # Ctrl-C before ``guard`` can tell
    print("interrupted", file=sys.stderr)
    sys.exit(130)

if TYPE_CHECKING:
    from mint.data.batch import EncodedPair
    from mint.training.forward import CollatedPairs, Forward
    from mint.training.run_directory import RunDirectory

FAILURES_IN_A_ROW = 10  # non-finite steps after which a run gives up


def train(config: TrainConfig) -> RunDirectory:
    """One training run; returns its directory.

    Raises InputError for anything the user can fix, and Stopped after a run that a signal ended (it can be resumed).
    """
    from mint.training.run_directory import open_run

    with open_run(config) as run:
        train_in(run, config)
    return run


def train_in(run: RunDirectory, config: TrainConfig) -> None:
    """The run, in its directory, which is locked."""
    import torch

    from mint.data.image_features import image_reader
    from mint.data.order import PairOrder, StepPairs
    from mint.optim import learning_rate, make_optimizer
    from mint.training import setup
    from mint.training.ahead import computed_ahead
    from mint.training.curves import plot_curves
    from mint.training.forward import Forward
    from mint.training.monitor import describe_order, evaluation_is_due, log_evaluation, log_samples
    from mint.training.reference_cache import cache_reference
    from mint.training.result import save_result
    from mint.training.resume import check_record, make_record
    from mint.training.run_directory import load_checkpoint
    from mint.training.track import open_tracker

    # Load the model and the data. What can be checked before is checked first.
    setup.check_processes(config)
    loss = setup.choose_loss(config)
    device, dtype = choose_device(config.device, config.dtype)
    torch.manual_seed(config.seed)
    model, frozen, config = setup.load_policy(config, loss, device, dtype)
    setup.choose_precision(config.tf32, device)
    data = setup.read_data(config, model, loss)
    optimizer = make_optimizer(model, config)

    # The steps of the run: they must be those of the checkpoint that it continues from, and of all processes.
    per_step = config.batch_size * config.grad_accum
    total = config.total_steps(len(data.pairs))
    record = make_record(config, dtype, data.pairs, total)
    parallel.check_same("settings or training pairs", record)
    for note in check_record(run.resumed, record) if run.resumed else []:
        print(note, file=sys.stderr)
    order = PairOrder(len(data.pairs), config.seed)

    def pairs_of(step: int) -> StepPairs:
        return StepPairs(data.pairs, order.step(step, per_step))

    # The forward pass: the shape of its batches, its images, its reference.
    shape = setup.compile_and_shape(config, [model, frozen] if frozen else [model], data, order)
    images = image_reader(model, data.processor, config.image_features, run.path) if data.processor else None
    autocast = dtype if config.full and dtype == torch.bfloat16 else None
    prompt_targets = setup.reads_prompt(config, loss)
    forward = Forward(
        model, loss, config.batch_size, frozen, shape, prompt_targets, images, autocast, lockstep=config.shard
    )
    if config.cache_reference:  # before a checkpoint is loaded: of the model as training found it
        epoch = range(min(total, math.ceil(len(data.pairs) / per_step)))
        forward = cache_reference(forward, data, list(map(pairs_of, epoch)), run.path / "reference")

    step = first = load_checkpoint(run.resumed, model, optimizer) if run.resumed else 0
    run.start(config, first, record)
    failures = 0

    with (
        contextlib.closing(images) if images else contextlib.nullcontext(),
        open_tracker(config.track if parallel.is_main() else None, run.path, record["settings"]) as run.track,
        StopSignal() as stop,
        computed_ahead(forward.collate, map(pairs_of, range(first, total))) as batches,
        Progress(total=total, initial=first, desc=config.loss, unit="step") as progress,
    ):
        if first == 0 and loss.needs.rejected:
            print(describe_order(forward, data.pairs))
        if data.eval_pairs and evaluation_is_due(first, total, config.eval_every) and not run.has_evaluation(first):
            log_evaluation(run, forward, data, first, config.best, progress)
        stalled = run.is_out_of_patience(config.best, config.patience)
        for step in range(first + 1, total + 1) if not stalled else ():
            started = time.perf_counter()
            lr = learning_rate(step - 1, total, config)
            collated = next(batches)
            parallel.seed_dropout(config.seed, step)
            metrics, tokens = accumulate_gradients(forward, collated, config.max_grad_norm)
            skipped: dict[str, list[str]] = {}

            if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                failures = 0
            else:
                failures += 1
                skipped["skipped"] = [pair.id for pair in collated.pairs]
                progress.write(f"step {step}: {describe_failure(metrics, skipped['skipped'])}; skipped")
            optimizer.zero_grad(set_to_none=True)

            seconds = time.perf_counter() - started
            run.log(
                {"step": step, **metrics, **skipped, "lr": lr, "tokens": tokens}
                | {"pairs": per_step, "epoch": step * per_step / len(data.pairs), "step_seconds": seconds}
            )
            progress.update(values=describe_step(metrics, tokens / seconds))
            stop.agree()
            ends = step == total or stop.number is not None or failures == FAILURES_IN_A_ROW
            evaluates = data.eval_pairs and evaluation_is_due(step, total, config.eval_every)
            saves = ends or config.best and evaluates or config.save_every and step % config.save_every == 0
            if config.sample_every and step % config.sample_every == 0:  # first: a resumed run does not repeat it
                log_samples(run, forward, data, step, progress)
            if saves:
                run.save_checkpoint(step, model, optimizer, config.keep, config.best)
            if evaluates:
                log_evaluation(run, forward, data, step, config.best, progress)
                stalled = run.is_out_of_patience(config.best, config.patience)
            if ends or stalled:
                break

    failed = failures == FAILURES_IN_A_ROW
    if finished := (step == total or stalled) and not failed:
        if step < total:
            print(f"step {step}: {config.patience} evaluations without a better {config.best}; training ends early")
        save_result(run, config, model, len(data.pairs), step)
    if parallel.is_main():
        plot_curves(run.rows(), run.path / "curves.png")
    if failed:
        raise InputError(f"{failures} steps in a row had a non-finite loss or gradient; lower --lr or look at the data")
    if stop.number is not None:
        unfinished = f"stopped after step {step} of {total}; continue with --resume auto --out {run.path}"
        raise Stopped(stop.number, "stopped after the last step" if finished else unfinished)


def accumulate_gradients(
    forward: Forward, step_pairs: Sequence[EncodedPair] | CollatedPairs, max_norm: float = 0
) -> tuple[dict[str, float], int]:
    """Gradients of one optimiser step, in micro-batches that add up to the gradient of one large batch.

    step_pairs: the pairs, or the micro-batches that were made of them. Several processes share the micro-batches; all
    of them then have the gradients of the step. max_norm: of the gradients, which are scaled down to it; 0: as they
    are. Returns the mean metrics, with ``grad_norm`` before scaling, and the number of tokens, of all processes. One
    process waits for the device once, several once more, for they first exchange metrics and gradients.
    """
    from mint.optim import clip_gradients
    from mint.training.means import MeanMetrics

    means, computed = MeanMetrics(), 0
    for batch, tokens, share in forward.micro_batches(step_pairs):
        output = forward(batch, tokens)
        (output.loss * share).backward()
        means.add(output, share)
        computed += batch.token_total
    if parallel.size() == 1:
        means.include("grad_norm", clip_gradients(forward.model, max_norm))
        return means.read(), computed
    metrics, computed = parallel.sum_step(forward.model.parameters(), means.read(), computed)
    return metrics | {"grad_norm": float(clip_gradients(forward.model, max_norm))}, computed


def run(config: TrainConfig) -> None:
    """Trains on the given pairs, or describes that run (``--dry-run``), or runs a demo where no pairs are given."""
    if parallel.size() > 1 and (config.dry_run or config.model is None):
        what = "--dry-run" if config.dry_run else "the demo"
        raise InputError(f"{what} runs in one process: start it without torchrun")
    if config.dry_run:
        from mint.training.dry_run import dry_run

        dry_run(config)
    elif config.model is not None:
        train(config)
    else:
        from mint.demo import run_demo

        run_demo(config, train)


def main(argv: Sequence[str] | None = None) -> int:
    def job() -> None:
        from mint.training.out_of_memory import explain_out_of_memory

        config = parse(TrainConfig, argv, __doc__.splitlines()[0])
        with explain_out_of_memory(config):
            run(config)

    return guard(job, several=True)


if __name__ == "__main__":
    sys.exit(main())

"""Align a model on preference pairs: load, batch, objective, backward, step, log, save, in that order.

    python train.py --loss orpo                                      the embedded default, nothing needed
    python train.py --loss orpo --demo tissue                        the one with images
    python train.py --loss fire --demo radiograph                    the one of FiRe-MPO
    python train.py --loss orpo --model DIR --data pairs.jsonl       your model, your pairs

Read ``train`` from top to bottom; each line calls a function whose name says the rest.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from mint.cli import StopSignal, choose_device, guard
from mint.config import TrainConfig, parse
from mint.data.batch import Batch, EncodedPair, encode_pairs, make_batches, tokens_per_pair
from mint.data.chat import load_tokenizer
from mint.data.image_features import ImageReader, check_image_features, image_reader
from mint.data.images import Processor, processor_of
from mint.data.order import PairOrder, batch_shape
from mint.data.preferences import read_preferences
from mint.data.record_images import ImageSlots, find_images
from mint.data.spans import mark_changes
from mint.demo import disease_demo, radiograph_demo, tissue_demo
from mint.errors import InputError, Stopped
from mint.losses import Loss, LossOutput, load_loss
from mint.losses.check import check_loss
from mint.models import load_language_model
from mint.models.attention import SPLIT_FROM
from mint.models.lora import (
    adapter_settings,
    add_lora,
    find_targets,
    keep_as_reference,
    load_adapter,
    lora_layers,
    merge_lora,
    target_modules,
)
from mint.models.serving import vllm_command
from mint.objective import preference_loss
from mint.optim import clip_gradients, learning_rate, make_optimizer
from mint.progress import Progress
from mint.training.curves import plot_curves
from mint.training.resume import check_record, make_record
from mint.training.run_directory import RunDirectory, check_run, find_checkpoint, load_checkpoint
from mint.training.summary import describe_evaluation, summarize

FAILURES_IN_A_ROW = 10  # non-finite steps after which a run gives up
DEMOS = {"disease": disease_demo, "tissue": tissue_demo, "radiograph": radiograph_demo}


def train(config: TrainConfig) -> RunDirectory:
    """One training run; returns its directory.

    Raises InputError for anything the user can fix, and Stopped after a run that a signal ended (it can be resumed).
    """
    loss = choose_loss(config)
    device, dtype = choose_device(config.device, config.dtype)
    compiled = device.type == "cuda" if config.compile is None else config.compile
    check_run(config)
    checkpoint = find_checkpoint(config)
    torch.manual_seed(config.seed)

    model, config = load_policy(config, device, dtype)
    frozen = copy.deepcopy(model).requires_grad_(False).eval() if config.full and loss.needs.reference else None
    if config.image_features:
        check_image_features(model)
    processor = processor_of(model, config.max_pixels)
    pairs = read_pairs(config.data, config, model, loss, processor)
    eval_pairs = read_pairs(config.eval_data, config, model, loss, processor) if config.eval_data else []
    warn_of_missing(pairs, loss, config.data)

    per_step = config.batch_size * config.grad_accum
    total = config.steps or math.ceil(config.epochs * len(pairs) / per_step)
    record = make_record(config, dtype, pairs, total)
    for note in check_record(checkpoint, record) if checkpoint else []:
        print(note, file=sys.stderr)
    order = PairOrder(len(pairs), config.seed)
    split_from = SPLIT_FROM if device.type == "cpu" and model.config.sliding_window is None else None
    batches = total * config.grad_accum
    shape = batch_shape(pairs, eval_pairs, order, config.batch_size, batches, compiled, split_from)
    if compiled:
        for network in filter(None, (model, frozen)):
            network.compile_blocks()
    model.gradient_checkpointing = config.checkpoint_activations
    precision = torch.autocast(device.type, torch.bfloat16) if config.full and dtype == torch.bfloat16 else None

    optimizer = make_optimizer(model, config)
    run = RunDirectory(config)
    images = image_reader(model, processor, config.image_features, run.path) if processor else None
    work = Work(model, frozen, loss, device, precision or contextlib.nullcontext(), reads_prompt(config, loss), images)
    step = first = load_checkpoint(checkpoint, model, optimizer) if checkpoint else 0
    run.start(config, first, record)
    failures = 0

    with (
        contextlib.closing(images) if images else contextlib.nullcontext(),
        StopSignal() as stop,
        Progress(total=total, initial=first, desc=config.loss, unit="step") as progress,
    ):
        if eval_pairs and evaluation_is_due(first, total, config.eval_every) and not run.has_evaluation(first):
            log_evaluation(run, progress, {"step": first, **evaluate(work, eval_pairs, config.batch_size, shape)})
        for step in range(first + 1, total + 1):
            started = time.perf_counter()
            lr = set_learning_rate(optimizer, learning_rate(step - 1, total, config))
            chosen = [pairs[i] for i in order.step(step - 1, per_step)]
            metrics, tokens = accumulate_gradients(work, chosen, config.batch_size, shape)
            grad_norm = clip_gradients(model, config.max_grad_norm)

            if math.isfinite(metrics["loss"]) and math.isfinite(grad_norm):
                optimizer.step()
                failures = 0
            else:
                failures += 1
                metrics["skipped"] = [pair.id for pair in chosen]
                progress.write(f"step {step}: {describe_failure(metrics, grad_norm)}; skipped")
            optimizer.zero_grad(set_to_none=True)

            seconds = time.perf_counter() - started
            run.log(
                {"step": step, **metrics, "lr": lr, "grad_norm": grad_norm, "tokens": tokens, "pairs": len(chosen)}
                | {"epoch": step * per_step / len(pairs), "step_seconds": seconds}
            )
            show(progress, metrics, tokens / seconds)
            ends = step == total or stop.number is not None or failures == FAILURES_IN_A_ROW
            if ends or config.save_every and step % config.save_every == 0:
                run.save_checkpoint(step, model, optimizer, config.keep)
            if eval_pairs and evaluation_is_due(step, total, config.eval_every):
                log_evaluation(run, progress, {"step": step, **evaluate(work, eval_pairs, config.batch_size, shape)})
            if ends:
                break

    failed = failures == FAILURES_IN_A_ROW
    result = run.save_result(model) if step == total and not failed else None
    plot_curves(run.rows(), run.path / "curves.png")
    if failed:
        raise InputError(f"{failures} steps in a row had a non-finite loss or gradient; lower --lr or look at the data")
    if result is None:
        message = f"stopped after step {step} of {total}; continue with --resume auto --out {run.path}"
        raise Stopped(stop.number, message)
    print("\n".join(filter(None, [summarize(run.rows()), f"saved {result}, metrics and curves in {run.path}"])))
    if command := vllm_command(model, result) if lora_layers(model) else None:
        print(f"serve it with {command}")
    if stop.number is not None:
        raise Stopped(stop.number, "stopped after the last step")
    return run


def choose_loss(config: TrainConfig) -> Loss:
    """The loss of the run. Raises InputError if it does not work with these settings; nothing else is loaded yet."""
    loss = load_loss(config.loss, config.loss_options())
    if config.nll_over == "sequence" and not loss.needs.prompt:
        raise InputError(f"--nll-over sequence is for losses with an NLL over the prompt, which {config.loss} is not")
    check_loss(loss, reads_prompt(config, loss))
    return load_loss(config.loss, config.loss_options())  # a custom one anew, as if it had not been called yet


def reads_prompt(config: TrainConfig, loss: Loss) -> bool:
    """Whether the prompt's own tokens are predicted: where that was asked for, and for losses that require them."""
    return loss.needs.prompt and (config.nll_over == "sequence" or loss.requires("prompt"))


def load_policy(config: TrainConfig, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, TrainConfig]:
    """The model to train: frozen under an adapter in float32, or with ``--full`` all of it in float32.

    Returns it with the settings, in which rank, alpha, dropout and targets are the adapter's.
    """
    model = load_language_model(config.model, dtype=torch.float32 if config.full else dtype, device=device)
    if config.adapter and config.full:
        merge_lora(load_adapter(model, config.adapter), drop=True)
    elif config.adapter:
        wanted = find_targets(model, config.lora_targets) if config.lora_targets else None
        covered = lora_layers(load_adapter(model, config.adapter))
        targets = ",".join(target_modules(model))
        if wanted is not None and set(wanted) != set(covered):
            raise InputError(
                f"--lora-targets {config.lora_targets}: the adapter in {config.adapter} covers other layers "
                f"({targets}); leave --lora-targets out"
            )
        keep_as_reference(model)
        config = replace(config, **adapter_settings(config.adapter), lora_targets=targets)
    if config.full:
        model.requires_grad_(True)
        config = replace(config, **dict.fromkeys(config.LORA_DEFAULTS))  # settings of an adapter do not apply
    elif not config.adapter:
        unset = {name: value for name, value in config.LORA_DEFAULTS.items() if getattr(config, name) is None}
        config = replace(config, **unset)
        add_lora(model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets, config.rslora)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{config.model}: {sum(p.numel() for p in model.parameters()):,} parameters, {trainable:,} trained")
    return model.train(), config


def read_pairs(
    path: str, config: TrainConfig, model: nn.Module, loss: Loss, processor: Processor | None
) -> list[EncodedPair]:
    """The pairs of a file as token ids, every problem reported before anything trains."""
    preferences = read_preferences(path, require_rejected=loss.needs.rejected, fields=loss.needs.fields)
    if not loss.needs.rejected:
        preferences = [replace(preference, rejected=None) for preference in preferences]
    corrupted = ("chosen", "rejected")[: 1 + loss.needs.corrupted_rejected] if loss.needs.corrupted_image else ()
    if config.spans == "changes" and loss.needs.spans and loss.needs.rejected:
        sides = [mark_changes(preference.chosen.text, preference.rejected.text) for preference in preferences]
        preferences = [replace(p, chosen=a, rejected=b) for p, (a, b) in zip(preferences, sides, strict=True)]
    preferences = find_images(preferences, path, config.images_anywhere, bool(corrupted))
    slots = ImageSlots(*model.image_slots, processor) if processor else None
    tokenizer = load_tokenizer(model.source_dir, chat_date=config.chat_date)
    vocabulary = model.decoder.embed_tokens.num_embeddings
    limit = min(config.max_length, model.config.max_position_embeddings)
    pairs, report = encode_pairs(
        preferences, tokenizer, limit, config.overlength, loss.needs.spans, slots, corrupted, loss.needs.fields
    )
    largest = max(max(pair.prompt + pair.chosen + pair.rejected) for pair in pairs)
    if largest >= vocabulary:
        raise InputError(f"the tokenizer gives id {largest}, the model knows {vocabulary}: they do not belong together")
    print(f"{path}: {report}")
    return pairs


def warn_of_missing(pairs: Sequence[EncodedPair], loss: Loss, path: str) -> None:
    """Warns of pairs that lack what a term of the loss works on."""
    if loss.needs.spans and all(pair.chosen_span is None for pair in pairs):
        missing = "marks a span: every token carries the reward (--spans changes marks where two answers differ)"
        print(f"warning: no record of {path} {missing}", file=sys.stderr)
    if loss.needs.corrupted_image and all(pair.twin is None for pair in pairs):
        missing = "has corrupted_images: the image term is left out (generate_prefs.py corrupt adds them)"
        print(f"warning: no record of {path} {missing}", file=sys.stderr)


@dataclass(frozen=True)
class Work:
    """What a forward pass needs beside the batch."""

    model: nn.Module
    frozen: nn.Module | None
    loss: Loss
    device: torch.device
    precision: contextlib.AbstractContextManager
    prompt_targets: bool
    images: ImageReader | None

    def __call__(self, batch: Batch, tokens: dict[str, float]) -> LossOutput:
        """tokens: per pair, by side, over all pairs that the batch is a part of."""
        if batch.image_files:
            batch = replace(batch, images=self.images(batch.image_files))
        with self.precision:
            return preference_loss(self.model, batch.to(self.device), self.loss, self.frozen, tokens)

    def parts(
        self, pairs: Sequence[EncodedPair], batch_size: int, shape: dict[str, int]
    ) -> Iterator[tuple[Batch, LossOutput, float]]:
        """(batch, its loss, its share of the pairs) of each part of ``batch_size`` pairs.

        The losses, each times its share, sum to that of one large batch; so do the metrics.
        """
        tokens = tokens_per_pair(pairs, self.prompt_targets)
        for batch in make_batches(pairs, batch_size, **shape, prompt_targets=self.prompt_targets):
            yield batch, self(batch, tokens), batch.pairs / len(pairs)


def accumulate_gradients(
    work: Work, chosen: Sequence[EncodedPair], batch_size: int, shape: dict[str, int]
) -> tuple[dict[str, float], int]:
    """Gradients of one optimiser step, in micro-batches that add up to the gradient of one large batch.

    Returns the mean metrics and the number of tokens computed.
    """
    mean: dict[str, float] = {}
    computed = 0
    for batch, output, share in work.parts(chosen, batch_size, shape):
        (output.loss * share).backward()
        for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
            mean[name] = mean.get(name, 0.0) + share * float(value)
        computed += batch.token_total
    return mean, computed


@torch.no_grad()
def evaluate(work: Work, pairs: Sequence[EncodedPair], batch_size: int, shape: dict[str, int]) -> dict[str, float]:
    """Loss and metrics of the evaluation pairs, named ``eval/...``; they do not depend on ``batch_size``."""
    work.model.eval()
    mean: dict[str, float] = {}
    for _, output, share in work.parts(pairs, batch_size, shape):
        for name, value in {"loss": output.loss, **output.metrics}.items():
            mean[f"eval/{name}"] = mean.get(f"eval/{name}", 0.0) + share * float(value)
    work.model.train()
    return mean


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def describe_failure(metrics: dict, grad_norm) -> str:
    what = "loss" if not math.isfinite(metrics["loss"]) else "gradient"
    return f"non-finite {what} (loss {metrics['loss']}, gradient norm {float(grad_norm)}) on {metrics['skipped']}"


def evaluation_is_due(step: int, total: int, every: int) -> bool:
    """Before the first step, after the last, and every ``every`` steps (0: not in between)."""
    return step in (0, total) or every > 0 and step % every == 0


def log_evaluation(run: RunDirectory, progress: Progress, row: dict) -> None:
    run.log(row)
    progress.write(describe_evaluation(row))


def show(progress: Progress, metrics: dict, tokens_per_second: float) -> None:
    margin = metrics.get("rewards/margins")
    shown = {"loss": f"{metrics['loss']:.4f}", "tok/s": f"{tokens_per_second:,.0f}"}
    if margin is not None:
        shown["margin"] = f"{margin:.3f}"
    progress.update(values=shown)


def run(argv: Sequence[str] | None) -> None:
    config = parse(TrainConfig, argv, __doc__.splitlines()[0])
    if config.model is None:
        loss = choose_loss(config)  # before anything is built
        demo = config.demo or ("radiograph" if loss.needs.corrupted_image else "disease")
        DEMOS[demo].run(config, train)
    else:
        train(config)


def main(argv: Sequence[str] | None = None) -> int:
    return guard(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())

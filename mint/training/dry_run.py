"""``train.py --dry-run``: what a run would read, how its batches are packed, and what a step would cost.

Everything is read but the weights, of which only names and shapes are; nothing is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from mint.cli import choose_device
from mint.config import TrainConfig
from mint.data.batch import Batch, EncodedPair
from mint.data.chat import ChatTokenizer
from mint.data.image_features import ImageReader, frozen_encoder
from mint.data.images import Processor
from mint.data.order import PairOrder
from mint.data.pair_summary import render_pair
from mint.errors import InputError, shows_text
from mint.losses import Loss
from mint.models import load_structure
from mint.models.llama import CausalLM
from mint.models.lora import lora_layers
from mint.objective import kl_positions
from mint.optim import make_optimizer
from mint.training import setup
from mint.training.forward import Forward
from mint.training.reference_cache import cache_bytes, reference_head
from mint.training.run_directory import check_run
from mint.training.step_trace import KINDS, Fakes, StepTrace, trace_step

LOOKED = 2000  # pairs, from the first, whose packing is measured
SHOWN_ROWS = 16  # of the first batch
UNTRACEABLE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


def dry_run(config: TrainConfig) -> StepTrace:
    """Reads what a run would read, prints what it would do, and returns the estimate of a step.

    Raises InputError for what would stop the run before its first step, and for a loss that cannot be traced.
    """
    loss = setup.choose_loss(config)
    device, dtype = choose_device(config.device, config.dtype, absent=True)
    check_run(config)
    model, frozen, config = setup.load_policy(config, loss, torch.device("meta"), dtype, load_structure)
    print(describe_sizes(model, frozen))
    data = setup.read_data(config, model, loss)

    order, total = PairOrder(len(data.pairs), config.seed), config.total_steps(len(data.pairs))
    forward = _fake_forward(config, loss, model, frozen, data, dtype)
    if config.cache_reference:
        print(f"reference cache: {scaled(cache_bytes(forward, [*data.pairs, *data.eval_pairs]), 'B')} on disk")
    forward.shape.update(_row_shape(config, data, order, device))
    per_step = config.batch_size * config.grad_accum
    steps = [order.step(step, per_step) for step in range(min(total, max(1, LOOKED // per_step)))]
    packing = measure_packing(forward, [[data.pairs[i] for i in step] for step in steps])
    print(f"optimiser steps: {total}, of {per_step} pairs and {packing.tokens / packing.steps:,.0f} tokens\n{packing}")
    first, _, _ = next(forward.micro_batches(packing.first))
    print(describe_batch(first, data.tokenizer))
    try:
        optimizer = make_optimizer(model, config)
        trace = trace_step(forward, packing.largest, optimizer, config.max_grad_norm, device.type == "cuda")
    except UNTRACEABLE as error:
        raise InputError(
            f"memory and operations cannot be estimated: {config.loss} depends on values ({error})"
        ) from None
    print(describe_trace(trace, device))
    return trace


def _fake_forward(
    config: TrainConfig, loss: Loss, model: CausalLM, frozen: CausalLM | None, data: setup.Data, dtype: torch.dtype
) -> Forward:
    """The forward pass of the run; its models become fake, and the images that it reads are."""
    fakes, images = Fakes(), None
    for network in filter(None, (model, frozen)):
        fakes.fill(network)
    if data.processor is not None:
        processor: Any = _FakeProcessor(fakes, data.processor)
        images = ImageReader(processor, frozen_encoder(model))
    autocast = dtype if config.full and dtype == torch.bfloat16 else None
    prompt_targets = setup.reads_prompt(config, loss)
    forward = Forward(model, loss, config.batch_size, frozen, {}, prompt_targets, images, autocast)
    if config.cache_reference:
        store: Any = _FakeReferenceStore(fakes, forward)
        forward = replace(forward, reference=store, frozen=reference_head(forward))
    return forward


@dataclass(frozen=True)
class _FakeProcessor:
    """An image processor whose pixels are fake."""

    fakes: Fakes
    processor: Processor

    def __call__(self, images) -> dict[str, Tensor]:
        return self.fakes.floats(self.processor(images))


@dataclass(frozen=True)
class _FakeReferenceStore:
    """A store of the reference that holds fake values of every pair."""

    fakes: Fakes
    forward: Forward

    def add_to(self, batch: Batch) -> Batch:
        norm, needs = self.forward.model.decoder.norm.weight, self.forward.loss.needs
        sums = torch.promote_types(norm.dtype, torch.float32)
        known = {"logps": self.fakes.like(torch.empty(len(batch.targets), dtype=sums, device="meta"))}
        if (positions := kl_positions(batch, needs)) is not None:
            at = positions.nonzero().squeeze(1)
            states = torch.empty(len(at), norm.numel(), dtype=norm.dtype, device="meta")
            known |= {"at": at, "hidden": self.fakes.like(states)}
        return replace(batch, reference=known)


def _row_shape(config: TrainConfig, data: setup.Data, order: PairOrder, device: torch.device) -> dict[str, int]:
    """The shape of the run's batches on ``device``; nothing is compiled."""
    network: Any = SimpleNamespace(head_weight=SimpleNamespace(device=device), compile_blocks=lambda: None)
    return setup.compile_and_shape(config, [network], data, order)


def describe_sizes(model: nn.Module, frozen: nn.Module | None) -> str:
    """Parameters and bytes of the model without its adapter, of the adapter, and of a reference of its own."""
    layers = lora_layers(model).values()
    adapter = [p for layer in layers for part in (layer.lora_A, layer.lora_B) for p in part.parameters()]
    own = {id(p) for p in adapter}
    parts = {
        "model": [p for p in model.parameters() if id(p) not in own],
        "adapter": adapter,
        "reference model": list(frozen.parameters()) if frozen is not None else [],
    }
    lines = []
    for name, parameters in parts.items():
        if parameters:
            count, size = sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)
            dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
            lines.append(f"{name}: {count:,} parameters, {scaled(size, 'B')} in {dtypes}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Packing:
    """Sums over micro-batches. first: the pairs of the first step. largest: those of the step with the largest one."""

    batches: int
    steps: int
    tokens: int
    cells: int
    rows: tuple[int, int]  # fewest and most of a batch
    lengths: tuple[int, int]
    first: Sequence[EncodedPair]
    largest: Sequence[EncodedPair]

    def __str__(self) -> str:
        rows, lengths = (_range(*ends) for ends in (self.rows, self.lengths))
        return (
            f"packing: {rows} {_row_word(self.rows[1])} of {lengths} cells in the first {self.batches} forward passes; "
            f"{100 * self.tokens / self.cells:.1f} % of the cells hold tokens"
        )


def measure_packing(forward: Forward, steps: Sequence[Sequence[EncodedPair]]) -> Packing:
    """How the pairs of ``steps`` fill the rows of their batches."""
    tokens, cells, shapes, most, largest = 0, 0, [], 0, steps[0]
    for pairs in steps:
        for batch, _, _ in forward.micro_batches(pairs):
            shapes.append(tuple(batch.tokens.shape))
            tokens, cells = tokens + batch.token_total, cells + batch.tokens.numel()
            if batch.tokens.numel() > most:
                most, largest = batch.tokens.numel(), pairs
    rows, lengths = zip(*shapes, strict=True)
    ends = (min(rows), max(rows)), (min(lengths), max(lengths))
    return Packing(len(shapes), len(steps), tokens, cells, *ends, steps[0], largest)


def describe_batch(batch: Batch, tokenizer: ChatTokenizer) -> str:
    """The rows of a batch as numbers, and with ``--show-text`` its pairs as the model reads them."""
    lines = [f"first batch: {len(batch.tokens)} {_row_word(len(batch.tokens))} of {batch.tokens.shape[1]:,} cells"]
    for number, row in enumerate(batch.segments[:SHOWN_ROWS], 1):
        parts = [_describe_pair(batch, int(index)) for index in (row[row >= 0] // 3).unique_consecutive()]
        lines.append(f"  row {number}: {'; '.join([*parts, f'padding {int((row < 0).sum())}'])}")
    if len(batch.segments) > SHOWN_ROWS:
        lines.append(f"  and {len(batch.segments) - SHOWN_ROWS} more")
    if shows_text():
        colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        lines += [render_pair(pair, tokenizer, colours) for pair in batch.records]
    return "\n".join(lines)


def _describe_pair(batch: Batch, index: int) -> str:
    pair = batch.records[index if index < batch.pairs else int(batch.twins[index - batch.pairs])]
    name = pair.id
    if index >= batch.pairs:
        name, pair = f"{name} with corrupted images", pair.twin or pair
    images = pair.prompt.count(pair.image_token)
    marked = [f"{sum(span)} in spans" if span else "" for span in (pair.chosen_span, pair.rejected_span)]
    roles = [f"prompt {len(pair.prompt)}" + (f" ({images} of images)" if images else "")]
    for role, answer, spans in zip(("chosen", "rejected"), (pair.chosen, pair.rejected), marked, strict=True):
        roles.append(f"{role} {len(answer)}" + (f" ({spans})" if spans else ""))
    return f"{name}: {', '.join(roles)}"


def describe_trace(trace: StepTrace, device: torch.device) -> str:
    """The estimate as a table: of each kind of tensor, the bytes at the peak of the whole and its own highest."""
    lines = [
        f"the step with the largest batch: {scaled(trace.flops, 'FLOP')}, and in the memory of {device.type}:",
        f"{'':<16}{'at the peak':>12}{'at most':>12}",
    ]
    for kind in KINDS:
        if trace.highest[kind]:
            lines.append(f"{kind:<16}{scaled(trace.peak[kind], 'B'):>12}{scaled(trace.highest[kind], 'B'):>12}")
    lines.append(f"{'total':<16}{scaled(trace.total, 'B'):>12}")
    if device.type == "cuda":
        lines.append("Compiled layers take up to a tenth more or less; CUDA itself adds about 1 GB.")
    return "\n".join(lines)


def _row_word(count: int) -> str:
    return "row" if count == 1 else "rows"


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def scaled(value: float, unit: str) -> str:
    """Three digits and a prefix: 2470000000, "B" -> "2.47 GB"."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 999.5 or prefix == "P":
            break
        value /= 1000
    return f"{value:.3g} {prefix}{unit}"

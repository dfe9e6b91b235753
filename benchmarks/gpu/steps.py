"""Training steps as ``train.py`` takes them, at the shapes of ``problems``: time, memory, graphs, operations."""

from __future__ import annotations

import contextlib
import functools
import gc
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch._dynamo.utils import counters

from benchmarks.gpu.flops import count_flops
from benchmarks.gpu.problems import PROBLEMS, Problem
from benchmarks.step_worker import BETA, CLIP, LEARNING_RATE, fill
from mint.cli import choose_device
from mint.config import TrainConfig
from mint.data.encode import EncodedPair
from mint.data.image_features import ImageReader, image_reader
from mint.data.order import PairOrder, StepPairs
from mint.data.processors.qwen_vl import QwenVLImageProcessor
from mint.models import init_model
from mint.models.llama import CausalLM
from mint.models.lora import add_lora
from mint.models.recompute import set_recompute
from mint.optim import make_optimizer
from mint.training import setup
from mint.training.ahead import computed_ahead
from mint.training.forward import CollatedPairs, Forward
from train import accumulate_gradients

SPAN = slice(5, 10)  # the marked tokens of an answer
Emit = Callable[[dict], None]


@dataclass(frozen=True)
class Setting:
    """What the objectives of a model share."""

    problem: Problem
    model: CausalLM
    pairs: list[EncodedPair]
    shape: dict[str, Any]
    processor: QwenVLImageProcessor | None
    folder: Path


def measure_steps(problem: str, objectives: Sequence[str], steps: int, emit: Emit) -> None:
    """Emits two rows for each objective: activations kept, and layers recomputed in the backward pass."""
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(PROBLEMS[problem], steps, Path(folder))
        for objective in objectives:
            for recompute in (False, True):
                row = {"problem": problem, "objective": objective, "side": "ours", "recompute": recompute}
                set_recompute(setting.model, recompute)
                try:
                    row |= measure_objective(setting, objective, steps)
                except torch.OutOfMemoryError as error:
                    row["failure"] = f"out of memory: {str(error).partition('. ')[0]}"
                emit(row)
                setting.model.zero_grad(set_to_none=True)  # after the block: the error no longer holds its frames
                gc.collect()
                torch.cuda.empty_cache()


def prepare(problem: Problem, steps: int, folder: Path) -> Setting:
    """The model with its adapter on the device, compiled, and the pairs of ``steps`` steps."""
    device, dtype = choose_device("auto", "auto")
    setup.choose_precision(True, device)
    model = init_model(problem.config, dtype=dtype, device=device)
    add_lora(model, problem.rank, 2 * problem.rank)
    model.train()
    processor = None
    if problem.side:
        vision = problem.config["vision_config"]
        processor = QwenVLImageProcessor({"patch_size": vision["patch_size"], "min_pixels": 1})
    pairs = encoded_pairs(problem, steps * problem.per_step, folder)
    if device.type == "cpu":  # traced like on CUDA, without breaks, but not compiled, which takes minutes
        model.attention_backend = "dense"
        model.compile_blocks = functools.partial(model.compile_blocks, backend="eager")
    config, data = make_config(problem, "fire"), setup.Data(pairs, [], None, processor)
    shape = setup.compile_and_shape(config, [model], data, PairOrder(len(pairs), config.seed))
    return Setting(problem, model, pairs, shape, processor, folder)


def make_config(problem: Problem, objective: str) -> TrainConfig:
    """The settings of the run; as in TRL, ORPO's NLL is over prompt and answer."""
    return TrainConfig(
        loss=objective, beta=BETA, nll_over="sequence" if objective == "orpo" else "response", compile=True,
        batch_size=problem.batch_size, grad_accum=problem.per_step // problem.batch_size, lr=LEARNING_RATE,
        max_grad_norm=CLIP,
    )  # fmt: skip


def encoded_pairs(problem: Problem, count: int, folder: Path) -> list[EncodedPair]:
    """The problem's pairs with marked spans, and where it has images, with a corrupted twin."""
    pairs = []
    for number, ids in enumerate(problem.pairs(count)):
        marks = {f"{side}_span": _marks(len(ids[side])) for side in ("chosen", "rejected")}
        pair = EncodedPair(str(number), **ids, **marks)
        if problem.side:
            token = problem.config["image_token_id"]
            clean, corrupted = (
                _write_image(folder / f"{name}.jpg", problem.side)
                for name in (f"clean-{number % -(-count // problem.sharing)}", f"corrupted-{number}")
            )
            words = [id for id in pair.prompt if id != token]
            prompt = [words[0], *[token] * problem.image_tokens, *words[1:]]
            pair = replace(pair, prompt=prompt, images=(clean,), image_token=token)
            pair = replace(pair, twin=replace(pair, images=(corrupted,)))
        pairs.append(pair)
    return pairs


def _marks(length: int) -> list[bool]:
    return [place in range(length)[SPAN] or length <= SPAN.start for place in range(length)]


def _write_image(path: Path, side: int) -> str:
    """A square of random pixels."""
    if not path.exists():
        pixels = random.Random(path.name).randbytes(side * side * 3)
        Image.frombytes("RGB", (side, side), pixels).save(path)
    return str(path)


def measure_objective(setting: Setting, objective: str, count: int) -> dict:
    """Takes every step once, after each of the batches' shapes has been met twice; the numbers of a row."""
    problem, model, pairs = setting.problem, setting.model, setting.pairs
    config = make_config(problem, objective)
    loss = setup.choose_loss(config)
    fill(model)  # the adapter too: other objectives have trained it
    optimizer = make_optimizer(model, config)
    order = PairOrder(len(pairs), config.seed)
    steps = [StepPairs(pairs, order.step(number, problem.per_step)) for number in range(count)]
    forward = Forward(model, loss, config.batch_size, None, setting.shape, setup.reads_prompt(config, loss))
    device, graphs = model.head_weight.device, [compiled_graphs()]
    with reading_images(setting) as images:
        forward = replace(forward, images=images)
        first, _ = accumulate_gradients(forward, pairs[: problem.per_step])
        optimizer.zero_grad(set_to_none=True)
        for _ in range(2):
            for collated in new_shapes(forward, steps):
                take_step(forward, optimizer, collated, config)
    graphs.append(compiled_graphs())
    tokens = cells = 0
    with (
        reading_images(setting) as images,
        computed_ahead(replace(forward, images=images).collate, steps) as steps_ahead,
    ):
        forward = replace(forward, images=images)
        reset_peak(device)
        started = now(device)
        for collated in steps_ahead:
            tokens += take_step(forward, optimizer, collated, config)
            cells += sum(batch.tokens.numel() for batch in collated.batches)
        seconds = now(device) - started
    graphs.append(compiled_graphs())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with_twins = [pair for each in pairs for pair in (each, each.twin if loss.needs.corrupted_image else None) if pair]
    lengths = [(len(pair.prompt), len(pair.chosen), len(pair.rejected)) for pair in with_twins]
    flops = count_flops(problem.text, lengths, loss.needs.reference, forward.prompt_targets, trained)
    return {
        "device": device.type, "dtype": str(model.head_weight.dtype).removeprefix("torch."), "loss": first["loss"],
        "trainable": trained, "parameters": sum(p.numel() for p in model.parameters()) - trained,
        "pairs": len(pairs), "tokens": tokens, "cells": cells, "seconds": seconds, "peak_bytes": peak_bytes(device),
        "flops": asdict(flops),
        "graphs": graphs[1] - graphs[0], "recompilations": graphs[2] - graphs[1],
    }  # fmt: skip


@contextlib.contextmanager
def reading_images(setting: Setting) -> Iterator[ImageReader | None]:
    """A reader of images that has read none yet."""
    if setting.processor is None:
        yield None
        return
    with contextlib.closing(image_reader(setting.model, setting.processor, None, setting.folder)) as reader:
        yield reader


def new_shapes(forward: Forward, steps: Sequence[Sequence[EncodedPair]]) -> Iterator[CollatedPairs]:
    """Of ``steps``, those that bring a batch of a new shape."""
    met: set[tuple[int, ...]] = set()
    for pairs in steps:
        collated = forward.collate(pairs)
        shapes = {tuple(batch.tokens.shape) for batch in collated.batches}
        if not shapes <= met:
            met |= shapes
            yield collated


def take_step(forward: Forward, optimizer: torch.optim.Optimizer, collated: CollatedPairs, config: TrainConfig) -> int:
    """A step of the training loop; returns its tokens."""
    _, tokens = accumulate_gradients(forward, collated, config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return tokens


def compiled_graphs() -> int:
    """How many graphs this process has compiled."""
    return counters["stats"]["unique_graphs"]


def now(device: torch.device) -> float:
    """Seconds, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Starts the measurement of :func:`peak_bytes`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that tensors took; not measured on the CPU."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None

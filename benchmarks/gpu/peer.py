"""TRL's steps on the problems of ``problems``, in its best settings; run by an interpreter that has TRL and PEFT.

bfloat16 on CUDA, TRL's chunked head (DPO), FlashAttention and Liger's layers where they are installed. TRL 1.16 has no
rows without padding for DPO, and none for ORPO. Activations are kept, in the largest micro-batches for which there is
memory, and recomputed: both are rows.
"""

from __future__ import annotations

import gc
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.gpu.problems import LONGEST, PROBLEMS
from benchmarks.step_worker import CLIP, trl_loss, trl_trainer


class Stopwatch:
    """Seconds from the beginning of step ``warmup`` (counted from 0) to the end of step ``total``."""

    def __init__(self, warmup: int, total: int, cuda: bool):
        self.warmup, self.total, self.cuda = warmup, total, cuda
        self.steps, self.seconds, self._started = 0, 0.0, 0.0

    def start(self) -> None:
        """At the beginning of a step."""
        if self.steps == self.warmup:
            if self.cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            self._started = time.perf_counter()

    def stop(self) -> None:
        """At its end."""
        self.steps += 1
        if self.steps == self.total:
            if self.cuda:
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self._started


def measure_peer_steps(problem: str, objectives: Sequence[str], steps: int, emit: Callable[[dict], None]) -> None:
    """Emits a row for each objective, with activations kept and recomputed. One epoch of warm-up, one measured."""
    for objective in objectives:
        for recompute in (False, True):
            row = {"problem": problem, "objective": objective, "side": "trl", "recompute": recompute}
            emit(row | measure_fitting(problem, objective, recompute, steps))


def measure_fitting(problem: str, objective: str, recompute: bool, steps: int) -> dict:
    """The numbers of a row, for the largest micro-batches that fit into memory."""
    size = PROBLEMS[problem].per_step
    while True:
        try:
            return measure_setting(problem, objective, recompute, size, steps)
        except torch.OutOfMemoryError as error:
            failure = f"out of memory: {str(error).partition('. ')[0]}"
        finally:
            gc.collect()  # the trainer refers to itself
            torch.cuda.empty_cache()
        if size == 1:
            return {"failure": failure}
        size //= 2


def measure_setting(name: str, objective: str, recompute: bool, size: int, steps: int) -> dict:
    """The numbers of a row. size: pairs of a micro-batch."""
    problem, cuda = PROBLEMS[name], torch.cuda.is_available()
    pairs = problem.pairs(steps * problem.per_step)
    watch = Stopwatch(steps, 2 * steps, cuda)
    installed = {package for package in ("flash_attn", "liger_kernel") if importlib.util.find_spec(package)}
    more = {"use_liger_kernel": True} if cuda and "liger_kernel" in installed else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(
            objective, problem.config, pairs, problem.rank, "bfloat16" if cuda else "float32", watch,
            device="cuda" if cuda else "cpu",
            attention="flash_attention_2" if cuda and "flash_attn" in installed else "sdpa",
            output_dir=folder, gradient_checkpointing=recompute, max_length=3 * LONGEST,
            per_device_train_batch_size=size, gradient_accumulation_steps=problem.per_step // size,
            max_steps=2 * steps, max_grad_norm=CLIP, **more,
        )  # fmt: skip
        first = trl_loss(trainer, problem.per_step)
        trainer.train()
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return {
        "device": "cuda" if cuda else "cpu", "dtype": "bfloat16" if cuda else "float32", "loss": first,
        "at_once": size, "trainable": trained, "pairs": len(pairs), "seconds": watch.seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None, "installed": sorted(installed),
    }  # fmt: skip

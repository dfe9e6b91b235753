"""What to change when a run does not fit into the memory of the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mint import parallel
from mint.config import TrainConfig
from mint.errors import InputError


@contextmanager
def explain_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Turns PyTorch's out-of-memory error into an InputError that names the flags which reduce memory."""
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        reason = ". ".join(str(error).split(". ")[:2])  # the size asked for; the rest is about the allocator
        flags = "\n  ".join(memory_flags(config))
        raise InputError(f"{reason}. These flags reduce the memory of a step:\n  {flags}") from None


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch  # here, so that train.py --help does not wait for it; loaded already where this error arises

    return isinstance(error, torch.OutOfMemoryError)


def memory_flags(config: TrainConfig) -> list[str]:
    """The flags that reduce the memory of the run, first those that leave its result the same."""
    flags = []
    if not config.checkpoint_activations:
        flags.append("--checkpoint-activations: activations are recomputed in the backward pass")
    if config.batch_size > 1:
        half, times = -(-config.batch_size // 2), 2 * config.grad_accum
        flags.append(f"--batch-size {half} --grad-accum {times}: fewer pairs at a time, as many in a step")
    if config.dtype == "float32":
        flags.append("--dtype bfloat16: activations, and frozen weights, of half the size")
    if not (config.full or config.quantize):
        flags.append("--quantize int8 or nf4: frozen weights in 8 or 4 bits, of policy and reference")
    flags.append(f"--max-length, now {config.max_length}: longer pairs are left out or cut (--overlength)")
    flags.append("--max-pixels: fewer image tokens (Qwen-VL)")
    if config.full and not config.cache_reference:
        flags.append("--cache-reference: no second model for losses with a reference")
    if parallel.size() > 1 and not config.shard:
        flags.append("--shard: each process keeps a part of the weights")
    if config.full:
        flags.append("no --full: an adapter needs far fewer gradients and moments than all weights")
    else:
        flags.append(
            f"--lora-rank, now {config.lora_rank or config.LORA_DEFAULTS['lora_rank']}, or fewer --lora-targets"
        )
    return [*flags, "--dry-run estimates the memory of a choice, without a GPU"]

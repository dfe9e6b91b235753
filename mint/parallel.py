"""The processes of one command that torchrun started: their ranks, and what they exchange.

A command joins them with :func:`processes`. Small Python objects travel over gloo on the CPU, gradients over NCCL on
CUDA and over gloo on the CPU. With one process nothing here imports or starts ``torch.distributed``, sums are the
values themselves, and :func:`part` is the whole list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from mint.errors import InputError

if TYPE_CHECKING:
    from torch.nn import Parameter

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable)
BUCKET_BYTES = 2**28  # of gradients that are summed at once
PATIENCE = timedelta(hours=1)  # for the others at an exchange: the first process may sample or save meanwhile
_rank, _size = 0, 1  # while processes are joined
_reports_failure = True


class Unreachable(InputError):
    """An exchange failed, mostly since another process has ended."""


def rank() -> int:
    """The number of this process, from 0 over all nodes; 0 unless several are joined."""
    return _rank


def size() -> int:
    """The number of joined processes, 1 by default."""
    return _size


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return _rank == 0


def local_rank() -> int:
    """The number of this process on its node."""
    return int(os.environ.get("LOCAL_RANK", 0)) if _size > 1 else 0


def started_first() -> bool:
    """Whether torchrun started this process as the first of several, or did not start it."""
    return not _launched() or os.environ["RANK"] == "0"


def _launched() -> bool:
    names = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return names <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


def reports_failure() -> bool:
    """Whether this process reports why the command failed: the first that fails does, and no other."""
    return _reports_failure


@contextmanager
def processes(several: bool = True) -> Iterator[None]:
    """Joins the processes that torchrun started, for the block; nothing happens where it started one or none.

    Only the first process prints. several: whether the command can run in several processes. Raises InputError if it
    cannot, and if the others cannot be reached.
    """
    global _rank, _size, _reports_failure
    _reports_failure = True
    if not _launched():
        yield
        return
    if not several:
        _reports_failure = started_first()
        raise InputError("this command runs in one process: start it without torchrun")
    store = _join()
    try:
        with ExitStack() as stack:
            if not is_main():
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield
        _leave()
    except BaseException:
        _reports_failure = False
        with suppress(Exception):  # the process that keeps the store may have ended
            _reports_failure = store.add("failures", 1) == 1
        raise
    finally:
        _rank, _size = 0, 1


def _join():
    """Starts the process group; returns the store that all processes share."""
    global _rank, _size, _reports_failure
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _rank, _size = next(rendezvous("env://", timeout=PATIENCE))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=_rank, world_size=_size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        _reports_failure, _rank, _size = started_first(), 0, 1
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(f"the processes of torchrun cannot meet at {place}: {_first_line(error)}") from None
    return store


def _leave() -> None:
    """Ends the process group. After a failure it is left as it is: the end of the process tells the others."""
    import torch.distributed as dist

    dist.destroy_process_group()


def part(items: Sequence[T], unit: int = 1, rank: int | None = None, size: int | None = None) -> Sequence[T]:
    """The items of one process (default: this one): adjacent, in whole units of ``unit`` items; the last may be short.

    The parts of all ranks, one after another, are ``items``; they differ by at most one unit.
    """
    rank, size = _rank if rank is None else rank, _size if size is None else size
    units = -(-len(items) // unit)
    return items[rank * units // size * unit : (rank + 1) * units // size * unit]


def gather(value: T) -> list[T]:
    """The values that the processes pass, by rank."""
    if _size == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * _size
    _exchange(dist.all_gather_object, found, value)
    return found


def on_main(function: Callable[[], T]) -> T:
    """The value of ``function``, which the first process alone calls."""
    box: list[Any] = [function() if is_main() else None]
    if _size > 1:
        import torch.distributed as dist

        _exchange(dist.broadcast_object_list, box, src=0)
    return box[0]


def barrier() -> None:
    """Waits until every process has come here."""
    gather(None)


def check_same(what: str, value: object) -> None:
    """Raises InputError unless all processes pass an equal value."""
    values = gather(value)
    if odd := [number for number, other in enumerate(values) if other != values[0]]:
        raise InputError(f"process {odd[0]} has other {what} than process 0: give every node the same files and flags")


def in_several(command: Command) -> Command:
    """Marks what a command runs (``run`` of :func:`mint.cli.run_command`) as able to run in several processes."""
    command.several = True  # type: ignore[attr-defined]
    return command


def complete(
    count: int, known: Mapping[int, T], decode: Callable[..., Sequence[T]], unit: int = 1, **arguments
) -> list[T]:
    """``decode(known=known, **arguments)``, a list of ``count`` answers, with the missing ones shared by the processes.

    Each process is told that the answers of the others are known, so that places, and with them random seeds, stay.
    unit: missing answers that stay together. What the first process knows counts.
    """
    if _size == 1:
        return list(decode(known=dict(known), **arguments))
    found: dict[int, Any] = on_main(lambda: dict(known))
    left = [place for place in range(count) if place not in found]
    own = {place for number, place in enumerate(left) if number // unit % _size == _rank}
    others: dict[int, Any] = {place: "" for place in left if place not in own}
    answers = decode(known=found | others, **arguments)
    for answered in gather({place: answers[place] for place in own}):
        found |= answered
    return [found[place] for place in range(count)]


def sum_step(parameters: Iterable[Parameter], metrics: Mapping[str, Any], tokens: int) -> tuple[dict[str, float], int]:
    """The gradients of ``parameters``, summed in place, and the sums of the metrics and tokens of all processes.

    Metrics come first: over gloo, where the end of another process is noticed at once.
    """
    if _size == 1:
        return dict(metrics), tokens
    parts = gather(({name: float(value) for name, value in metrics.items()}, tokens))
    sum_gradients(parameters)
    return sum_metrics(own for own, _ in parts), sum(count for _, count in parts)


def sum_metrics(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sum of each number over ``parts``."""
    total: dict[str, float] = {}
    for numbers in parts:
        for name, value in numbers.items():
            total[name] = total.get(name, 0.0) + value
    return total


def sum_gradients(parameters: Iterable[Parameter]) -> None:
    """Sums the gradients of all processes, in place and in few large pieces; equal bits result everywhere.

    A parameter without a gradient in any process keeps none, so that the optimiser leaves it out as in one process.
    """
    if _size == 1:
        return
    import torch
    import torch.distributed as dist

    trained = [p for p in parameters if p.requires_grad and not hasattr(p, "full_tensor")]  # FSDP sums sharded ones
    present = torch.tensor([p.grad is not None for p in trained], dtype=torch.uint8)
    _exchange(dist.all_reduce, present, dist.ReduceOp.MAX)
    for bucket in _buckets([p for p, some in zip(trained, present.tolist(), strict=True) if some]):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in bucket])
        _exchange(dist.all_reduce, flat)
        for p, summed in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            p.grad = summed.view_as(p)


def _buckets(parameters: Sequence[Parameter]) -> Iterator[list[Parameter]]:
    """Adjacent parameters of one dtype, of at most ``BUCKET_BYTES`` together unless one alone is larger."""
    bucket: list[Parameter] = []
    filled = 0
    for p in parameters:
        if bucket and (p.dtype != bucket[0].dtype or filled + p.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, filled = [], 0
        bucket.append(p)
        filled += p.nbytes
    if bucket:
        yield bucket


def seed_dropout(seed: int, step: int) -> None:
    """Gives the processes after the first random numbers of their own for a step; the first continues its stream.

    They follow from seed, step and rank, so a checkpoint holds the random state of the first process alone.
    """
    if _rank:
        import torch

        torch.manual_seed(((seed * 1_000_003 + step) * 1_000_003 + _rank) % 2**63)


def _exchange(collective: Callable, *arguments, **options) -> None:
    """A collective call. Raises Unreachable where another process has ended, or does not answer."""
    try:
        collective(*arguments, **options)
    except RuntimeError as error:
        raise Unreachable(
            f"another process of this command has ended or does not answer ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

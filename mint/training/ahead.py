"""Work for the next step, done in a thread during the current one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def computed_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Iterator[Result]]:
    """``with computed_ahead(f, items) as results``: f(item) of each item in turn, one ahead of the caller, in a thread.

    An exception of ``function`` is raised where its result is asked for. The thread ends with the block, after the item
    that it is working on.
    """
    worker = ThreadPoolExecutor(1, "ahead", initializer=_leave_signals)

    def results() -> Iterator[Result]:
        waiting: Future[Result] | None = None
        for item in items:
            following = worker.submit(function, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()

    try:
        yield results()
    finally:
        worker.shutdown(cancel_futures=True)


def _leave_signals() -> None:
    """Lets the main thread receive Ctrl-C and SIGTERM, so that they interrupt its waiting."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))

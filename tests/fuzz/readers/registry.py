"""The readers by name, and one attempt at damaged input."""

from __future__ import annotations

import contextlib
import io
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from mint.errors import InputError

LIMIT = 20.0  # seconds of an input, on a machine that is not busy
Reader = Callable[[random.Random, Path], object]
READERS: dict[str, Reader] = {}


class Hang(BaseException):
    """An input that takes longer than the limit."""


def reader(function: Reader) -> Reader:
    """Enters a reader under its name."""
    READERS[function.__name__.replace("_", " ")] = function
    return function


def attempt(name: str, seed: object, folder: Path, limit: float = LIMIT) -> tuple[str, float]:
    """("read" or "refused", seconds) of one input. folder: new and empty; it holds the input afterwards.

    Raises AssertionError for any other exception, an input that takes too long, and a file written elsewhere than in
    ``folder/out``.
    """
    rng = random.Random(f"{seed}/{name}")
    inner = folder / "in"
    inner.mkdir(parents=True)

    def alarm(number, frame):
        raise Hang

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, limit)
    start, outcome = time.perf_counter(), "read"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), contextlib.chdir(folder):
        try:
            READERS[name](rng, inner)
        except InputError:
            outcome = "refused"
        except SystemExit as stop:
            assert stop.code in (0, 2), f"{name}, seed {seed}: exit status {stop.code}"
            outcome = "refused"
        except (Exception, Hang) as error:
            raise AssertionError(f"{name}, seed {seed}: {type(error).__name__}: {str(error)[:300]}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert [path.name for path in folder.iterdir()] == ["in"], f"{name}, seed {seed}: a file outside its folder"
    return outcome, time.perf_counter() - start

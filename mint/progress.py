"""Progress of long loops: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized

from tqdm import tqdm

SECONDS = 20.0  # between two lines in a log file


class Progress:
    """tqdm's bar if stderr is a terminal; otherwise one line every ``SECONDS`` seconds and one at the end.

    iterable: wrapped, if given; otherwise call ``update`` after each item and ``close`` at the end. total: number of
    items, by default the iterable's length. initial: items done before. leave: keep the bar at the end; without it, a
    log file gets a line only if the loop took longer than ``SECONDS``. show: False turns all output off.
    """

    def __init__(
        self,
        iterable: Iterable | None = None,
        *,
        total: int | None = None,
        initial: int = 0,
        desc: str = "",
        unit: str = "item",
        leave: bool = True,
        show: bool = True,
    ):
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        self.iterable = () if iterable is None else iterable
        self.total, self.initial = total, initial
        self.desc, self.unit, self.leave, self.show = desc, unit, leave, show
        self.done = initial
        self.values: dict[str, str] = {}
        self._started = self._printed = time.monotonic()
        self._at_print, self._closed = initial, False
        terminal = show and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=initial, desc=desc, unit=unit, leave=leave) if terminal else None

    def __iter__(self) -> Iterator:
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def update(self, count: int = 1, values: Mapping[str, str] | None = None) -> None:
        """Counts ``count`` items more. values: shown behind the count, such as the loss."""
        self.done += count
        self.values = dict(values or self.values)
        if self._bar is not None:
            self._bar.set_postfix(self.values, refresh=False)
            self._bar.update(count)
        elif self.show and time.monotonic() - self._printed >= SECONDS:
            self._print()

    def write(self, line: str) -> None:
        """Prints a line on stderr without breaking the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the display; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.close()
        elif self.show and self._at_print != self.done and (self.leave or time.monotonic() - self._started >= SECONDS):
            self._print()

    def _print(self) -> None:
        now = time.monotonic()
        elapsed = now - self._started
        speed = (self.done - self.initial) / max(elapsed, 1e-9)
        count = f"{self.done}/{self.total}" if self.total else f"{self.done}"
        rate = f"{speed:.1f} {self.unit}/s" if speed >= 1 or not speed else f"{1 / speed:.1f} s/{self.unit}"
        parts = [f"{count} {self.unit}s", rate, *(f"{name} {value}" for name, value in self.values.items())]
        if self.total and self.done < self.total and speed:
            parts.append(f"{duration((self.total - self.done) / speed)} left")
        else:
            parts.append(f"{duration(elapsed)} in all")
        print(f"{self.desc}: {', '.join(parts)}", file=sys.stderr, flush=True)
        self._printed, self._at_print = now, self.done


def epoch_text(row: Mapping[str, float], epochs: int) -> str:
    """One epoch of training in words: its number, its mean loss, and the loss and accuracy on held-out samples, if any.

    row: ``epoch`` (from 1), ``loss``, and where samples are held out ``held_out_loss``, ``held_out_top_1`` (a share).
    """
    parts = [f"epoch {row['epoch']}/{epochs}", f"loss {row['loss']:.3f}"]
    parts += [f"held-out loss {row['held_out_loss']:.3f}"] if "held_out_loss" in row else []
    parts += [f"held-out top-1 {100 * row['held_out_top_1']:.1f} %"] if "held_out_top_1" in row else []
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A readable duration, such as "45 s", "2 min 05 s" or "3 h 07 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

"""The argument parser, the exit statuses and the choice of the device, for all commands."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mint import parallel
from mint.errors import SHOW_TEXT, InputError, Stopped, without_passwords
from mint.ranges import SEED, Range, check_number

if TYPE_CHECKING:
    import torch

COUNT = Range(1, 1_000_000_000)
WHOLE, ANY = Range(-(2**63), 2**63 - 1), Range(-1e300, 1e300, whole=False)
RANGES = {  # of flags, by the name of the setting; other numbers must be finite, and whole ones of 64 bits
    **dict.fromkeys(("batch_size", "max_pixels", "limit"), COUNT),
    **dict.fromkeys(("views", "passages", "teacher_epochs", "row"), COUNT),
    **dict.fromkeys(("top_k", "bottom_q"), COUNT),
    "max_new_tokens": Range(1, 1_000_000),
    "sample_top_k": Range(0, 1_000_000_000),
    **dict.fromkeys(("temperature", "repetition_penalty"), Range(0, 1e6, whole=False)),
    "sample_top_p": Range(0, 1, whole=False),
    "seed": SEED,
}
PRIVATE = 0o077  # the umask of commands: files are 0600, folders 0700
_users_umasks: list[int] = []  # while commands run
SHOW_TEXT_HELP = "messages may quote records (prompts, notes, answers); without it they only name ids"


class _ShowText(argparse.Action):
    """``--show-text``: no setting of the command, so it is not saved with a run."""

    def __init__(self, option_strings, dest):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=SHOW_TEXT_HELP)

    def __call__(self, *_):
        os.environ[SHOW_TEXT] = "1"


class Parser(argparse.ArgumentParser):
    """argparse without abbreviated flags, and with one line for a mistake: the closest flag for an unknown one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.add_argument("--show-text", action=_ShowText)
        self.fill: Callable[[Parser], None] | None = None  # adds the flags when they are first needed
        self.ranges: Mapping[str, Range] | None = RANGES  # None: the command checks its numbers itself

    def parse_args(self, args=None, namespace=None):
        os.environ.pop(SHOW_TEXT, None)  # of an earlier command in this process
        return super().parse_args(args, namespace)

    def parse_known_args(self, args=None, namespace=None):
        if (fill := self.fill) is not None:
            self.fill = None
            try:
                fill(self)
            except InputError as error:
                self.error(str(error))
        namespace, unknown = super().parse_known_args(args, namespace)
        try:
            self._check_numbers(namespace)
        except InputError as error:
            self.error(str(error))
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], flags, 1)
            hint = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
            self.error(f"unknown argument {unknown[0]!r}; {hint}")
        return namespace, unknown

    def _check_numbers(self, namespace: argparse.Namespace) -> None:
        """Raises InputError for a flag whose number is not finite or out of range."""
        for action in self._actions:
            value = getattr(namespace, action.dest, None)
            if self.ranges is not None and action.type in (int, float) and value is not None:
                allowed = self.ranges.get(action.dest, WHOLE if action.type is int else ANY)
                for number in value if isinstance(value, list | tuple) else [value]:
                    check_number(action.option_strings[0] if action.option_strings else action.dest, number, allowed)

    def error(self, message: str):
        """Prints ``message`` without the usage, and exits with status 2."""
        self.exit(2, f"error: {without_passwords(message)}\n" if parallel.started_first() else None)


def guard(job: Callable[[], object], several: bool = False) -> int:
    """Runs ``job`` and returns the exit status of the command.

    several: whether it can run in the processes that torchrun starts. Of these the first one that fails reports why.

    0: success. 2: an InputError, printed as one line. 130 and 143: interrupted by Ctrl-C and by SIGTERM; both reach
    ``job`` as an exception (KeyboardInterrupt, of which ``Stopped`` is one), so its ``finally`` blocks run.
    Standard output is written line by line, so that it keeps its place among the lines of standard error in a log file.
    What ``job`` writes can be read by this user alone (0600, 0700).
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    main_thread = _in_main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main_thread else None
    _users_umasks.append(os.umask(PRIVATE))
    try:
        with parallel.processes(several):
            job()
    except InputError as error:
        if parallel.reports_failure():
            print(f"error: {without_passwords(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        return _interrupted(stop)
    except Exception:
        if parallel.reports_failure():
            raise
        return 1
    finally:
        os.umask(_users_umasks.pop())
        if main_thread:
            signal.signal(signal.SIGTERM, before)
    return 0


@contextmanager
def users_umask() -> Iterator[None]:
    """Inside, new files have the user's own umask even in a command: for a cache that several users share."""
    before = os.umask(_users_umasks[-1]) if _users_umasks else None
    try:
        yield
    finally:
        if before is not None:
            os.umask(before)


def _interrupted(stop: KeyboardInterrupt) -> int:
    number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
    if parallel.reports_failure():
        print(str(stop) or "interrupted", file=sys.stderr)
    return 128 + number


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(number: int, frame) -> None:
    raise Stopped(number)


class StopSignal:
    """Turns the first SIGTERM or Ctrl-C inside its ``with`` block into a request to stop at the next opportunity.

    ``number`` is the signal's, None before one arrives. A second signal has the effect that it had before the block,
    which ends the command at once; the end of the block restores this effect too.
    """

    def __init__(self):
        self.number: int | None = None

    def __enter__(self) -> StopSignal:
        numbers = (signal.SIGTERM, signal.SIGINT) if _in_main_thread() else ()  # elsewhere signals cannot be handled
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agree(self) -> None:
        """Makes ``number`` that of any process of the command; every process calls it at the same point."""
        self.number = next((number for number in parallel.gather(self.number) if number is not None), None)

    def _ask(self, number: int, frame) -> None:
        self.number = number
        self.__exit__()
        if not parallel.is_main():
            return
        start = b"\n" if os.isatty(2) else b""  # after the bar
        os.write(2, start + b"stopping after this step; a second signal ends at once\n")  # print is unsafe in a handler


def run_command(
    description: str, add_commands: Sequence[Callable], argv: Sequence[str] | None, prog: str | None = None
) -> int:
    """Parses ``argv`` with the sub-commands that ``add_commands`` declare (each sets ``run``), and runs one."""
    parser = Parser(prog=prog, description=description)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in add_commands:
        add(commands)
    try:
        args = parser.parse_args(argv)
    except KeyboardInterrupt as stop:  # while the module of a sub-command is imported
        return _interrupted(stop)
    return guard(lambda: args.run(args), getattr(args.run, "several", False))


def lazy_command(name: str, help: str, place: str, *arguments, aliases: Sequence[str] = ()) -> Callable:
    """A sub-command for :func:`run_command` whose module is imported when it is parsed, and not for ``--help``.

    place: MODULE:FUNCTION. The function takes the parser and ``arguments``, adds the flags and sets ``run``.
    """

    def fill(parser: Parser) -> None:
        module, _, function = place.partition(":")
        getattr(importlib.import_module(module), function)(parser, *arguments)

    def add(commands) -> None:
        commands.add_parser(name, help=help, aliases=aliases).fill = fill

    return add


def choose_device(device: str, dtype: str, absent: bool = False) -> tuple[torch.device, torch.dtype]:
    """``auto`` is CUDA where there is one, and bfloat16 there. Of several processes on a node each has its own device.

    Raises InputError for CUDA without a device, unless ``absent``: nothing is computed there.
    """
    import torch  # here, since every command imports this module and --help should not wait for it

    name = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not absent and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no CUDA device; use --device cpu")
    wanted = dtype if dtype != "auto" else ("bfloat16" if name == "cuda" else "float32")
    if name == "cuda" and parallel.size() > 1:
        count = torch.cuda.device_count()
        if parallel.local_rank() >= count:
            raise InputError(f"this node has {count} CUDA devices: start torchrun with --nproc-per-node {count}")
        torch.cuda.set_device(parallel.local_rank())
        return torch.device(name, parallel.local_rank()), getattr(torch, wanted)
    return torch.device(name), getattr(torch, wanted)

"""What the commands share: sub-commands, one message for a mistake, the device, files of lines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mint.errors import InputError


def guard(job: Callable[[], None]) -> int:
    """Runs ``job``; a mistake of the user's becomes one line on stderr and exit status 2."""
    try:
        job()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_command(description: str, add_commands: Sequence[Callable], argv: Sequence[str] | None, prog: str | None = None) -> int:
    """Parses ``argv`` with the sub-commands that ``add_commands`` declare (each sets ``run``), and runs the one asked for."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in add_commands:
        add(commands)
    args = parser.parse_args(argv)
    return guard(lambda: args.run(args))


def choose_device(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """``auto`` is CUDA where there is one, and bfloat16 there. Raises InputError for CUDA without a device."""
    name = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no CUDA device; use --device cpu")
    wanted = dtype if dtype != "auto" else ("bfloat16" if name == "cuda" else "float32")
    return torch.device(name), getattr(torch, wanted)


def read_lines(path: str) -> list[str]:
    """The lines of a text file that are not blank. Raises InputError if it cannot be read or has none."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not lines:
        raise InputError(f"{path} holds no line")
    return lines

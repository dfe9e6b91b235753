"""What a GPU should demonstrate, as a dated table. Nine minutes of an H100 are enough for the most important parts.

    python -m benchmarks.gpu --out DIR [--peer-python PYTHON] [--small] [--minutes 9]

Tests that need a CUDA device; a step against float32 on the CPU; training steps at the shapes of published models, next
to TRL; decoding next to transformers. Every part runs in a process of its own, so that none takes the others' results
with it. Parts that are done are kept in ``--out``: the same command goes on with the rest. Without CUDA, tiny shapes.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.campaign import commit, processor
from benchmarks.command import make_parser, run
from benchmarks.gpu.page import render
from benchmarks.gpu.parts import PAGE, Part, check_folder, run_parts
from benchmarks.step_time import has_trl
from mint import __version__
from mint.errors import InputError
from mint.files import write_aside

STEPS = 6  # measured, of 8 pairs; the small version takes 2
ANSWER = 128  # tokens of a prompt and of an answer
PEER = "from importlib.metadata import version; print(*(f'{n} {version(n)}' for n in ('transformers', 'trl', 'peft')))"


def measure(args: argparse.Namespace) -> str:
    """Runs what is missing, writes the page and returns it. Raises InputError for settings that do not work."""
    if args.minutes <= 0 or args.steps is not None and args.steps < 1:
        raise InputError("--minutes must be above 0, and --steps at least 1")
    small, out = args.small or not torch.cuda.is_available(), Path(args.out)
    peer = args.peer_python if has_trl(args.peer_python) else None
    about = describe(small, peer)
    check_folder(out, {name: value for name, value in about.items() if name != "date"})
    results = run_parts(plan(small, args.steps or (2 if small else STEPS)), out, peer, 60 * args.minutes)
    page = render(results, about, f"python -m benchmarks.gpu{' --small' * args.small}")
    write_aside(out / PAGE, page)
    return page


def describe(small: bool, peer: str | None) -> dict[str, str]:
    """What the results depend on."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else processor()
    versions = [f"torch {torch.__version__}", *([f"CUDA {torch.version.cuda}", _driver()] if cuda else [])]
    if peer is not None:
        versions.append(subprocess.run([peer, "-c", PEER], capture_output=True, text=True, check=True).stdout.strip())
    try:
        revision = commit()
    except (OSError, subprocess.CalledProcessError):  # installed, or copied without its history
        revision = f"unknown, version {__version__}"
    versions = ", ".join(filter(None, versions))
    return {
        "date": str(datetime.date.today()), "commit": revision, "device": device, "versions": versions,
        "size": "small" if small else "full",
    }  # fmt: skip


def _driver() -> str:
    """The driver's version, where its tool is installed."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f"driver {found[0]}" if found else ""


def plan(small: bool, steps: int) -> list[Part]:
    """The parts, the most important ones first."""
    compared, length = ["orpo", "dpo"], 8 if small else ANSWER
    decoded = "tiny" if small else "1B"

    def ours(problem: str, limit: float, objectives: tuple[str, ...] = ("orpo", "dpo", "fire")) -> Part:
        arguments = {"problem": problem, "objectives": objectives, "steps": steps}
        return Part(f"steps {problem}", "steps", limit, arguments)

    def theirs(problem: str, limit: float) -> Part:
        arguments = {"problem": problem, "objectives": compared, "steps": steps}
        return Part(f"steps {problem}, TRL", "peer steps", limit, arguments, peer=True)

    def decoding(side: str) -> Part:
        arguments = {"problem": decoded, "side": side, "length": length}
        return Part(f"decoding, {side}", "decoding", 90, arguments, peer=side != "ours")

    first = [Part("agreement", "agreement", 150, {"cases": ["DPO", "FiRe", "FiRe with images"]})]
    tests, last = Part("tests", "tests", 150), [decoding("ours"), decoding("transformers")]
    if small:
        return [*first, ours("tiny", 120), theirs("tiny", 120), tests, ours("tiny vision", 120, ("fire",)), *last]
    return [
        *first, ours("3B", 210), theirs("3B", 210), tests, ours("Qwen3-VL-4B", 210, ("fire",)), ours("8B", 240),
        ours("1B", 210), *last, theirs("1B", 120), theirs("8B", 210),
    ]  # fmt: skip


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--peer-python", default=sys.executable, help="interpreter that has TRL and PEFT (default: this one)"
    )
    parser.add_argument("--small", action="store_true", help="tiny shapes (default: without CUDA)")
    parser.add_argument("--steps", type=int, help=f"measured steps of each loss (default {STEPS}, small: 2)")
    parser.add_argument("--minutes", type=float, default=9, help="after which no part is started (default 9)")
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())

"""Damaged input for every reader: each is read, or refused with a message, in bounded time and without other files.

    python -m benchmarks.fuzz [--inputs 100000] [--seed 0] [--only READER] [--first N] [--out FILE]

The inputs depend on the seed alone. An input is one number of one reader; ``--only READER --first N --inputs 1``
repeats it. The readers and what they damage are in ``tests/fuzz/readers``. Exits with status 1 if an input is a
fault: another exception than InputError, no end within the limit, or a file outside its folder.
"""

from __future__ import annotations

import argparse
import faulthandler
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mint.progress import Progress
from tests.fuzz.readers import LIMIT, READERS, attempt

SHOWN = 20  # faults that are printed


def run(name: str, numbers: range, seed: int, root: Path) -> tuple[Counter, float, list[str]]:
    """(outcomes, the longest time in seconds, the faults) of a reader's inputs."""
    outcomes, slowest, faults = Counter[str](), 0.0, []
    for number in numbers:
        folder = Path(tempfile.mkdtemp(dir=root)) / "input"
        faulthandler.dump_traceback_later(10 * LIMIT, exit=True)  # a library that does not return
        try:
            outcome, seconds = attempt(name, f"{seed}/{number}", folder)
            slowest = max(slowest, seconds)
        except AssertionError as error:
            outcome = "fault"
            faults.append(f"--only {name!r} --first {number}: {error}")
        outcomes[outcome] += 1
        shutil.rmtree(folder.parent)
    faulthandler.cancel_dump_traceback_later()
    return outcomes, slowest, faults


def main() -> int:
    """Prints a table of the readers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together (default 100000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=READERS, metavar="READER", help=f"one of {', '.join(READERS)}")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the number of each reader's first input")
    parser.add_argument("--out", metavar="FILE.md", help="where the table is written, beside being printed")
    args = parser.parse_args()
    names = [args.only] if args.only else list(READERS)
    share, rest = divmod(args.inputs, len(names))
    lines = ["| reader | inputs | read | refused | faults | slowest |", "|---|---:|---:|---:|---:|---:|"]
    total, faults, start = Counter[str](), list[str](), time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        for place, name in enumerate(Progress(names, desc="readers", unit="reader")):
            numbers = range(args.first, args.first + share + (place < rest))
            outcomes, slowest, wrong = run(name, numbers, args.seed, Path(root))
            total.update(outcomes)
            faults += wrong
            counts = f"{outcomes['read']:,} | {outcomes['refused']:,} | {outcomes['fault']}"
            lines.append(f"| {name} | {outcomes.total():,} | {counts} | {slowest:.1f} s |")
    counts = f"{total['read']:,} | {total['refused']:,} | {total['fault']}"
    lines.append(f"| all | {total.total():,} | {counts} | |")
    table = "\n".join(lines)
    print(table)
    print(f"\nseed {args.seed}, {time.perf_counter() - start:.0f} s")
    print("\n".join(faults[:SHOWN]))
    if args.out:
        Path(args.out).write_text(table + "\n", encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

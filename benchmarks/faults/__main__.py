"""Faults: kills, full disks, damaged checkpoints, races, removed files and signals, and what is left of a run.

    python -m benchmarks.faults                       all of it
    python -m benchmarks.faults --kills 3 --signals 2 some of it; what is not named is left out
    python -m benchmarks.faults --seed 7              at other moments

Each trial disturbs the training of a tiny model on the CPU and resumes it. It counts as "identical" if the resumed
run ends with the adapter, to the bit, and the metrics of an undisturbed run, and as "refused" if a command ended with
one message. A traceback, a hang, a leftover file or anything else is a problem; it is printed, and the status is 1.
Full disks need a user namespace (unshare), in which a small disk is mounted.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from benchmarks.faults.disks import can_mount, disk, enter_namespace
from benchmarks.faults.lab import Lab, Problem
from benchmarks.faults.trials import TRIALS, fill_disk


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, (_, count, words) in TRIALS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{words} (default {count})")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the damages")
    args = parser.parse_args()
    enter_namespace()
    asked = {name: getattr(args, name.replace("-", "_")) for name in TRIALS}
    if all(count is None for count in asked.values()):
        asked = {name: count for name, (_, count, _) in TRIALS.items()}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as stack:
        if can_mount():
            stack.enter_context(disk(Path(root), "1g"))  # where flushing costs no time
        return run_trials(Lab(Path(root), args.seed), {name: count for name, count in asked.items() if count})


def run_trials(lab: Lab, asked: dict[str, int]) -> int:
    """Prints the table; returns the status."""
    rows, failed = [], False
    for name, count in asked.items():
        trial, _, words = TRIALS[name]
        found: Counter[str] = Counter()
        for number in range(count):
            if trial is fill_disk and not can_mount():
                found["not possible here"] += 1
                continue
            try:
                found[trial(number, lab)] += 1
            except Problem as problem:
                found["problem"] += 1
                failed = True
                print(f"{words}, trial {number}: {problem}", file=sys.stderr)
        rows.append(
            f"| {words} | {count} | {', '.join(f'{n} {what}' for what, n in found.items())} | {found['problem']} |"
        )
        print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join(["| fault | trials | outcome | problems |", "|---|---|---|---|", *rows]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

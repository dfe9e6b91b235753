"""Seconds and memory of one step on pairs with images: the image once a pair, once an answer, and TRL's vision DPO.

    python benchmarks/vision_step.py                                  without TRL
    python benchmarks/vision_step.py --peer-python ~/trl/bin/python   with TRL in an environment of its own

The sides are described in ``vision_worker.py``. Every variant runs in a fresh process; all first losses must agree.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from step_time import TOLERANCE, has_trl, run_worker

WORKER = Path(__file__).resolve().with_name("vision_worker.py")
CASES = [(objective, tower) for tower in ("frozen", "trained") for objective in ("orpo", "dpo", "fire")]


def sides(objective: str, tower: str, with_peer: bool) -> list[str]:
    """What is compared: features can be kept where the tower is frozen, TRL's ORPO reads no images."""
    other = "plain" if objective == "fire" else "twice"
    return ["ours", *["kept"] * (tower == "frozen"), other, *["trl"] * (with_peer and objective == "dpo")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has TRL (default: this one)")
    parser.add_argument("--objectives", nargs="+", default=["orpo", "dpo", "fire"], choices=("orpo", "dpo", "fire"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    with_peer, lines = has_trl(options.peer_python), []
    fixed = {"rank": options.rank, "warmup": options.warmup, "repeats": options.repeats, "threads": options.threads}
    for objective, tower in [case for case in CASES if case[0] in options.objectives]:
        found = {}
        for side in sides(objective, tower, with_peer):
            python = options.peer_python if side == "trl" else sys.executable
            found[side] = run_worker(python, WORKER, {"side": side, "objective": objective, "tower": tower, **fixed})
            first, this = found["ours"], found[side]
            if abs(first["loss"] - this["loss"]) > TOLERANCE["float32"] or first["trainable"] != this["trainable"]:
                raise SystemExit(f"not the same problem: {first} and {this}")
        for side, result in found.items():
            time, memory = (result[key] / found["ours"][key] for key in ("seconds", "peak_mib"))
            lines.append(
                f"| {objective} | {tower} | {side} | {result['seconds']:.2f} | {time:.2f} | "
                f"{result['peak_mib']:,.0f} | {memory:.2f} | {result['loss']:.5f} |"
            )
    print(f"\n{datetime.date.today()}, {' '.join(sys.argv[1:]) or 'default options'}; medians of {options.repeats}\n")
    print("| objective | tower | side | s | x ours | MiB | x ours | loss |\n|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""Time and memory of a step on pairs with images: one image per pair, one per answer, and TRL's vision DPO.

    python benchmarks/vision_step.py                                  without TRL
    python benchmarks/vision_step.py --peer-python ~/trl/bin/python   with TRL in an environment of its own

The sides are described in ``vision_worker.py``. Every variant runs in a fresh process; the processes take turns,
one step each. All first losses must agree.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from pathlib import Path

from step_time import TOLERANCE, has_trl, run_in_turns, times

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
        names = sides(objective, tower, with_peer)
        pythons = [options.peer_python if side == "trl" else sys.executable for side in names]
        variants = [{"side": side, "objective": objective, "tower": tower, **fixed} for side in names]
        found = run_in_turns(WORKER, list(zip(pythons, variants, strict=True)))
        ours = found[0]
        for result in found:
            if abs(ours["loss"] - result["loss"]) > TOLERANCE["float32"] or ours["trainable"] != result["trainable"]:
                raise SystemExit(f"not the same problem: {ours} and {result}")
        for side, result in zip(names, found, strict=True):
            seconds = statistics.median(result["seconds"])
            lines.append(
                f"| {objective} | {tower} | {side} | {seconds:.2f} | {times(result, ours):.2f} | "
                f"{result['peak_mib']:,.0f} | {result['peak_mib'] / ours['peak_mib']:.2f} | {result['loss']:.5f} |"
            )
    print(f"\n{datetime.date.today()}, {' '.join(sys.argv[1:]) or 'default options'}; medians of {options.repeats}\n")
    print("| objective | tower | side | s | x ours | MiB | x ours | loss |\n|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

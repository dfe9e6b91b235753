"""Seconds and memory of one optimisation step: ours and, where TRL is installed, TRL + PEFT, side by side.

    python benchmarks/step_time.py                                  ORPO and DPO, rank 256 and 16, float32
    python benchmarks/step_time.py --peer-python ~/trl/bin/python   with TRL in an environment of its own
    python benchmarks/step_time.py --vocab 128256 --dtype bfloat16 --compile

Every variant runs in a process of its own, for its peak memory. The sides take their steps in turn, so that other load
slows both alike; both are in memory at once. Both get the same model, weights, adapter and pairs, and nothing is
reported unless their first losses agree. This file imports the standard library only: a child inherits the peak memory
of the process that started it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = Path(__file__).resolve().with_name("step_worker.py")
READY = "ready\n"
# TRL's ORPO rounds logits, log-probabilities and the NLL to bfloat16, whose spacing is 1/16 between 8 and 16.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1 / 8}
HEADER = [
    "objective", "rank", "ours, s", "TRL, s", "ratio", "ours, CPU s", "TRL, CPU s",
    "ours, MiB", "TRL, MiB", "ratio", "ours, MiB over start", "TRL, MiB over start", "ratio", "loss",
]  # fmt: skip


def has_trl(python: str) -> bool:
    """Whether the interpreter can import the packages compared with."""
    code = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ('trl', 'peft', 'datasets'))))"
    return subprocess.run([python, "-c", code]).returncode == 0


class Worker:
    """One variant in a process of its own, which says when it is ready for a step and waits for its turn."""

    def __init__(self, python: str, script: Path, variant: dict):
        environment = {**os.environ, "OMP_NUM_THREADS": str(variant["threads"]), "TOKENIZERS_PARALLELISM": "false"}
        self.name = " ".join(str(value) for value in list(variant.values())[:3])
        self.last, self.errors = "", tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, str(script), json.dumps(variant)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment,
        )  # fmt: skip

    def ready(self) -> bool:
        """Waits until the process is ready for a step (True) or has ended. Raises SystemExit if it failed."""
        for line in self.process.stdout:
            if line == READY:
                return True
            self.last = line
        if self.process.wait():
            self.errors.seek(0)
            raise SystemExit(f"{self.name} failed ({self.process.returncode}):\n{self.errors.read()[-3000:]}")
        return False

    def step(self) -> bool:
        """Lets it take a step; whether it has another to take."""
        with contextlib.suppress(BrokenPipeError):  # it has died, for example for lack of memory: ready() reports it
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        return self.ready()

    def result(self) -> dict:
        """The result: the JSON object that it printed last."""
        result = json.loads(self.last)
        print(
            f"{self.name}: {statistics.median(result['seconds']):.2f} s "
            f"({min(result['seconds']):.2f} to {max(result['seconds']):.2f}), "
            f"{result['peak_mib']:,.0f} MiB, loss {result['loss']:.6f}, load {os.getloadavg()[0]:.1f}",
            file=sys.stderr,
        )
        return result


def run_in_turns(script: Path, jobs: list[tuple[str, dict]]) -> list[dict]:
    """The result of each (interpreter, variant); they take steps in turn, so that other load slows all alike."""
    workers = [Worker(python, script, variant) for python, variant in jobs]
    try:
        waiting = [worker for worker in workers if worker.ready()]
        while waiting:
            waiting = [worker for worker in waiting if worker.step()]
        return [worker.result() for worker in workers]
    finally:
        for worker in workers:
            worker.process.kill()


def times(slower: dict, faster: dict) -> float:
    """How many times as long a step of the one took as that of the other beside it: the median."""
    return statistics.median(a / b for a, b in zip(slower["seconds"], faster["seconds"], strict=True))


def variant(side: str, objective: str, rank: int, options: argparse.Namespace) -> dict:
    """The fields of the worker's ``Variant``."""
    checkpoint = options.checkpoint_activations or (side == "trl" and options.peer_checkpoint)
    return {
        "side": side, "objective": objective, "rank": rank, "vocab": options.vocab, "layers": options.layers,
        "kv_heads": options.kv_heads, "dtype": options.dtype, "checkpoint": checkpoint,
        "compile": options.compile if side == "ours" else options.peer_compile,
        "cache_reference": options.cache_reference and objective == "dpo",
        "model": options.model, "pairs": options.pairs,
        "warmup": options.warmup, "repeats": options.repeats, "threads": options.threads,
    }  # fmt: skip


def check_agreement(ours: dict, peer: dict, dtype: str) -> None:
    """Raises SystemExit unless both sides computed the same loss with the same number of trained parameters."""
    difference = abs(ours["loss"] - peer["loss"])
    if not difference <= TOLERANCE[dtype] or ours["trainable"] != peer["trainable"]:
        raise SystemExit(
            f"not the same problem: losses {ours['loss']} and {peer['loss']}, "
            f"trained parameters {ours['trainable']:,} and {peer['trainable']:,}"
        )


def row(objective: str, rank: int, ours: dict, peer: dict | None) -> list[str]:
    """One line of the table; a ratio above 1 says how many times less ours takes."""

    def both(key: str, form: str) -> list[str]:
        return [format(side[key], form) if side else "" for side in (ours, peer)]

    def seconds(key: str) -> list[str]:
        return [format(statistics.median(side[key]), ".2f") if side else "" for side in (ours, peer)]

    def ratio(key: str) -> str:
        return f"{peer[key] / ours[key]:.2f}" if peer else ""

    agreement = f"{ours['loss']:.5f}" + (f" ({ours['loss'] - peer['loss']:+.0e})" if peer else "")
    return [
        objective, str(rank), *seconds("seconds"), f"{times(peer, ours):.2f}" if peer else "", *seconds("cpu_seconds"),
        *both("peak_mib", ",.0f"), ratio("peak_mib"),
        *both("peak_over_start_mib", ",.0f"), ratio("peak_over_start_mib"), agreement,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has TRL (default: this one)")
    parser.add_argument("--only", choices=("ours", "trl"), help="measure one side alone")
    parser.add_argument("--objectives", nargs="+", default=["orpo", "dpo"], choices=("orpo", "dpo"))
    parser.add_argument("--ranks", nargs="+", type=int, default=[256, 16])
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=8, choices=(4, 8))
    parser.add_argument("--model", default="", metavar="DIR", help="the Llama of its config.json, not --vocab")
    parser.add_argument("--pairs", type=int, default=4, help="of a step (default 4)")
    parser.add_argument("--dtype", default="float32", choices=sorted(TOLERANCE))
    parser.add_argument("--compile", action="store_true", help="compile our decoder block")
    parser.add_argument("--peer-compile", action="store_true", help="TRL with torch_compile=True")
    parser.add_argument("--checkpoint-activations", action="store_true", help="both sides recompute activations")
    parser.add_argument("--peer-checkpoint", action="store_true", help="TRL alone recomputes: its own default")
    parser.add_argument("--cache-reference", action="store_true", help="DPO's is computed before, on both sides")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    with_peer = options.only != "ours" and has_trl(options.peer_python)
    if options.only == "trl" and not with_peer:
        raise SystemExit(f"{options.peer_python} has no trl, peft and datasets; give --peer-python")
    sides = [options.only] if options.only else ["ours", *["trl"] * with_peer]
    lines = []
    for objective in options.objectives:
        for rank in options.ranks:
            pythons = {"ours": sys.executable, "trl": options.peer_python}
            found = run_in_turns(WORKER, [(pythons[side], variant(side, objective, rank, options)) for side in sides])
            if options.only == "trl":
                continue
            if with_peer:
                check_agreement(*found, options.dtype)
            lines.append(row(objective, rank, found[0], found[1] if with_peer else None))
    if lines:
        flags = " ".join(sys.argv[1:]) or "default options"
        print(f"\n{datetime.date.today()}, {flags}; medians of {options.repeats}\n")
        for cells in (HEADER, ["---"] * len(HEADER), *lines):
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

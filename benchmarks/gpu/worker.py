"""A part of the GPU benchmark in a process of its own: one JSON object a row on standard output.

``parts`` starts it, with an interpreter that has the packages that the part needs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Emit = Callable[[dict], None]


def run_tests(emit: Emit) -> None:
    """Runs the tests that need a CUDA device; emits the numbers of those that passed, failed and were skipped."""
    tests = (ROOT / "tests").rglob("test_*.py")
    marked = re.compile(r"mark\.cuda|each_device")  # the mark, and the fixture whose tests have it
    files = sorted(str(path.relative_to(ROOT)) for path in tests if marked.search(path.read_text("utf-8")))
    parallel = ["--numprocesses", "auto", "--maxprocesses", "6"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *parallel, *files]
    emit(count_tests(subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout))


def count_tests(output: str) -> dict:
    """From what pytest printed. Raises ValueError if it printed no summary."""
    lines = output.rstrip().splitlines()
    found = {
        word.rstrip("s"): int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", lines[-1] if lines else "")
    }
    if not found:
        raise ValueError(f"pytest ended without a summary: {output[-500:]}")
    failed = [line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))]
    counts = {"passed": found.get("passed", 0), "failed": found.get("failed", 0) + found.get("error", 0)}
    return counts | {"skipped": found.get("skipped", 0), "names": failed}


def run_part(kind: str, arguments: dict[str, Any], emit: Emit) -> None:
    """The part's rows. What it needs is imported here, since the peer's interpreter lacks some of it."""
    if kind == "tests":
        run_tests(emit)
    elif kind == "agreement":
        from benchmarks.gpu.agreement import measure_agreement

        measure_agreement(**arguments, emit=emit)
    elif kind == "steps":
        from benchmarks.gpu.steps import measure_steps

        measure_steps(**arguments, emit=emit)
    elif kind == "peer steps":
        from benchmarks.gpu.peer import measure_peer_steps

        measure_peer_steps(**arguments, emit=emit)
    elif kind == "decoding":
        from benchmarks.gpu.decoding import measure_decoding

        measure_decoding(**arguments, emit=emit)
    else:
        raise ValueError(kind)


def main() -> None:
    part = json.loads(sys.argv[1])
    rows = os.fdopen(os.dup(1), "w")  # what libraries print goes to standard error
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    run_part(part["kind"], part["arguments"], lambda row: print(json.dumps(row), file=rows, flush=True))


if __name__ == "__main__":
    main()

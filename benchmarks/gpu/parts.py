"""The parts of the GPU benchmark: each runs in a process of its own with a time limit, and is kept when it is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mint.errors import InputError
from mint.files import read_json, write_aside

ROOT = Path(__file__).resolve().parents[2]
RUN, PAGE = "benchmark.json", "table.md"  # of the folder of results


@dataclass(frozen=True)
class Part:
    """kind, arguments: see ``worker.run_part``. limit: seconds. peer: whether the peer's interpreter runs it."""

    name: str
    kind: str
    limit: float
    arguments: dict[str, Any] = field(default_factory=dict)
    peer: bool = False


@dataclass
class Result:
    """The rows of a part. failure: why there are no more of them."""

    name: str
    rows: list[dict] = field(default_factory=list)
    failure: str | None = None
    seconds: float = 0.0


def check_folder(out: Path, about: dict[str, str]) -> None:
    """Notes in ``out`` what the results are about. Raises InputError if it holds those of something else."""
    file = out / RUN
    if not file.is_file():
        write_aside(file, json.dumps(about, indent=1))
        return
    before = read_json(file)
    if different := [name for name in about if before.get(name) != about[name]]:
        name = different[0]
        raise InputError(
            f"--out {out} holds results for {name} {before.get(name)}, not {about[name]}: give another one"
        )


def run_parts(parts: Sequence[Part], out: Path, peer: str | None, seconds: float) -> list[Result]:
    """The results of all parts, in order. Those that are kept in ``out`` are not run again; failed ones are.

    peer: the interpreter of the peer, None without one. seconds: for all parts together.
    """
    results, started = [], time.monotonic()
    for part in parts:
        file, left = out / f"{part.name}.json", seconds - (time.monotonic() - started)
        if file.is_file():
            results.append(Result(**read_json(file)))
            continue
        if part.peer and peer is None:
            result = Result(part.name, failure="not run: the peer is not installed (--peer-python)")
        elif left < min(part.limit, 10):
            result = Result(part.name, failure="not run: the time is up; the same command goes on here")
        else:
            print(f"{part.name} ...", file=sys.stderr)
            result = run_process(part, peer if part.peer and peer else sys.executable, min(part.limit, left))
            print(f"{part.name}: {result.seconds:.0f} s, {result.failure or 'done'}", file=sys.stderr)
        if result.failure is None:
            write_aside(file, json.dumps(asdict(result)))
        results.append(result)
    return results


def run_process(part: Part, python: str, limit: float) -> Result:
    """Runs a part; it is killed with all that it started if it is not done in ``limit`` seconds."""
    call = json.dumps({"kind": part.kind, "arguments": part.arguments})
    return collect(part.name, [python, "-m", "benchmarks.gpu.worker", call], limit)


def collect(name: str, command: Sequence[str], limit: float) -> Result:
    """The rows that a command printed, one JSON object a line, also where it failed later."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        errors.seek(0)
        whole = [line for line in output if line.endswith("\n")]
        failure = None if status == 0 else f"not done in {limit:.0f} s" if status is None else _reason(errors, status)
    return Result(name, [json.loads(line) for line in whole], failure, time.monotonic() - started)


def _reason(errors, status: int) -> str:
    """The last line of an error."""
    lines = [line.strip() for line in errors if line.strip()]
    return f"failed ({status}): {lines[-1][:300] if lines else 'no message'}"

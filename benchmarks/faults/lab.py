"""Where faults are tried: a tiny model, its undisturbed run, and processes that train it and can be disturbed."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot  # noqa: F401 (imported once, before the processes are forked, as are others below)
import torch._dynamo  # noqa: F401

import train
from mint.data.preferences import write_jsonl
from mint.demo.tiny_model import write_base
from mint.training import curves, monitor, result, setup  # noqa: F401

STEPS, LIMIT = 8, 300.0  # of a run; seconds until a process counts as hanging
WORDS = ("ptosis", "seizures", "scoliosis", "short stature", "hypotonia", "cleft palate")


class Problem(Exception):
    """What a trial should not have met."""


class Process:
    """A forked process that runs ``job``, which returns its status; its output goes to a file."""

    def __init__(self, job: Callable[[], int], log: Path):
        self.log, self.status = log, None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(job)

    def _run(self, job: Callable[[], int]) -> None:
        status = 99
        try:
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            status = job()
        except KeyboardInterrupt:  # outside of what a command guards
            status = 128 + signal.SIGINT
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def end(self, number: int | None = None) -> int:
        """Sends a signal, if one is given, and waits for the end; returns the status.

        Raises Problem for a hang or a traceback.
        """
        if number is not None:
            os.kill(self.pid, number)
        started = time.monotonic()
        while self.status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - started > LIMIT:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise Problem(f"no end within {LIMIT:.0f} s")
            else:
                time.sleep(0.005)
        for word in ("Traceback", "Exception ignored"):
            if word in self.text:
                raise Problem(self.text[-1500:])
        return self.status

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Lab:
    """The model, the pairs, an undisturbed run, and the trials' folders. seed: of the moments and the damages."""

    def __init__(self, root: Path, seed: int):
        self.root, self.rng, self.count = root, random.Random(seed), 0
        curves.plot_curves = lambda *_: None  # drawing takes longer than the rest of such a short run
        records = [
            {"id": str(i), "prompt": f"A patient with {a} \u00e9.", "chosen": f"1. {b}", "rejected": f"1. no {a}"}
            for i, (a, b) in enumerate(zip(WORDS, WORDS[1:] + WORDS[:1], strict=True))
        ]
        write_jsonl(root / "pairs.jsonl", records)
        made = Process(lambda: write_base(root / "model", map(str, records * 9), "shallow", 200) and 0, root / "log")
        if made.end():
            raise Problem(made.text)
        started = time.monotonic()
        if (whole := self.train(self.folder())).end():
            raise Problem(whole.text)
        self.seconds = time.monotonic() - started
        self.expected = self.read(self.out(whole))

    def folder(self) -> Path:
        """A new folder for a trial."""
        self.count += 1
        path = self.root / f"trial-{self.count}"
        path.mkdir()
        return path

    @staticmethod
    def out(process: Process) -> Path:
        return process.log.parent / "run"

    def arguments(self, out: Path, *extra: str) -> list[str]:
        paths = ["--model", f"{self.root}/model", "--data", f"{self.root}/pairs.jsonl", "--out", str(out)]
        paths += ["--eval-data", f"{self.root}/pairs.jsonl", "--device", "cpu", "--lora-dropout", "0.1"]
        numbers = {"steps": STEPS, "save-every": 1, "keep": 3, "batch-size": 2, "eval-every": 4, "lora-rank": 2}
        return [*paths, *(word for name, value in numbers.items() for word in (f"--{name}", str(value))), *extra]

    def train(self, folder: Path, *extra: str) -> Process:
        """A run in ``folder/run``; it continues what is there."""
        self.count += 1
        arguments = self.arguments(folder / "run", *(extra or ("--resume", "auto")))

        def job() -> int:
            obey_permissions()
            return train.main(arguments)

        return Process(job, folder / f"log-{self.count}")

    @staticmethod
    def read(out: Path) -> tuple:
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        kept = [{key: value for key, value in row.items() if key != "step_seconds"} for row in rows]
        return (out / "adapter" / "adapter_model.safetensors").read_bytes(), kept

    def resume(self, folder: Path) -> str:
        """Resumes the run of a folder; raises Problem unless it ends as the undisturbed one."""
        process = self.train(folder)
        if process.end():
            raise Problem(process.text[-1500:])
        adapter, rows = self.read(folder / "run")
        if adapter != self.expected[0] or rows != self.expected[1]:
            raise Problem(f"the {'metrics' if adapter == self.expected[0] else 'adapter'} differ after the resume")
        if left := list((folder / "run").rglob(".*")):
            raise Problem(f"left over: {left}")
        shutil.rmtree(folder / "run")
        return "identical"

    def refused(self, process: Process, words: str) -> None:
        """Raises Problem unless the process ended with an error that holds ``words``."""
        if process.end() != 2 or words not in process.text or "error: " not in process.text:
            raise Problem(f"status {process.status}: {process.text[-1500:]}")

    def wait_for(self, place: Path, process: Process) -> None:
        deadline = time.monotonic() + LIMIT
        while not place.exists() and time.monotonic() < deadline:
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise Problem(process.text[-1500:])
            time.sleep(0.002)


def obey_permissions() -> None:
    """Root may write anywhere: gives up that right (CAP_DAC_OVERRIDE)."""
    libc, head, rights = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if hasattr(libc, "capget") and not libc.capget(head, rights):
        rights[0] &= ~(1 << 1)
        libc.capset(head, rights)

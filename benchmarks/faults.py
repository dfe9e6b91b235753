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
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot  # noqa: F401 (imported once, before the processes are forked, as are others below)
import torch
import torch._dynamo

import train
from benchmarks.command import ROOT
from benchmarks.damages import DAMAGES
from mint.data.preferences import write_jsonl
from mint.demo.cache import cached
from mint.demo.tiny_model import write_base
from mint.training import curves, monitor, result, setup  # noqa: F401

STEPS, LIMIT = 8, 300.0  # of a run; seconds until a process counts as hanging
NAMESPACE = "MINT_FAULTS_NAMESPACE"  # set in the user namespace
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
        """Sends a signal, if one is given, and waits for the end; returns the status. Raises Problem as ``check``."""
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

    def resume(self, folder: Path, *extra: str) -> str:
        """Resumes the run of a folder; raises Problem unless it ends as the undisturbed one."""
        process = self.train(folder, *extra)
        if process.end():
            raise Problem(process.text[-1500:])
        adapter, rows = self.read(folder / "run")
        if adapter != self.expected[0] or rows != self.expected[1]:
            raise Problem(f"the {'metrics' if adapter == self.expected[0] else 'adapter'} differ after the resume")
        if left := list((folder / "run").rglob(".*")):
            raise Problem(f"left over: {left}")
        shutil.rmtree(folder / "run")
        return "identical"

    def refused(self, process: Process, words: str, status: int = 2) -> None:
        """Raises Problem unless the process ended with an error that holds ``words``."""
        if process.end() != status or words not in process.text or "error: " not in process.text:
            raise Problem(f"status {process.status}: {process.text[-1500:]}")

    def wait_for(self, place: Path, process: Process) -> None:
        deadline = time.monotonic() + LIMIT
        while not place.exists() and time.monotonic() < deadline:
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise Problem(process.text[-1500:])
            time.sleep(0.002)


# -- trials: number, lab -> what happened ------------------------------------------------------------------------


def kill(number: int, lab: Lab) -> str:
    """SIGKILL at a random moment, every third time twice."""
    folder = lab.folder()
    for _ in range(2 if number % 3 == 2 else 1):
        process = lab.train(folder)
        time.sleep(lab.rng.uniform(0, lab.seconds))
        process.end(signal.SIGKILL)
    return lab.resume(folder)


def stop(number: int, lab: Lab) -> str:
    """SIGINT or SIGTERM at a random moment; every fourth while a new interpreter imports the command."""
    folder, sent = lab.folder(), (signal.SIGINT, signal.SIGTERM)[number % 2]
    if number % 4 == 0:
        command = [sys.executable, str(ROOT / "train.py"), *lab.arguments(folder / "run", "--resume", "auto")]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(lab.rng.uniform(0.1, 1.5))
        started.send_signal(sent)
        try:
            text, status = started.communicate(timeout=LIMIT)[0], started.returncode
        except subprocess.TimeoutExpired:
            started.kill()
            raise Problem(f"no end within {LIMIT:.0f} s") from None
        if "Traceback" in text:
            raise Problem(text[-1500:])
    else:
        process = lab.train(folder)
        time.sleep(lab.rng.uniform(0.05, lab.seconds))
        status, text = process.end(sent), process.text
    if status not in (0, 128 + sent, -sent):  # -sent: before Python runs the command
        raise Problem(f"status {status}: {text[-1500:]}")
    return lab.resume(folder)


def damage(number: int, lab: Lab) -> str:
    """One damage to the newest checkpoint of a stopped run."""
    folder = lab.folder()
    base = lab.root / "stopped"
    if not base.exists():
        process = lab.train(folder)
        lab.wait_for(folder / "run" / "checkpoints" / "step-6", process)
        process.end(signal.SIGTERM)
        shutil.copytree(folder / "run", base)
    else:
        shutil.copytree(base, folder / "run")
    newest = max((folder / "run" / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    name = random.Random(0).sample(list(DAMAGES), len(DAMAGES))[number % len(DAMAGES)]
    DAMAGES[name](newest, lab.rng)
    try:
        lab.refused(lab.train(folder, "--resume", str(newest)), newest.name)
        return lab.resume(folder)
    except Problem as problem:
        raise Problem(f"{name}: {problem}") from None


def fill_disk(number: int, lab: Lab) -> str:
    """A disk that is too small, by another amount each time; then it grows."""
    with disk(lab.folder(), f"{48 + 40 * (number % 8)}k") as folder:
        process = lab.train(folder)
        lab.refused(process, "No space left on device")
        if any((folder / "run" / "checkpoints").glob("step-*")) and "the last good checkpoint is" not in process.text:
            raise Problem(process.text[-1500:])
        mount(folder, "remount,size=64m")
        return lab.resume(folder)


def remove(number: int, lab: Lab) -> str:
    """Files that are removed, or folders that become read-only, during a run."""
    folder = lab.folder()
    run, process = folder / "run", lab.train(folder)
    lab.wait_for(run / "checkpoints" / "step-2", process)
    if number % 4 == 3:
        for place in (run / "checkpoints", run):
            place.chmod(0o500)
        lab.refused(process, "the last good checkpoint is")
        for place in (run, run / "checkpoints"):
            place.chmod(0o700)
        (run / ".lock").unlink()  # which the run could not remove
        return lab.resume(folder)
    place = (run, run / "checkpoints", run / "metrics.jsonl")[number % 4]
    for _ in range(100):  # the run may be writing there
        shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
    if process.end() not in (0, 2):
        raise Problem(process.text[-1500:])
    shutil.rmtree(run, ignore_errors=True)
    return lab.resume(folder) and "no traceback"


def race(number: int, lab: Lab) -> str:
    """Two processes at the same place: a run that is resumed while it runs, two new runs, two builders of a cache."""
    folder = lab.folder()
    if number % 3 == 0:
        first = lab.train(folder)
        lab.wait_for(folder / "run" / "checkpoints" / f"step-{lab.rng.randrange(1, STEPS - 1)}", first)
        lab.refused(lab.train(folder), "is in use by another run")
        if first.end():
            raise Problem(first.text)
        return lab.resume(folder)
    if number % 3 == 1:
        both = [lab.train(folder, "--seed", "0") for _ in range(2)]
        if sorted(process.end() for process in both) != [0, 2]:
            raise Problem("\n".join(process.text for process in both)[-3000:])
        refused = max(both, key=lambda process: process.status)
        if "in use" not in refused.text and "holds a run already" not in refused.text:
            raise Problem(refused.text)
        return lab.resume(folder)
    both = [Process(lambda: build(folder), folder / f"log-{name}") for name in "ab"]
    if [process.end() for process in both] != [0, 0] or len((folder / "built").read_text()) != 1:
        raise Problem("\n".join(process.text for process in both)[-3000:])
    return "identical"


def build(folder: Path) -> int:
    """Builds a demo's cache, or waits for the other process that does."""
    os.environ["XDG_CACHE_HOME"] = str(folder)

    def job(place: Path) -> None:
        with (folder / "built").open("a") as file:
            file.write("x")
        time.sleep(0.3)
        (place / "model").mkdir()

    return 0 if (cached("race", ["demo/cache.py"], job, "no time") / "model").is_dir() else 1


def mount(folder: Path, options: str) -> None:
    """Mounts a disk in memory, or with ``remount`` changes it."""
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """``folder``, with a disk of its own in the block."""
    mount(folder, f"size={size}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def obey_permissions() -> None:
    """Root may write anywhere: gives up that right (CAP_DAC_OVERRIDE)."""
    libc, head, rights = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if hasattr(libc, "capget") and not libc.capget(head, rights):
        rights[0] &= ~(1 << 1)
        libc.capset(head, rights)


TRIALS = {  # flag -> (trial, how many by default, what the table calls it)
    "kills": (kill, 50, "kills at random moments"),
    "full-disks": (fill_disk, 8, "full disks"),
    "damages": (damage, 40, "damaged checkpoints"),
    "races": (race, 12, "races"),
    "removals": (remove, 8, "removed files, read-only folders"),
    "signals": (stop, 12, "Ctrl-C and SIGTERM"),
}


def can_mount() -> bool:
    return NAMESPACE in os.environ


def enter_namespace() -> None:
    """Starts the command again in a user namespace, where disks can be mounted; returns where there is none."""
    words = ["unshare", "--user", "--map-root-user", "--mount"]
    if can_mount() or not shutil.which(words[0]):
        return
    if not subprocess.run([*words, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        os.environ[NAMESPACE] = "1"
        os.execvp(words[0], [*words, sys.executable, "-m", "benchmarks.faults", *sys.argv[1:]])


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

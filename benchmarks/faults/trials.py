"""The trials. Each takes its number and the lab, and returns what happened, or raises Problem."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.command import ROOT
from benchmarks.faults.damages import DAMAGES
from benchmarks.faults.disks import disk, mount
from benchmarks.faults.lab import LIMIT, STEPS, Lab, Problem, Process
from mint.demo.cache import cached


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


TRIALS = {  # flag -> (trial, how many by default, what the table calls it)
    "kills": (kill, 50, "kills at random moments"),
    "full-disks": (fill_disk, 8, "full disks"),
    "damages": (damage, 40, "damaged checkpoints"),
    "races": (race, 12, "races"),
    "removals": (remove, 8, "removed files, read-only folders"),
    "signals": (stop, 12, "Ctrl-C and SIGTERM"),
}

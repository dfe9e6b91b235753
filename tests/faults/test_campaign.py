"""A short version of ``python -m benchmarks.faults``: real kills, a full disk and races."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials are forked")
def test_no_fault_costs_more_than_the_steps_since_the_last_checkpoint():
    counts = {"kills": 3, "full-disks": 1, "races": 2}
    flags = [word for name, count in counts.items() for word in (f"--{name}", str(count))]
    command = [sys.executable, "-m", "benchmarks.faults", *flags]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [int(trials) for _, trials, *_ in rows] == list(counts.values())
    assert all(problems == "0" for *_, problems in rows)
    outcomes = [outcome for _, _, outcome, _ in rows]
    assert outcomes[0] == "3 identical" and outcomes[2] == "2 identical"
    assert outcomes[1] in ("1 identical", "1 not possible here")  # where no disk can be mounted

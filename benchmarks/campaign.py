"""The campaign of faults and damaged input; its tables go into docs/trust.md.

    python -m benchmarks.campaign --out DIR [--inputs 100000] [--seed 0]

Every kind of fault (``benchmarks.faults``) and every reader (``benchmarks.fuzz``) is a part, whose table is a file in
``DIR``. Parts that are there are not run again. The parts run one after the other; about an hour of a core. Exits
with status 1 if a part found a problem.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.command import ROOT, make_parser, run
from benchmarks.faults.trials import TRIALS
from mint.errors import InputError
from mint.files import make_folder, write_aside
from mint.progress import Progress
from tests.fuzz.readers import READERS

PAGE = ROOT / "docs" / "trust.md"


def run_campaign(args: argparse.Namespace) -> str:
    """Runs the parts that are missing, fills the page, and returns the tables.

    Raises InputError if a part found a problem, after all have run.
    """
    out, share = Path(args.out), -(-args.inputs // len(READERS))
    seed = ["--seed", str(args.seed)]
    parts = {
        "faults": {name: [f"--{name}", str(count), *seed] for name, (_, count, _) in TRIALS.items()},
        "fuzz": {name: ["--only", name, "--inputs", str(share), *seed] for name in READERS},
    }
    failed: list[str] = []
    tables: dict[str, str] = {}
    for module, commands in parts.items():
        rows: list[str] = []
        for name, flags in Progress(list(commands.items()), desc=module, unit="part"):
            file = make_folder(out / module) / f"{name.replace(' ', '-')}.md"
            if not file.is_file():
                status, table = run_part(module, flags)
                if status:
                    failed.append(f"{module} {name} (status {status})")
                    print(table, file=sys.stderr)
                    continue
                write_aside(file, table)
            header, dashes, *found = [line for line in file.read_text("utf-8").splitlines() if line.startswith("|")]
            rows = [*(rows or [header, dashes]), *(row for row in found if not row.startswith("| all |"))]
        tables[module] = "\n".join(rows + ([total(rows[2:])] if module == "fuzz" else []))
    if failed:
        raise InputError(f"problems in {', '.join(failed)}; the other tables are in {out}")
    when = f"{datetime.date.today()}, commit {commit()}, {processor()}, torch {torch.__version__}, seed {args.seed}:"
    write_aside(PAGE, fill(PAGE.read_text("utf-8"), {name: f"{when}\n\n{table}" for name, table in tables.items()}))
    return "\n\n".join(tables.values())


def run_part(module: str, flags: list[str]) -> tuple[int, str]:
    """(status, table) of a part, in a process of its own: what it starts and what it breaks ends with it."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *flags]
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    return done.returncode, done.stdout


def fill(page: str, texts: dict[str, str]) -> str:
    """The page with ``texts`` between its marks ``<!-- NAME -->`` and ``<!-- end of NAME -->``."""
    for name, text in texts.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
        page, count = re.subn(pattern, lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page, flags=re.DOTALL)
        assert count == 1, f"the page has no place for {name}"
    return page


def total(rows: list[str]) -> str:
    """The row that sums the counts of the others."""
    counts = zip(*([int(cell.replace(",", "")) for cell in row.split("|")[2:6]] for row in rows), strict=True)
    return f"| all | {' | '.join(f'{sum(column):,}' for column in counts)} | |"


def commit() -> str:
    return subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()


def processor() -> str:
    """The name of the processor, where the kernel tells it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return found[1].strip() if found else "unknown processor"


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together (default 100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, the damages and the inputs")
    return run(parser, run_campaign)


if __name__ == "__main__":
    sys.exit(main())

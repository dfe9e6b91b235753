"""FiRe-MPO's findings on a ward with its own habits, over several seeds.

    python -m benchmarks.fire --out DIR [--seeds 3] [--findings grounding style] [--rows DPO FiRe] [--decoder DIR]

A policy is taught on the patients of a ward, whose findings are correlated (``policy``). Findings:

    grounding    every row's use of the lesion, and its clinical accuracy; this chooses the learning rates
    habits       some of the rows on pairs of balanced patients
    corruption   where and how images are corrupted
    style        pairs whose answers differ in form
    stability    long answers without the KL term

A command that was stopped goes on where it was; one that is finished writes tables and figures again from its runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.command import add_hardware, check_study, make_parser, run
from benchmarks.fire.corruption import find_corruption
from benchmarks.fire.grounding import RATES, ROWS, find_grounding
from benchmarks.fire.habits import find_habits
from benchmarks.fire.methods import OURS
from benchmarks.fire.policy import read_decoder, teach_policy
from benchmarks.fire.stability import find_stability
from benchmarks.fire.style import find_style
from benchmarks.fire.ward import Ward
from mint.cli import choose_device
from mint.demo.stages import Hardware
from mint.errors import InputError
from mint.synthetic.radiograph_set import LONG, SHORT

STEPS = 320  # of 16 pairs
FINDINGS = ("grounding", "habits", "corruption", "style", "stability")
NEEDED = {"habits": {OURS}, "corruption": {OURS}, "stability": {OURS}}  # rows


def run_findings(args: argparse.Namespace) -> str:
    """Draws, trains and scores what is missing; writes the tables and figures, and returns the tables.

    Raises InputError for numbers out of range, a finding without the rows that it needs, or a folder whose runs have
    other settings.
    """
    if min(args.seeds, args.steps, args.patients) < 1 or min(args.rates) <= 0:
        raise InputError("--seeds, --steps and --patients must be at least 1, --rates greater than 0")
    for finding in args.findings:
        if missing := NEEDED.get(finding, set()) - set(args.rows):
            raise InputError(f"--findings {finding} needs the rows {', '.join(sorted(missing))}")
    root = Path(args.out)
    decoder = Path(args.decoder) if args.decoder else None
    hardware = Hardware(choose_device(args.device, args.dtype)[0].type, args.dtype)
    if decoder:
        read_decoder(decoder)
    settings = {
        "decoder": args.decoder and os.path.abspath(args.decoder),
        "patients": args.patients,
        **hardware._asdict(),
    }
    check_study(root / "study.json", settings)
    policy = teach_policy(root / "policy", decoder, hardware)
    ward = Ward(root, policy, args.seeds, args.steps, args.patients, LONG if decoder else SHORT, hardware)
    ward.prepare()
    tables = [find_grounding(ward, args.rows, args.rates)]
    if "habits" in args.findings:
        tables.append(find_habits(ward, args.rows))
    if "corruption" in args.findings:
        tables.append(find_corruption(ward))
    if "style" in args.findings:
        tables.append(find_style(ward, args.rates))
    if "stability" in args.findings:
        tables.append(find_stability(ward, args.rates))
    return "\n\n".join(tables)


def main() -> int:
    parser = make_parser(__doc__, seeds=3)
    add = parser.add_argument
    add("--decoder", metavar="DIR", help="a pretrained Llama for the policy (default: a tiny one)")
    add_hardware(parser)
    add("--patients", type=int, default=300, metavar="N", help="unseen ones of each population (default 300)")
    add("--findings", nargs="+", choices=FINDINGS, default=FINDINGS, help="default: all; grounding comes first always")
    add("--steps", type=int, default=STEPS, help=f"of 16 pairs (default {STEPS})")
    add("--rates", type=float, nargs="+", default=RATES, metavar="X", help="learning rates to choose from")
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    return run(parser, run_findings)


if __name__ == "__main__":
    sys.exit(main())

"""FiRe-MPO's comparison on synthetic radiographs over several seeds, unattended.

Every seed samples its own patients. The cached policy answers questions about them; its answers are edited and the
lesions inpainted. Each method starts from the policy with the same pairs; all are scored on the same unseen
radiographs. A stopped run continues; ``--rows`` selects methods.

    python -m benchmarks.radiograph_seeds --out DIR [--seeds 5] [--rows DPO FiRe]
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.command import make_parser, run
from benchmarks.fire_methods import ABLATIONS, METHODS, align, compare
from mint.data.preferences import write_jsonl
from mint.demo.radiograph_demo import contrast_images, make_pairs, prepare, score, write_asked
from mint.errors import InputError
from mint.prefs.question_files import contrasts
from mint.synthetic.radiograph_set import write_set
from train import train

UNSEEN = (300, 80)  # images and seed; not those of the demo, nor those that settings or the task were chosen on


def run_seeds(out: Path, seeds: int, methods: dict[str, dict]) -> str:
    """Trains and scores all methods; returns the table. Raises InputError for fewer than one seed."""
    if seeds < 1:
        raise InputError(f"at least one seed, not {seeds}")
    model, unseen = str(prepare(train) / "model"), out / "unseen"
    if not (unseen / "contrasts.jsonl").is_file():
        records = write_set(unseen, "unseen", *UNSEEN)
        write_jsonl(unseen / "test.jsonl", records)
        write_jsonl(unseen / "contrasts.jsonl", contrasts(records))
    painted = contrast_images(unseen, out / "contrasts")
    print(score("base", model, None, out / "base", unseen, painted))
    rows = {"base": [out / "base"]}
    for seed in range(seeds):
        folder = out / f"seed-{seed}"
        if not (folder / "pairs.jsonl").is_file():
            write_jsonl(folder / "questions.jsonl", write_asked(folder, 210 + seed))
            make_pairs(folder, Path(model))
        for row, scores in align(model, folder / "pairs.jsonl", folder, methods, {"seed": seed}, unseen, painted):
            rows.setdefault(row, []).append(scores)
        print(compare(rows, out), flush=True)
    return compare(rows, out)


def main() -> int:
    parser, known = make_parser(__doc__, seeds=5), METHODS | ABLATIONS
    parser.add_argument("--rows", nargs="+", choices=known, default=list(known), metavar="ROW", help=", ".join(known))
    return run(parser, lambda args: run_seeds(Path(args.out), args.seeds, {row: known[row] for row in args.rows}))


if __name__ == "__main__":
    sys.exit(main())

"""Make small models and synthetic data, as the demos use them.

python -m mint.demo base --pairs FILE.jsonl [FILE.jsonl ...] --out DIR     a tokenizer and a random Llama
python -m mint.demo base --vision --pairs FILE.jsonl --out DIR             a tokenizer and a random LLaVA
python -m mint.demo cohort --out DIR                                       its patients, with portraits, as a table
python -m mint.demo tiles --out DIR                                        microscope tiles of 19 tissues, as a table
python -m mint.demo radiographs --out DIR                                  radiographs, questions about them, and masks
python -m mint.demo gallery --out FILE.png                                 the syndromes as they are drawn
python -m mint.demo reader --out DIR                                       a network that names the findings of faces
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mint.cli import run_command
from mint.data.preferences import read_preferences
from mint.demo.scarce import write_reader
from mint.demo.tiny_model import SHAPES, TOWER, write_base
from mint.files import check_unused
from mint.synthetic.cohort_folder import write_cohort
from mint.synthetic.gallery import write_gallery
from mint.synthetic.populations import POPULATIONS
from mint.synthetic.radiograph_set import write_radiographs
from mint.synthetic.radiographs import EVERYONE
from mint.synthetic.tiles_folder import write_tiles


def texts(paths: Sequence[str]) -> Iterator[str]:
    """The prompts and answers of preference files, without span tags, and the role names of their chats."""
    for path in paths:
        for record in read_preferences(path, require_rejected=False):
            messages = record.prompt if isinstance(record.prompt, list) else []
            yield record.prompt if isinstance(record.prompt, str) else ""
            yield from (text for message in messages for text in (message["role"], message["content"]))
            yield from ("assistant", record.chosen.text, record.rejected.text if record.rejected else "")


def add_base(commands) -> None:
    parser = commands.add_parser("base", help="a small random Llama or LLaVA, with a tokenizer of preference files")
    parser.add_argument("--pairs", nargs="+", required=True, metavar="FILE.jsonl")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--vocabulary", type=int, default=10_000)
    parser.add_argument("--vision", action="store_true", help="a LLaVA that reads images at 64 x 64 pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run_base)


def run_base(args) -> None:
    check_unused(args.out)
    vision = TOWER if args.vision else None
    # The LLaVA's head is a layer of its own, as in LLaVA-1.5, so that an adapter can have it as a target. Its tokens
    # are words, since FiRe-MPO rewards single words.
    kinds = {"words": args.vision, "tied": not args.vision}
    folder = write_base(args.out, texts(args.pairs), args.shape, args.vocabulary, args.seed, vision, **kinds)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) // 4
    kind = "LLaVA" if args.vision else "Llama"
    print(f"{folder}: a random {kind} of {size / 1e6:.1f} M parameters, with a tokenizer of {', '.join(args.pairs)}")


def add_drawn(name: str, help: str, run: Callable, out: str = "DIR", **flags: tuple) -> Callable:
    """A sub-command that draws something: --out, --seed, and ``flags``: (default, help) or (default, help, choices)."""

    def add(commands) -> None:
        parser = commands.add_parser(name, help=help)
        parser.add_argument("--out", required=True, metavar=out)
        for flag, (default, text, *choices) in flags.items():
            shown = f"{text} (default {default})"
            parser.add_argument(
                f"--{flag}", type=type(default), default=default, help=shown, choices=next(iter(choices), None)
            )
        parser.add_argument("--seed", type=int, default=0)
        parser.set_defaults(run=run)

    return add


def run_cohort(args) -> None:
    write_cohort(args.out, args.train, args.test, args.seed)
    print(f"{args.out}/cohort.csv: {args.train} patients to train on, {args.test} to test on")


def run_tiles(args) -> None:
    write_tiles(args.out, args.train, args.test, args.seed)
    print(f"{args.out}/tiles.csv: of every tissue {args.train} tiles to train on, {args.test} to test on")


def run_radiographs(args) -> None:
    patients = POPULATIONS.get(args.patients, EVERYONE)
    counts = write_radiographs(args.out, args.taught, args.asked, args.unseen, args.seed, patients)
    print(f"{args.out}: " + ", ".join(f"{count} in {name}" for name, count in counts.items()))


def run_reader(args) -> None:
    check_unused(args.out)
    write_reader(Path(args.out), args.faces, args.seed)
    print(f"{args.out}: a face reader; generate_prefs.py disease --fit DIR --base {args.out} makes a teacher of it")


def run_gallery(args) -> None:
    check_unused(args.out)
    write_gallery(args.out, args.patients, args.seed)
    print(f"{args.out}: {args.patients} portraits of each syndrome")


COMMANDS = (
    add_base,
    add_drawn(
        "cohort",
        "synthetic patients with notes and portraits, as a table and images",
        run_cohort,
        train=(1200, "patients of the train split"),
        test=(600, "patients of the test split"),
    ),
    add_drawn(
        "tiles",
        "drawn microscope tiles of 19 tissues, as a table and images",
        run_tiles,
        train=(60, "tiles of every tissue in the train split"),
        test=(20, "tiles of every tissue in the test split"),
    ),
    add_drawn(
        "radiographs",
        "drawn chest radiographs: lessons, questions, masks, contrasts",
        run_radiographs,
        taught=(2000, "images of the lessons"),
        asked=(600, "images of the questions to answer"),
        unseen=(200, "images of the test questions"),
        patients=("everyone", "population: see docs/fire_findings.md", ("everyone", *POPULATIONS)),
    ),
    add_drawn(
        "reader",
        "a network that names the findings of faces, trained on drawn ones",
        run_reader,
        faces=(12_000, "faces to learn from"),
    ),
    add_drawn(
        "gallery",
        "a contact sheet of portraits of the demo cohort's syndromes",
        run_gallery,
        "FILE.png",
        patients=(4, "portraits of each syndrome"),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(__doc__.splitlines()[0], COMMANDS, argv, prog="python -m mint.demo")


if __name__ == "__main__":
    sys.exit(main())

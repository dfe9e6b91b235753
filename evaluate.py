"""Score models: decode answers for a data set, print a table, save every answer; compare saved evaluations.

python evaluate.py disease --model DIR [--adapter DIR] --cases PATH
python evaluate.py disease --predictions FILE.jsonl --cases PATH
python evaluate.py tissue --model DIR [--adapter DIR] --cases TILES --teacher CLIP
python evaluate.py vqa --model DIR [--adapter DIR] --questions FILE.json
python evaluate.py report --model DIR [--adapter DIR] --reports annotation.json
python evaluate.py sensitivity --model DIR [--adapter DIR] --data PAIRS.jsonl
python evaluate.py attention --model DIR [--adapter DIR] --data PAIRS.jsonl
python evaluate.py FILE.py:CLASS --model DIR [--adapter DIR] ...
python evaluate.py inspect --model DIR --adapter DIR --data PAIRS.jsonl --row N
python evaluate.py compare RUN RUN ... --out DIR
python evaluate.py style PAIRS.jsonl ...

Results go to --out (default runs/eval/COMMAND-MODEL-ADAPTER-DECODING); --resume continues an interrupted evaluation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mint.cli import lazy_command, run_command
from mint.tasks import task_names


def main(argv: Sequence[str] | None = None) -> int:
    commands = [
        *(lazy_command(name, help, "mint.tasks.base:add_evaluation", name) for name, help in task_names(argv).items()),
        lazy_command(
            "inspect", "a page on one pair: tokens, images, terms of the loss", "mint.tasks.inspect_pair:add_inspect"
        ),
        lazy_command(
            "compare", "saved evaluations of the same cases: tables and a page", "mint.tasks.compare_page:add_compare"
        ),
        lazy_command("style", "how much chosen and rejected answers differ in form", "mint.tasks.pair_style:add_style"),
    ]
    return run_command(__doc__.splitlines()[0], commands, argv)


if __name__ == "__main__":
    sys.exit(main())

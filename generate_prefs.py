"""Make preference files: from teachers' rankings, from a model's own answers, or from published pairs.

python generate_prefs.py disease --cases PATH --ranker naive-bayes --out prefs.jsonl
python generate_prefs.py disease --cases PATH --fit TEACHER --folds 5 --out prefs.jsonl
python generate_prefs.py disease --cases PATH --teacher TEACHER --out prefs.jsonl
python generate_prefs.py disease --cases PATH --teacher TEACHER --reject policy --policy MODEL --out prefs.jsonl
python generate_prefs.py tissue --cases PATH --teacher vinid/plip --out prefs.jsonl
python generate_prefs.py FILE.py:CLASS ... --out prefs.jsonl
python generate_prefs.py questions --lesions TABLE --out DIR
python generate_prefs.py questions --vqa FILE --images DIR --out DIR
python generate_prefs.py edit --questions FILE.jsonl --model DIR --out prefs.jsonl
python generate_prefs.py mmedpo --pairs FILE.json --images DIR --out prefs.jsonl
python generate_prefs.py corrupt --data prefs.jsonl --out corrupted.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mint.cli import lazy_command, run_command
from mint.tasks import task_names

ALIASES = {"disease": ["mml"], "tissue": ["clip"]}
OTHERS = {
    "questions": (
        "mint.prefs.lesion_questions",
        "questions with answers and truths, from labels and masks or a VQA set",
    ),
    "edit": ("mint.prefs.edit_pairs", "a model's own answers beside their minimal edits: on-policy pairs"),
    "mmedpo": ("mint.prefs.mmedpo", "the pairs of MMedPO's files in this project's form"),
    "corrupt": ("mint.prefs.corrupt", "add lesion-corrupted copies of the images of pairs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    commands = [
        lazy_command(name, f"pairs of {help}", "mint.tasks.base:add_pairs", name, aliases=ALIASES.get(name, ()))
        for name, help in task_names(argv, known=tuple(ALIASES)).items()
    ]
    commands += [lazy_command(name, help, f"{module}:add_{name}") for name, (module, help) in OTHERS.items()]
    return run_command(__doc__.splitlines()[0], commands, argv)


if __name__ == "__main__":
    sys.exit(main())

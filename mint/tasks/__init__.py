"""The tasks: what a model is asked, how answers are scored. A task is one file and one line of ``TASKS``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

TASKS = {  # sub-command of evaluate.py -> (module:class, help)
    "disease": ("mint.tasks.disease:Disease", "ranked lists of rare diseases from clinical notes (MINT's first task)"),
    "tissue": ("mint.tasks.tissue:Tissue", "ranked lists of tissues of microscope tiles (MINT's second task)"),
    "vqa": ("mint.tasks.vqa:Vqa", "answers to questions about medical images"),
    "report": ("mint.tasks.report_generation:Report", "reports: BLEU, ROUGE-L, METEOR and the findings they state"),
    "sensitivity": (
        "mint.tasks.sensitivity:Sensitivity",
        "whether answers depend on the lesion or on a control region",
    ),
    "attention": ("mint.tasks.attention_on_lesion:Attention", "attention to the lesion while a model answers"),
}


def task_names(argv: Sequence[str] | None, known: Sequence[str] = tuple(TASKS)) -> dict[str, str]:
    """{sub-command: help} of the tasks ``known``, and of one outside the package that ``argv`` begins with."""
    first = next(iter(sys.argv[1:] if argv is None else argv), "")
    outside = {first: "a task in a file of your own"} if ".py:" in first else {}
    return {name: TASKS[name][1] for name in known} | outside


def load_task(name: str):
    """A new :class:`mint.tasks.base.Task`: a key of ``TASKS``, or FILE.py:CLASS. Raises InputError for a bad file."""
    if name in TASKS:
        module, _, attribute = TASKS[name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)()
    from mint.losses.registry import from_file

    return from_file(name, "task")()

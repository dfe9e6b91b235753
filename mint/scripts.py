"""The console scripts of an installation: ``mint-train``, ``mint-generate-prefs`` and ``mint-evaluate``."""

from __future__ import annotations

import runpy
from functools import partial
from pathlib import Path

PACKAGE = Path(__file__).parent


def command_file(name: str) -> Path:
    """The file of a command: in ``commands`` of an installed package, beside the package in a checkout."""
    installed = PACKAGE / "commands" / f"{name}.py"
    return installed if installed.is_file() else PACKAGE.parent / f"{name}.py"


def _run(name: str) -> None:
    runpy.run_path(str(command_file(name)), run_name="__main__")


train, generate_prefs, evaluate = (partial(_run, name) for name in ("train", "generate_prefs", "evaluate"))

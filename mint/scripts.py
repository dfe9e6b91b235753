"""The console scripts of an installation: ``mint-train``, ``mint-generate-prefs`` and ``mint-evaluate``."""

from __future__ import annotations

import runpy
from pathlib import Path

PACKAGE = Path(__file__).parent


def command_file(name: str) -> Path:
    """The file of a command: in ``commands`` of an installed package, beside the package in a checkout."""
    installed = PACKAGE / "commands" / f"{name}.py"
    return installed if installed.is_file() else PACKAGE.parent / f"{name}.py"


def train() -> None:
    """Runs ``train.py`` with the arguments of the process."""
    runpy.run_path(str(command_file("train")), run_name="__main__")


def generate_prefs() -> None:
    """Runs ``generate_prefs.py`` with the arguments of the process."""
    runpy.run_path(str(command_file("generate_prefs")), run_name="__main__")


def evaluate() -> None:
    """Runs ``evaluate.py`` with the arguments of the process."""
    runpy.run_path(str(command_file("evaluate")), run_name="__main__")

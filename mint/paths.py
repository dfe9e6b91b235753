"""The paths on a command line, checked before a command reads data or loads a model."""

from __future__ import annotations

import os
from pathlib import Path

from mint.errors import InputError
from mint.hub import local_dir

# Flags whose files or folders must exist, and those that name a model: a directory or hub id, or several.
EXISTING = ("cases", "teacher_cases", "fit_cases", "retrieve", "questions", "reports", "data", "eval_data")
EXISTING += ("predictions", "known_diseases", "templates", "findings", "tissues", "images", "lesions", "vqa", "pairs")
MODELS = ("model", "teacher", "base", "clip")
CONFIGS = ("config.json", "folds.json")  # of a model, of a cross-fitted teacher
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def check_paths(args: object) -> None:
    """Raises InputError for the first flag whose path does not exist, is no model or adapter, or cannot be written.

    args: the settings as attributes; those that are absent or not given are passed over. A hub id is not looked up.
    """
    for name in EXISTING:
        path = getattr(args, name, None)
        if path and not Path(path).exists():
            raise InputError(f"{_flag(name)} {path} does not exist")
    for name in MODELS:
        value = getattr(args, name, None)
        for one in value if isinstance(value, list) else [value] if value else []:
            folder = local_dir(one)
            if folder is not None and not any((folder / file).is_file() for file in CONFIGS):
                raise InputError(f"{_flag(name)}: {one} is not a model directory: config.json is missing")
    adapter = getattr(args, "adapter", None)
    if adapter and (missing := [file for file in ADAPTER if not Path(adapter, file).is_file()]):
        raise InputError(f"--adapter {adapter} holds no adapter: {missing[0]} is missing")
    if out := getattr(args, "out", None):
        check_writable("--out", out)


def check_writable(flag: str, target: str | Path, folder: bool = False) -> None:
    """Raises InputError if the file or folder ``target`` of ``flag`` can be neither written nor made.

    folder: it must not be a file.
    """
    path = Path(target).absolute()
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    if place == path and place.is_file() and not folder:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {target} cannot be written: {place} is not a folder that can be written to")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"

"""Files and folders that are whole or not there, with one message where they cannot be written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mint.errors import InputError


def make_folder(path: str | Path) -> Path:
    """The folder, made if it is not there. Raises InputError if that cannot be done."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be made: {error}") from None
    return Path(path)


def write_aside(path: str | Path, text: str) -> None:
    """Writes a text file beside its place and renames it. Raises InputError if it cannot be written."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from None


def check_unused(*paths: str | Path) -> None:
    """Raises InputError if one of the files that a command is about to write exists already."""
    for path in paths:
        if Path(path).exists():
            raise InputError(f"{path} exists already: delete it, or give another --out")


@contextmanager
def folder_aside(folder: str | Path) -> Iterator[Path]:
    """A new folder beside ``folder`` to fill; it takes the place of ``folder`` if the block ends without an exception.

    What ``folder`` held before is removed only then; after an exception nothing has changed. Raises InputError if the
    folder cannot be written.
    """
    folder = Path(folder).absolute()
    aside, old = (folder.with_name(f".{what}-{folder.name}") for what in ("writing", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)

"""What the embedded defaults build once: a folder of the user's cache, named by the sources it is made from."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from mint.errors import Stopped


def cached(kind: str, sources: Sequence[str], build: Callable[[Path], None]) -> Path:
    """The folder for these ``sources`` (files beside this one); made by ``build`` if it is not there.

    It is built aside and renamed; a build that fails or is stopped leaves nothing. Raises Stopped if a signal stops a
    training run of the build.
    """
    folder = cache_folder(kind, sources)
    if not (folder / "done").is_file():
        print(f"building the embedded default in {folder} (once)")
        aside = folder.with_name(f".building-{folder.name}-{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            build(aside)
            (aside / "done").touch()
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        except Stopped as stop:
            message = "stopped while the embedded default was being built: it begins anew with the next start"
            raise Stopped(stop.number, message) from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def cache_folder(kind: str, sources: Sequence[str]) -> Path:
    """Where it lies, there or not."""
    digest = hashlib.sha256(b"".join(Path(__file__).with_name(name).read_bytes() for name in sources)).hexdigest()[:12]
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mint" / f"{kind}-{digest}"

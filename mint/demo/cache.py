"""The cache of the embedded defaults: built once, in a folder of the user's cache named after its sources."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from mint.errors import Stopped

PACKAGE = Path(__file__).parent.parent


def cached(kind: str, sources: Sequence[str], build: Callable[[Path], None], time: str) -> Path:
    """The folder for these ``sources`` (files, relative to the package); built aside if it does not exist.

    time: how long the whole demo takes on two CPU cores when it is built, to be printed. A build that fails or is
    stopped leaves nothing. Raises Stopped if a signal stops a training run of the build.
    """
    folder = cache_folder(kind, sources)
    if (folder / "done").is_file():
        print(f"using the embedded default in {folder}")
    else:
        print(f"building the embedded default in {folder} (once)")
        print(f"with the alignment, this takes {time} on two CPU cores")
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
    """The folder, whether it exists or not."""
    digest = hashlib.sha256(b"".join((PACKAGE / name).read_bytes() for name in sources)).hexdigest()[:12]
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mint" / f"{kind}-{digest}"

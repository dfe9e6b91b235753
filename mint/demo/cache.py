"""The cache of the demos: each is built once, in a folder of the user's cache that is named after its sources."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mint.errors import Stopped
from mint.files import folder_aside, lock, make_folder, remove_leftovers

PACKAGE = Path(__file__).parent.parent


def cached(kind: str, sources: Sequence[str], build: Callable[[Path], None], time: str) -> Path:
    """The folder for these ``sources`` (files, relative to the package); built if it does not exist.

    time: how long the whole demo takes on two CPU cores, to be printed. A build that fails or is stopped leaves
    nothing; one that another process is at is waited for. Raises Stopped if a signal stops a training run of the build.
    """
    folder = cache_folder(kind, sources)
    if not (folder / "done").is_file():
        busy = f"another process is building the demo data in {folder}: waiting for it"
        with lock(make_folder(folder.parent) / f".{folder.name}.lock", busy, wait=True):
            if not (folder / "done").is_file():
                _build(folder, build, time)
                return folder
    print(f"using the demo data in {folder}")
    return folder


def _build(folder: Path, build: Callable[[Path], None], time: str) -> None:
    print(f"building the demo data in {folder} (once)")
    print(f"with the alignment, this takes {time} on two CPU cores")
    remove_leftovers(folder.parent, name=folder.name)
    try:
        with folder_aside(folder) as aside:
            build(aside)
            (aside / "done").touch()
    except Stopped as stop:
        message = "stopped while the demo data were being built: the next start begins again"
        raise Stopped(stop.number, message) from None


def cache_folder(kind: str, sources: Sequence[str]) -> Path:
    """The folder, whether it exists or not."""
    digest = hashlib.sha256(b"".join((PACKAGE / name).read_bytes() for name in sources)).hexdigest()[:12]
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mint" / f"{kind}-{digest}"

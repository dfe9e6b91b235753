"""Small disks, mounted in a user namespace (unshare)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NAMESPACE = "MINT_FAULTS_NAMESPACE"  # set in the user namespace


def mount(folder: Path, options: str) -> None:
    """Mounts a disk in memory, or with ``remount`` changes it."""
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """``folder``, with a disk of its own in the block."""
    mount(folder, f"size={size}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def can_mount() -> bool:
    return NAMESPACE in os.environ


def enter_namespace() -> None:
    """Starts the command again in a user namespace, where disks can be mounted; returns where there is none."""
    words = ["unshare", "--user", "--map-root-user", "--mount"]
    if can_mount() or not shutil.which(words[0]):
        return
    if not subprocess.run([*words, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        os.environ[NAMESPACE] = "1"
        os.execvp(words[0], [*words, sys.executable, "-m", "benchmarks.faults", *sys.argv[1:]])

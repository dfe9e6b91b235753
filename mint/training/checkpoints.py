"""Checkpoints on disk: their names, the checksums in ``state.json``, and which of them can be loaded.

``state.json`` holds ``step``, what :mod:`mint.training.resume` records of the run, ``files`` (the SHA-256 of every
other file of the checkpoint, by name) and ``sha256`` (of the content of ``state.json`` itself).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

from mint.errors import InputError

NAME = re.compile(r"step-[1-9][0-9]*")
STATE = "state.json"
TYPES: dict[str, type] = {"step": int, "total": int, "settings": dict, "pairs": int, "pairs_sha256": str}
SETTING_TYPES: dict[str, type | tuple[type, ...]] = {
    **{name: (str, type(None)) for name in ("model", "adapter")},
    **dict.fromkeys(("loss", "schedule"), str),
    "loss_args": dict,
}


def saved_checkpoints(folder: Path) -> list[Path]:
    """The folders called ``step-N`` in ``folder``, whether complete or damaged, oldest first."""
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """N of a folder ``step-N``."""
    return int(checkpoint.name.removeprefix("step-"))


def write_state(folder: Path, content: dict) -> None:
    """Writes ``state.json`` with the checksums of the files that ``folder`` holds. content: the other fields."""
    content = {**content, "files": {name: _hash_file(path) for name, path in _files(folder).items()}}
    text = json.dumps({**content, "sha256": _hash_content(content)}) + "\n"
    (folder / STATE).write_text(text, encoding="utf-8")


def read_state(checkpoint: Path) -> dict:
    """The content of ``state.json``. Raises InputError if it is missing, damaged, or of another step than its folder.

    A checkpoint of an earlier version has no ``files`` and no ``sha256``: the types of its fields are checked alone.
    """
    file = checkpoint / STATE
    if not file.is_file():
        raise _damaged(checkpoint, f"{STATE} is missing")
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(checkpoint, f"{STATE} cannot be read ({error})") from None
    if not isinstance(state, dict):
        raise _damaged(checkpoint, f"{STATE} holds no JSON object")
    if "files" in state or "sha256" in state:
        digest = state.pop("sha256", None)
        if digest != _hash_content(state):
            raise _damaged(checkpoint, f"{STATE} differs from its checksum")
    wrong = [name for name, kind in TYPES.items() if type(state.get(name)) is not kind] or [
        f"settings.{name}"
        for name, kind in SETTING_TYPES.items()
        if name in state["settings"] and not isinstance(state["settings"][name], kind)
    ]
    if not isinstance(state.get("files", {}), dict):
        wrong.append("files")
    if wrong:
        raise _damaged(checkpoint, f"{STATE} has no valid {', '.join(wrong)}")
    named = step_of(checkpoint) if NAME.fullmatch(checkpoint.name) else state["step"]
    if not 0 < state["step"] <= state["total"] or state["step"] != named:
        raise _damaged(checkpoint, f"{STATE} is of step {state['step']} of {state['total']}")
    return state


def check_checkpoint(checkpoint: Path) -> None:
    """Compares every file of a checkpoint with its checksum. Raises InputError that names the first damaged file.

    Prints a note for a checkpoint of an earlier version, which has no checksums.
    """
    state = read_state(checkpoint)
    if "files" not in state:
        if not (checkpoint / "state.pt").is_file():
            raise _damaged(checkpoint, "state.pt is missing")
        print(f"{checkpoint} is of an earlier version and has no checksums: it is not verified", file=sys.stderr)
        return
    present = _files(checkpoint)
    for name, digest in state["files"].items():
        if name not in present:
            raise _damaged(checkpoint, f"{name} is missing")
        try:
            same = _hash_file(present[name]) == digest
        except OSError as error:
            raise _damaged(checkpoint, f"{name} cannot be read ({error})") from None
        if not same:
            raise _damaged(checkpoint, f"{name} differs from its checksum")


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in ``folder`` that is intact, and what is wrong with those that are newer.

    None if there is no intact one.
    """
    problems: list[str] = []
    for checkpoint in reversed(saved_checkpoints(folder)):
        try:
            check_checkpoint(checkpoint)
            return checkpoint, problems
        except (InputError, OSError) as error:
            problems.append(str(error))
    return None, problems


def _damaged(checkpoint: Path, what: str) -> InputError:
    return InputError(f"the checkpoint {checkpoint} is damaged: {what}")


def _files(folder: Path) -> dict[str, Path]:
    """The regular files of a checkpoint but ``state.json``, by their path in it."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name != STATE}


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_content(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

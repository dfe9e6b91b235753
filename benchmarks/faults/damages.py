"""Ways to damage a checkpoint, for the tests and for ``python -m benchmarks.faults``."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

FILES = ("state.json", "state.pt", "adapter/adapter_config.json", "adapter/adapter_model.safetensors")
Damage = Callable[[Path, random.Random], object]  # of a checkpoint folder


def truncate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(1, len(content) - 1)])


def flip_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content) - 1)] ^= 1 << rng.randrange(8)  # the last byte may be a line end
    path.write_bytes(content)


def replace_by_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def edit_state(**changes) -> Damage:
    """Other values in ``state.json``; the checksums stay. A dictionary as ``settings`` changes some of them."""

    def damage(checkpoint: Path, rng: random.Random) -> None:
        state = json.loads((checkpoint / "state.json").read_text())
        some = changes.get("settings")
        merged = {"settings": state["settings"] | some} if isinstance(some, dict) else {}
        (checkpoint / "state.json").write_text(json.dumps(state | changes | merged))

    return damage


def remove_checksums(checkpoint: Path, rng: random.Random | None = None) -> None:
    """Makes it a checkpoint of the time before there were checksums."""
    state = json.loads((checkpoint / "state.json").read_text())
    del state["files"], state["sha256"]
    (checkpoint / "state.json").write_text(json.dumps(state))


def without_checksums(damage: Damage) -> Damage:
    def both(checkpoint: Path, rng: random.Random) -> None:
        remove_checksums(checkpoint)
        damage(checkpoint, rng)

    return both


def _write(content: bytes) -> Damage:
    return lambda checkpoint, rng: (checkpoint / "state.json").write_bytes(content)


def _on(file: str, damage: Damage) -> Damage:
    return lambda checkpoint, rng: damage(checkpoint / file, rng)


EDITS: dict[str, dict] = {
    "another step": {"step": 1},
    "a step beyond the end": {"step": 999},
    "a negative step": {"step": -3},
    "an infinite step": {"step": float("inf")},
    "a step that is text": {"step": "3"},
    "a step that is true": {"step": True},
    "steps in all that are a list": {"total": [3]},
    "settings that are a list": {"settings": []},
    "a loss that is a number": {"settings": {"loss": 3}},
    "loss_args that are a list": {"settings": {"loss_args": [1]}},
    "a model that is a list": {"settings": {"model": ["m"]}},
    "no hash of the pairs": {"pairs_sha256": None},
    "pairs that are text": {"pairs": "8"},
}
DAMAGES: dict[str, Damage] = {
    **{f"{file}: {damage.__name__}": _on(file, damage) for file in FILES for damage in (truncate, flip_bit)},
    **{f"{file}: replace_by_folder": _on(file, replace_by_folder) for file in FILES},
    **{f"{file}: empty": _on(file, lambda path, rng: path.write_bytes(b"")) for file in FILES},
    **{f"{file}: missing": _on(file, lambda path, rng: path.unlink()) for file in FILES},
    "adapter: missing": lambda checkpoint, rng: shutil.rmtree(checkpoint / "adapter"),
    **{f"state.json: {name}": edit_state(**changes) for name, changes in EDITS.items()},
    **{
        f"no checksums, {name}": without_checksums(edit_state(**changes))
        for name, changes in EDITS.items()
        if name != "a step beyond the end"
    },
    "no checksums, state.pt missing": without_checksums(_on("state.pt", lambda path, rng: path.unlink())),
    "state.json: files that are a list": edit_state(files=[]),
    "state.json: a list": _write(b"[]"),
    "state.json: null": _write(b"null"),
    "state.json: an empty object": _write(b"{}"),
    "state.json: a step alone": _write(b'{"step": 3}'),
    "state.json: not UTF-8": _write(b'{"step": "\xff"}'),
    "state.json: a huge number": _write(b'{"step": ' + b"9" * 5000 + b"}"),
    "state.json: nested brackets": _write(b"[" * 100_000),
}


def add_odd_folders(checkpoints: Path) -> list[Path]:
    """Folders and files with names beside those of checkpoints, where ``--resume auto`` looks; returns their paths."""
    names = (
        "step-",
        "step-x",
        "step-0",
        "step-007",
        "step-1e3",
        "step--5",
        "step-\u0663",
        "step-9 copy",
        "step-" + "9" * 200,
    )
    for name in names:
        (checkpoints / name).mkdir()
    (checkpoints / "step-98").write_text("a file")
    (checkpoints / "step-97").symlink_to("step-97")
    return [checkpoints / name for name in (*names, "step-98", "step-97")]

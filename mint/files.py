"""Atomic writes of files and folders, locks, and checks of the paths on a command line.

What is written appears complete or not at all: it is written beside its place and renamed. The names there are unique,
so that two writers of the same file or folder do not meet; where only one may be at work, it holds a :func:`lock`.

Records may be of patients: new files are 0600 and new folders 0700 (:data:`mint.cli.PRIVATE`; here also for programs
that call the package without a command). Folders that exist keep their modes.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mint.errors import InputError
from mint.hub import check_name, is_dataset_id, local_dir

# Flags whose files or folders must exist, and those that name a model: a directory or hub id, or several.
EXISTING: tuple[str, ...] = (
    "cases",
    "teacher_cases",
    "fit_cases",
    "retrieve",
    "questions",
    "reports",
    "data",
    "eval_data",
)
EXISTING += ("mondo",)
EXISTING += ("predictions", "known_diseases", "templates", "findings", "tissues", "images", "lesions", "vqa", "pairs")
EXISTING += ("summaries", "prompt", "genes", "labels")
DATA = ("data", "eval_data")  # those that may also name a data set of the hub
MODELS = ("model", "teacher", "base", "clip", "policy", "retrieve_encoder", "green")
ADAPTERS = ("adapter", "policy_adapter")
CONFIGS = ("config.json", "folds.json")  # of a model, of a cross-fitted teacher
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # of file systems without locks

DEEPEST = 100  # levels of lists and objects within each other in JSON
HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # as an escape; UTF-8 cannot hold one


def make_folder(path: str | Path) -> Path:
    """The folder, made if it does not exist (0700). Raises InputError if that cannot be done."""
    try:
        Path(path).mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be made: {error}") from None
    return Path(path)


@contextmanager
def file_aside(path: str | Path) -> Iterator[Path]:
    """A path beside ``path``, with the same suffix, to write to; renamed to ``path`` at the end of the block.

    The folder is made if it does not exist. After an exception nothing is left of the file. Raises InputError if it
    cannot be written.
    """
    path = Path(path)
    aside = path.with_name(f".writing-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        aside.touch(0o600)
        yield aside
        aside.chmod(0o600)  # of a writer that made the file anew
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        raise _unwritten(path, aside, error) from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def append_text(path: str | Path, text: str) -> None:
    """Appends to a file, made (0600) if it does not exist, in a folder that exists. Raises OSError."""
    with open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)


def write_aside(path: str | Path, text: str) -> None:
    """Writes a text file with :func:`file_aside`. Raises InputError if it cannot be written."""
    with file_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def folder_aside(folder: str | Path, sync: bool = False) -> Iterator[Path]:
    """A new folder beside ``folder`` to fill; it takes the place of ``folder`` if the block ends without an exception.

    What ``folder`` held before is removed only then; after an exception nothing has changed. sync: flush everything to
    the disk before the renaming, so that the folder is complete even after a power cut. Raises InputError if the folder
    cannot be written.
    """
    folder = Path(folder).absolute()
    token = secrets.token_hex(4)
    aside, old = (folder.with_name(f".{what}-{token}-{folder.name}") for what in ("writing", "old"))
    try:
        aside.mkdir(0o700, parents=True)
        yield aside
        if sync:
            _sync(aside, *aside.rglob("*"))
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        if sync:
            _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise _unwritten(folder, aside, error) from None
    except InputError as error:
        if type(error) is InputError and aside.name in str(error):  # of a file in the folder: name its final place
            raise InputError(str(error).replace(aside.name, folder.name)) from None
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _unwritten(path: Path, aside: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be written: {error}".replace(aside.name, path.name))


def remove_leftovers(*folders: Path, name: str = "*") -> None:
    """Clears what processes killed while writing have left directly in ``folders``.

    A folder that was moved out of the way for a new one that did not take its place is moved back. name: of the files
    and folders that were written, as a pattern. Nobody else may be writing them.
    """
    for path in (path for folder in folders for path in folder.glob(f".old-*-{name}")):
        if not (place := path.with_name(path.name.split("-", 2)[2])).exists():
            path.rename(place)
    for path in (
        path for folder in folders for what in ("writing", "old") for path in folder.glob(f".{what}-*-{name}")
    ):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def lock(path: str | Path, busy: str, wait: bool = False) -> Iterator[None]:
    """Holds an advisory lock, the file ``path``, in the block.

    A process that is killed loses its lock; the file that it leaves means nothing. busy: what is said where another
    process holds the lock. It is raised as InputError, or with ``wait`` printed before the lock is waited for. On a
    file system without locks a note is printed, and the block runs without one. Raises InputError if the file cannot be
    written.
    """
    from filelock import FileLock, Timeout  # here, since it imports asyncio

    held = FileLock(path, fallback_to_soft=False)
    try:
        try:
            held.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise InputError(busy) from None
            print(busy, file=sys.stderr)
            held.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise InputError(f"{path} cannot be written: {error}") from None
        place = Path(path).parent
        print(f"note: {place} cannot be locked ({error}): start no second command that writes there", file=sys.stderr)
    try:
        yield
    finally:
        if held.is_locked:
            with suppress(OSError):
                Path(path).unlink()  # while it is held: who waits for this file then makes a new one
            held.release()


def _sync(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json(path: Path, optional: bool = False, kind: type | tuple[type, ...] = dict) -> dict:
    """The content of a JSON file of a model directory; {} for a missing one that is ``optional``.

    kind: what the file may hold. Raises InputError if it is missing, cannot be read, or holds something else.
    """
    if optional and not path.is_file():
        return {}
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path.parent} is not a model directory: {path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    fits = isinstance(content, kind)
    if not fits:
        raise InputError(f"{path} must hold a JSON object")
    return content


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text (RFC 8259): the only reader of JSON from files and the network.

    Raises InputError for text that is not UTF-8 or not JSON, for NaN, Infinity and numbers that a float cannot hold,
    half of a surrogate pair, a name given twice in an object, and more than ``DEEPEST`` levels.
    """
    try:
        text = (content.decode("utf-8") if isinstance(content, bytes) else content).removeprefix("\ufeff")
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_finite_integer,
            object_pairs_hook=_object,
        )
        if "\\u" in text and HALF_OF_A_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"invalid JSON: {error.msg} at column {error.colno}") from None
    except UnicodeEncodeError:
        raise InputError("holds half of a surrogate pair, which is not text") from None
    except RecursionError:
        raise InputError("invalid JSON: nested too deeply") from None
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(value)
    return value


def _refuse_constant(name: str):
    raise InputError(f"invalid JSON: {name} is not a value")


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise InputError(f"invalid JSON: {number[:20]} is larger than a float can be")
    return value


def _finite_integer(number: str) -> int:
    if len(number) > 300:
        raise InputError("invalid JSON: a number has too many digits")
    return int(number)


def _object(pairs: list[tuple]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"invalid JSON: {name[:60]!r} is given twice")
    return value


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for some in inner for one in some if isinstance(one, dict | list)]
        if not level:
            return
    raise InputError("invalid JSON: nested too deeply")


def read_toml(path: str | Path) -> dict:
    """The content of a TOML file. Raises InputError if it cannot be read, or holds no TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError(f"{path} cannot be read: nested too deeply") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def read_lines(path: str) -> list[str]:
    """The lines of a text file that are not blank. Raises InputError if it cannot be read or has none."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not lines:
        raise InputError(f"{path} holds no line")
    return lines


def check_unused(*paths: str | Path) -> None:
    """Raises InputError if a file or folder that a command is about to write exists; a folder may be empty."""
    for path in map(Path, paths):
        if path.is_file() or path.is_dir() and any(path.iterdir()):
            raise InputError(f"{path} exists already: delete it, or give another --out")


def check_paths(args: object) -> None:
    """Raises InputError for the first flag whose path does not exist, is no model or adapter, or cannot be written.

    args: the settings as attributes; those that are absent or not given are passed over. A hub id is not looked up.
    """
    for name in EXISTING:
        path = getattr(args, name, None)
        if path:
            check_name(_flag(name), path)
        if path and not Path(path).exists() and not (name in DATA and is_dataset_id(path)):
            raise InputError(f"{_flag(name)} {path} does not exist")
    for name in MODELS:
        value = getattr(args, name, None)
        for one in value if isinstance(value, list) else [value] if value else []:
            folder = local_dir(one)
            if folder is not None and not any((folder / file).is_file() for file in CONFIGS):
                raise InputError(f"{_flag(name)}: {one} is not a model directory: config.json is missing")
    for name in ADAPTERS:
        adapter = getattr(args, name, None)
        if adapter:
            check_name(_flag(name), adapter)
        if adapter and (missing := [file for file in ADAPTER if not Path(adapter, file).is_file()]):
            raise InputError(f"{_flag(name)} {adapter} holds no adapter: {missing[0]} is missing")
    if out := getattr(args, "out", None):
        check_writable("--out", out)


def check_writable(flag: str, target: str | Path, folder: bool = False) -> None:
    """Raises InputError if the file or folder ``target`` of ``flag`` can be neither written nor made.

    folder: it must not be a file.
    """
    check_name(flag, target)
    path = Path(target).absolute()
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    if place == path and place.is_file() and not folder:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {target} cannot be written: {place} is not a folder that can be written to")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"

"""From a directory or a Hugging Face hub id to a directory on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub

from mint.cli import users_umask
from mint.errors import InputError

TOKENIZER_FILES = ("*.json", "*.jinja", "tokenizer.model")
SETTINGS_FILES = (*TOKENIZER_FILES, "merges.txt", "vocab.txt")  # all of a model but its weights
# Not every *.safetensors: some repositories hold the weights a second time (consolidated.safetensors).
MODEL_FILES = (*TOKENIZER_FILES, "model*.safetensors")
DATASET_ID = re.compile(r"(?!.*\.(jsonl?|gz|parquet|csv|txt)$)[\w-][\w.-]*/[\w.-]+|[\w-][\w.-]*/[\w.-]+:.+")
DATA_FILES = (".jsonl", ".jsonl.gz", ".parquet")
PICKLES = (".bin", ".pt", ".pth")
# What training programs pickle beside a model's weights.
TRAINING_STATE = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")


def check_name(flag: str, name: str | Path) -> None:
    """Raises InputError for a path that no file can have: too long, with a null character, or links in a circle."""
    try:
        os.stat(name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        text = ascii(str(name)) if len(str(name)) < 100 else f"{ascii(str(name))[:100]}..."
        raise InputError(f"{flag} {text} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def local_dir(name: str | Path) -> Path | None:
    """``name`` if it is a directory, None if it has the form of a hub id. Raises InputError if it is neither."""
    path = Path(name)
    check_name("the model", name)
    if path.is_dir():
        return path
    if path.exists():
        hint = f", or convert it: python -m mint.convert {name} --out DIR" if path.suffix in PICKLES else ""
        raise InputError(f"{name} is a file; give the model's directory{hint}")
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise InputError(f"{name} is neither a directory nor a hub id (OWNER/NAME)")
    return None


def resolve_dir(name: str | Path, patterns: Sequence[str]) -> Path:
    """``name`` if it is a directory, else the local copy of that hub repository's files matching ``patterns``.

    A copy in the hub's cache is used where there is one; HF_HUB_OFFLINE=1 forbids anything else.
    Raises InputError for a gated or unknown repository, or one that is neither here nor reachable.
    """
    if (path := local_dir(name)) is not None:
        return path
    with _readable_errors(str(name), "a directory"):
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=list(patterns)))


def is_dataset_id(name: str | Path) -> bool:
    """Whether ``name`` has the form OWNER/NAME, OWNER/NAME:SPLIT or OWNER/NAME:FILE, and is no path that exists."""
    check_name("the data set", name)
    return bool(DATASET_ID.fullmatch(str(name))) and not Path(name).exists()


def fetch_dataset(name: str | Path) -> Path:
    """The local copy of one file of a data set on the hub: ``OWNER/NAME``, ``OWNER/NAME:SPLIT`` or ``OWNER/NAME:FILE``.

    A split is found by its name in the names of files. Raises InputError if the data set is unknown, gated or out of
    reach, or if not exactly one JSON Lines or Parquet file fits.
    """
    repo, _, part = str(name).partition(":")
    with _readable_errors(repo, "a file", "datasets/"):
        files = sorted(file for file in _dataset_files(repo) if file.endswith(DATA_FILES))
        split = re.compile(rf"(^|[/_.-]){re.escape(part)}([/_.-])")
        fitting = [part] if part in files else [file for file in files if split.search(file)] if part else files
        if len(fitting) != 1:
            shown = ", ".join((fitting or files)[:20]) or "none"
            problem = "several data files" if fitting else f"no data file for {part!r}" if part else "no data file"
            raise InputError(f"{repo} has {problem} (found: {shown}); choose one with {repo}:FILE or {repo}:SPLIT")
        return Path(huggingface_hub.hf_hub_download(repo, fitting[0], repo_type="dataset"))


def _dataset_files(repo: str) -> list[str]:
    """The paths of all files of a data set, or of those in the local cache where the hub is out of reach."""
    from huggingface_hub import errors

    try:
        return huggingface_hub.list_repo_files(repo, repo_type="dataset")
    except (errors.RepositoryNotFoundError, errors.HFValidationError):  # gated ones included
        raise
    except Exception:  # no network, or offline mode
        folder = Path(huggingface_hub.snapshot_download(repo, repo_type="dataset", local_files_only=True))
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


@contextmanager
def _readable_errors(name: str, local: str, prefix: str = "") -> Iterator[None]:
    """Turns the exceptions of the hub into InputError. local: what else the name could be. prefix: of the web page."""
    from huggingface_hub import errors  # here: it takes a quarter of a second, and --help needs none of it

    try:
        with users_umask():  # the hub's cache may be shared
            yield
    except InputError:
        raise
    except errors.GatedRepoError:
        raise InputError(
            f"{name} is gated: accept its licence at https://huggingface.co/{prefix}{name}, then set HF_TOKEN to a "
            "token of the account that accepted it"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"{name} is neither {local} nor a repository on the hub (a private one needs HF_TOKEN)"
        ) from None
    except errors.HFValidationError:
        raise InputError(f"{name} is neither {local} nor a valid hub id (OWNER/NAME)") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise InputError(
            f"{name} is not in the local cache and the hub is out of reach (no network, or HF_HUB_OFFLINE is set); "
            f"download it where there is a network, or give {local}"
        ) from None
    except OSError as error:
        raise InputError(f"{name} cannot be fetched from the hub: {error}") from None


def list_files(name: str | Path) -> list[str]:
    """Names of the files of a directory or hub repository, without its folders; none where the hub is out of reach."""
    path = Path(name)
    if path.is_dir():
        return sorted(file.name for file in path.iterdir() if file.is_file())
    try:
        return [file for file in huggingface_hub.list_repo_files(str(name)) if "/" not in file]
    except Exception:  # whatever the network raises: the list only completes an error message or narrows a download
        return []


def pickled_weights(names: Sequence[str]) -> list[str]:
    """Those of the files that hold pickled weights: ``pytorch_model*``, else any ``*.bin``, ``*.pt``, ``*.pth``."""
    found = [name for name in names if name.endswith(PICKLES) and not name.startswith(TRAINING_STATE)]
    return [name for name in found if name.startswith("pytorch_model")] or found

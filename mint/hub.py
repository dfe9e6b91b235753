"""From a directory or a Hugging Face hub id to a directory on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from mint.errors import InputError

TOKENIZER_FILES = ("*.json", "*.jinja", "tokenizer.model")
SETTINGS_FILES = (*TOKENIZER_FILES, "merges.txt", "vocab.txt")  # all of a model but its weights
# Not every *.safetensors: some repositories hold the weights a second time (consolidated.safetensors).
MODEL_FILES = (*TOKENIZER_FILES, "model*.safetensors")
PICKLES = (".bin", ".pt", ".pth")
# What training programs pickle beside a model's weights.
TRAINING_STATE = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")


def local_dir(name: str | Path) -> Path | None:
    """``name`` if it is a directory, None if it has the form of a hub id. Raises InputError if it is neither."""
    path = Path(name)
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
    name = str(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except GatedRepoError:
        raise InputError(
            f"{name} is gated: accept its licence at https://huggingface.co/{name}, then set HF_TOKEN to a token of "
            "the account that accepted it"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{name} is neither a directory nor a repository on the hub (a private one needs HF_TOKEN)"
        ) from None
    except HFValidationError:
        raise InputError(f"{name} is neither a directory nor a valid hub id (OWNER/NAME)") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise InputError(
            f"{name} is not in the local cache and the hub is out of reach (no network, or HF_HUB_OFFLINE is set); "
            "download it where there is a network, or give a directory"
        ) from None
    except OSError as error:
        raise InputError(f"{name} cannot be fetched from the hub: {error}") from None


def list_files(name: str | Path) -> list[str]:
    """Names of the files of a directory or hub repository, without its folders; none where the hub is out of reach."""
    path = Path(name)
    if path.is_dir():
        return sorted(file.name for file in path.iterdir() if file.is_file())
    try:
        return [file for file in list_repo_files(str(name)) if "/" not in file]
    except Exception:  # whatever the network raises: the list only completes an error message or narrows a download
        return []


def pickled_weights(names: Sequence[str]) -> list[str]:
    """Those of the files that hold pickled weights: ``pytorch_model*``, else any ``*.bin``, ``*.pt``, ``*.pth``."""
    found = [name for name in names if name.endswith(PICKLES) and not name.startswith(TRAINING_STATE)]
    return [name for name in found if name.startswith("pytorch_model")] or found

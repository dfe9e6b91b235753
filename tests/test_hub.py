"""Directories and hub ids: what each failure tells the user."""

from fnmatch import fnmatch

import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

import mint.hub
from mint.errors import InputError
from mint.hub import MODEL_FILES, resolve_dir


def refusal(kind):
    """An error of the hub's without the response it came in, whose type differs between versions of the library."""
    return kind.__new__(kind)


def test_a_directory_is_itself(tmp_path):
    assert resolve_dir(tmp_path, ["*"]) == tmp_path


def test_a_hub_id_is_fetched_with_its_patterns(monkeypatch, tmp_path):
    asked = {}

    def fetch(name, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(mint.hub, "snapshot_download", fetch)
    assert resolve_dir("meta-llama/Llama-3.2-3B-Instruct", ("*.json",)) == tmp_path
    assert asked == {"name": "meta-llama/Llama-3.2-3B-Instruct", "patterns": ["*.json"]}


@pytest.mark.parametrize(
    "error, message",
    [
        (refusal(GatedRepoError), "https://huggingface.co/owner/name, then set HF_TOKEN"),
        (refusal(RepositoryNotFoundError), "neither a directory nor a repository on the hub"),
        (LocalEntryNotFoundError("no"), "HF_HUB_OFFLINE is set"),
        (OSError("broken pipe"), "cannot be fetched from the hub: broken pipe"),
    ],
)
def test_failures_say_what_to_do(monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(mint.hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=message):
        resolve_dir("owner/name", ["*"])


def test_offline_mode_is_honoured(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(InputError, match="not in the local cache"):
        resolve_dir("owner/name-that-was-never-fetched", ["*"])


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/a/b", "a/b/c"])
def test_paths_that_do_not_exist_are_not_taken_for_hub_ids(name):
    with pytest.raises(InputError, match="neither a directory nor a hub id"):
        resolve_dir(name, ["*"])


def test_weights_are_not_fetched_twice():
    wanted = [name for name in ("model-00001-of-00003.safetensors", "model.safetensors", "consolidated.safetensors")
              if any(fnmatch(name, pattern) for pattern in MODEL_FILES)]  # fmt: skip
    assert wanted == ["model-00001-of-00003.safetensors", "model.safetensors"]


def test_a_file_is_not_a_directory(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(InputError, match="is a file; give the model's directory"):
        resolve_dir(path, ["*"])

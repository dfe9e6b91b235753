"""Directories and hub ids: what each failure tells the user."""

# ruff: noqa: F811

from fnmatch import fnmatch

import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from mint.data.preferences import read_preferences
from mint.errors import InputError
from mint.hub import MODEL_FILES, is_dataset_id, resolve_dir
from tests.test_train import run, setting, settings  # noqa: F401 (a fixture)


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

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
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

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
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


# -- data sets --------------------------------------------------------------------------------------------------

RECORD = '{"prompt": "ill?", "chosen": "yes", "rejected": "no"}\n'


@pytest.fixture
def dataset(monkeypatch, tmp_path):
    """A function that puts files on the hub, as the data set owner/name."""

    def put(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

        def fetch(repo, name, repo_type):
            assert (repo, repo_type) == ("owner/name", "dataset")
            return str(tmp_path / name)

        monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repo, repo_type: ["README.md", *files])
        monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)

    return put


@pytest.mark.parametrize("name", ["owner/name:test", "owner/name:data/test-00000.jsonl"])
def test_preferences_are_read_from_a_split_or_a_file_of_a_data_set(dataset, name):
    dataset({"data/train-00000.jsonl": RECORD * 2, "data/test-00000.jsonl": RECORD})
    assert [(one.prompt, one.chosen.text) for one in read_preferences(name)] == [("ill?", "yes")]


def test_a_data_set_of_one_file_needs_no_split(dataset):
    dataset({"pairs.jsonl": RECORD * 2, "picture.png": ""})
    assert len(read_preferences("owner/name")) == 2


def test_a_run_trains_on_a_data_set(dataset, setting, tmp_path):
    dataset({"pairs.jsonl": (setting / "pairs.jsonl").read_text()})
    run(*settings(setting, tmp_path / "run", "--steps", "1", "--data", "owner/name"))
    assert "24 preference pairs of `owner/name`\n" in (tmp_path / "run" / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(
    "name, files, message",
    [
        ("owner/name", ["a.jsonl", "b.parquet"], "several data files .found: a.jsonl, b.parquet.; choose one with"),
        (
            "owner/name:train",
            ["train_a.jsonl", "train.b.jsonl", "train/c.jsonl"],
            "several .* train.b.jsonl, train/c.j",
        ),
        ("owner/name:dev", ["a.jsonl"], "owner/name has no data file for 'dev' .found: a.jsonl."),
        ("owner/name", ["a.csv"], "owner/name has no data file .found: none."),
    ],
)
def test_exactly_one_file_must_fit(dataset, name, files, message):
    dataset(dict.fromkeys(files, RECORD))
    with pytest.raises(InputError, match=message):
        read_preferences(name)


def test_records_of_the_hub_with_images_are_refused(dataset):
    dataset({"pairs.jsonl": RECORD.replace("{", '{"image": "x.png", ')})
    with pytest.raises(InputError, match="pairs.jsonl names images, which are not fetched from the hub"):
        read_preferences("owner/name")


@pytest.mark.parametrize(
    "error, message",
    [
        (refusal(GatedRepoError), "https://huggingface.co/datasets/owner/name, then set HF_TOKEN"),
        (refusal(RepositoryNotFoundError), "owner/name is neither a file nor a repository on the hub"),
        (ConnectionError("no route"), "owner/name is not in the local cache and the hub is out of reach"),
    ],
)
def test_failures_of_a_data_set_say_what_to_do(monkeypatch, tmp_path, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.list_repo_files", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        read_preferences("owner/name")
    assert "\n" not in str(caught.value)


def test_without_a_network_a_data_set_is_read_from_the_cache(monkeypatch, tmp_path):
    repo = tmp_path / "datasets--owner--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "pairs.jsonl").write_text(RECORD)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert len(read_preferences("owner/name")) == 1


def test_paths_and_ids_of_data_sets_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "pairs").touch()
    assert is_dataset_id("owner/name") and is_dataset_id("trl-lib/hh.v2:data/train.jsonl")
    names = ("own/pairs", "data/pairs.jsonl", "data/pairs.jsonl.gz", "./a/b", "/a/b", "a/b/c", "pairs", "../a")
    assert not any(map(is_dataset_id, names))

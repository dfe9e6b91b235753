"""Pickled checkpoints become directories that load; code in a pickle never runs."""

import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file

from mint.convert import convert, main
from mint.errors import InputError
from mint.models import init_model, load_model
from tests.reference import clip_inputs, qwen_vl_inputs, vilt_inputs
from tests.reference.weights import TINY_LLAMA


@pytest.fixture
def source(tmp_path):
    """A published directory: config.json, tokenizer files, no weights yet."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tokenizer.json", "merges.txt", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    return folder


def describe(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return init_model(config, seed=1).state_dict()


def check(out, tensors):
    loaded = load_model(out).state_dict()
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], value) for name, value in tensors.items())


# -- what is read ------------------------------------------------------------------------------------------------


def test_a_clip_as_plip_is_published(source, tmp_path, capsys):
    """One .bin of transformers' CLIPModel, with the positions it stores; training state beside it is left alone."""
    tensors = describe(source, clip_inputs.TINY)
    torch.save({**tensors, "text_model.embeddings.position_ids": torch.arange(7)}, source / "pytorch_model.bin")
    for other in ("training_args.bin", "pytorch_model_ema.bin"):
        (source / other).write_bytes(b"not read")
    assert main([str(source), "--out", str(tmp_path / "out")]) == 0
    check(tmp_path / "out", tensors)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "merges.txt", "preprocessor_config.json"
    }  # fmt: skip
    assert f"{len(tensors)} tensors of {source}" in capsys.readouterr().out


def test_shards_and_older_names(source, tmp_path):
    tensors = describe(source, qwen_vl_inputs.TINY)
    pattern = re.compile(r"^model\.(visual\.)?(language_model\.)?")
    older = {pattern.sub(lambda found: found[1] or "model.", name): tensor for name, tensor in tensors.items()}
    assert any(name.startswith("visual.") for name in older) and "model.norm.weight" in older
    names, shards = list(older), ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    placed = {name: shards[i % 2] for i, name in enumerate(names)}
    for shard in shards:
        torch.save({name: older[name] for name in names if placed[name] == shard}, source / shard)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    check(convert(source, tmp_path / "out"), tensors)
    (source / shards[1]).unlink()
    with pytest.raises(InputError, match="lacks pytorch_model-00002-of-00002.bin"):
        convert(source, tmp_path / "again")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"epoch": 3, "state_dict": tensors, "optimizer": {"state": {}}},
        lambda tensors: {"model": {f"module.{name}": tensor for name, tensor in tensors.items()}},
        lambda tensors: {"state_dict": {f"model.{name}": tensor for name, tensor in tensors.items()}},
        lambda tensors: {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()},
    ],
    ids=["training checkpoint", "data parallel", "lightning", "compiled"],
)
@pytest.mark.parametrize(
    "config", [clip_inputs.TINY, TINY_LLAMA | {"tie_word_embeddings": True}], ids=["clip", "llama"]
)
def test_wrappers_of_training_programs(source, tmp_path, wrap, config):
    """A tied Llama's own names all begin with model. too, which stays."""
    tensors = describe(source, config)
    torch.save(wrap(tensors), source / "last.pt")
    check(convert(source / "last.pt", tmp_path / "out"), tensors)


def test_files_of_the_oldest_format_and_shared_memory(source, tmp_path):
    tensors = describe(source, TINY_LLAMA)
    tensors["model.norm.weight"] = tensors["model.layers.0.input_layernorm.weight"]  # one storage, two names
    for new in (True, False):
        torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=new)
        check(convert(source, tmp_path / f"out-{new}"), tensors)


def test_the_teacher_of_gestaltmml(source, tmp_path):
    """A state dict of transformers' ViltForQuestionAnswering; its settings lie with the base, its classes in a list."""
    tensors = describe(source, vilt_inputs.TINY)
    labels = init_model(vilt_inputs.TINY).config.labels
    base = {key: value for key, value in vilt_inputs.TINY.items() if key not in ("id2label", "label2id")}
    (source / "config.json").write_text(json.dumps(base))
    classes = {str(i): labels[i] for i in reversed(range(len(labels)))}  # in any order
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    torch.save(tensors, tmp_path / "teacher.pt")
    options = ["--config", str(source), "--labels", str(tmp_path / "classes.json")]
    assert main([str(tmp_path / "teacher.pt"), "--out", str(tmp_path / "out"), *options]) == 0
    check(tmp_path / "out", tensors)
    assert load_model(tmp_path / "out").config.labels == labels
    with pytest.raises(InputError, match="has a classifier, whose classes config.json does not name: give --labels"):
        convert(tmp_path / "teacher.pt", tmp_path / "again", config=str(source))


def test_a_published_vilt_without_a_classifier(shared_data, source, tmp_path):
    """The base that teachers start from: its masked-word head is left out, a new head is drawn on loading."""
    raw = json.loads((shared_data / "published_dirs" / "vilt" / "config.json").read_text())
    tensors = {name: t for name, t in describe(source, raw).items() if not name.startswith("classifier.")}
    torch.save({**tensors, "mlm_score.bias": torch.zeros(3)}, source / "pytorch_model.bin")
    out = convert(source, tmp_path / "out")
    assert load_file(out / "model.safetensors").keys() == tensors.keys()
    load_model(out, fresh=("classifier.",))


def test_a_hub_repository(source, tmp_path, monkeypatch):
    """Only its settings and its weights are fetched."""
    tensors = describe(source, clip_inputs.TINY)
    torch.save(tensors, source / "pytorch_model.bin")
    asked = []

    def fetch(name, allow_patterns):
        asked.extend(allow_patterns)
        return str(source)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    stored = ["pytorch_model.bin", "optimizer.pt", "old/weights.pt"]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name: stored)
    check(convert("vinid/plip", tmp_path / "out"), tensors)
    assert "pytorch_model.bin" in asked and "merges.txt" in asked and not any("pt" == name[-2:] for name in asked)


def test_no_weights_are_drawn(source, tmp_path, monkeypatch):
    tensors = describe(source, TINY_LLAMA)
    torch.save(tensors, source / "pytorch_model.bin")

    def draw(tensor, *_, **__):
        assert tensor.is_meta
        return tensor

    monkeypatch.setattr(torch.Tensor, "normal_", draw)
    monkeypatch.setattr(torch.Tensor, "uniform_", draw)
    check(convert(source, tmp_path / "out"), tensors)


# -- what is refused ---------------------------------------------------------------------------------------------


class Malicious:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "oldest format"])
def test_code_in_a_pickle_is_named_and_never_run(source, tmp_path, capsys, new):
    tensors = describe(source, TINY_LLAMA)
    content = {**tensors, "extra": Malicious(tmp_path / "owned")}
    torch.save(content, source / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    assert main([str(source), "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "pickles posix.mkdir, which could run code, so nothing of it was loaded" in errors
    assert not (tmp_path / "owned").exists() and not (tmp_path / "out").exists()


def test_a_pickled_network_is_refused(source, tmp_path):
    describe(source, TINY_LLAMA)
    torch.save(torch.nn.Linear(2, 2), source / "whole.pt")
    with pytest.raises(InputError, match="pickles torch.nn.modules.linear.Linear, .* save its state dict alone"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "damaged or no file of PyTorch's"),
        (b"PK\x03\x04 cut off", "damaged or no file of PyTorch's"),
        ({}, "holds no state dict"),
        ([torch.zeros(2)], "holds no state dict"),
        ({"epoch": 3, "weights": {"a": torch.zeros(2)}}, "holds no state dict"),
    ],
)
def test_files_that_hold_no_tensors(source, tmp_path, content, message):
    describe(source, TINY_LLAMA)
    if isinstance(content, bytes):
        (source / "model.pt").write_bytes(content)
    else:
        torch.save(content, source / "model.pt")
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: t.pop("lm_head.weight"), "source lacks weights: lm_head.weight"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(3, 32)}), r"lm_head.weight is \(3, 32\), config.json asks"),
        (lambda t: t.update({"odd": torch.zeros(1)}), "model.bin holds 'odd', which this llama model has no place for"),
    ],
)
def test_tensors_must_fit_and_nothing_half_written_stays(source, tmp_path, edit, message):
    tensors = dict(describe(source, TINY_LLAMA))
    edit(tensors)
    torch.save(tensors, source / "pytorch_model.bin")
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_nothing_is_overwritten(source, tmp_path):
    torch.save(describe(source, TINY_LLAMA), source / "pytorch_model.bin")
    out = convert(source, tmp_path / "out")
    for target in (out, source / "pytorch_model.bin"):
        with pytest.raises(InputError, match="exists already: delete it, or give another --out"):
            convert(source, target)
    with pytest.raises(InputError, match="holds safetensors already: use it as it is"):
        convert(out, tmp_path / "again")


def test_what_the_command_needs_is_said(source, tmp_path):
    with pytest.raises(InputError, match="holds no weights: neither"):
        convert(source, tmp_path / "out")
    for name in ("a.pt", "b.pt"):
        torch.save({"a": torch.zeros(1)}, source / name)
    with pytest.raises(InputError, match="several files of weights .a.pt, b.pt.: give the path of one"):
        convert(source, tmp_path / "out")
    with pytest.raises(InputError, match="has no config.json: name a directory or hub id of the same model .--config"):
        convert(source / "a.pt", tmp_path / "out")
    describe(source, TINY_LLAMA)
    with pytest.raises(InputError, match="--tower and --tokenizer are for LLaVA's own form"):
        convert(source / "a.pt", tmp_path / "out", tower="clip")
    with pytest.raises(InputError, match="--labels names the classes of a ViLT"):
        convert(source / "a.pt", tmp_path / "out", labels="classes.json")
    (tmp_path / "classes.json").write_text('{"0": "a", "2": "b"}')
    (source / "config.json").write_text(json.dumps(vilt_inputs.TINY))
    with pytest.raises(InputError, match="without gaps"):
        convert(source / "a.pt", tmp_path / "out", labels=tmp_path / "classes.json")


def test_a_pickle_given_as_a_model_names_the_command(source):
    (source / "model.pt").touch()
    with pytest.raises(InputError, match="python -m mint.convert .*model.pt --out DIR"):
        load_model(source / "model.pt")

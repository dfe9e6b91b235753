"""Model directories: written, read, sharded, interrupted, damaged."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mint.models.checkpoint as checkpoint
from mint.errors import InputError
from mint.models import init_model, load_model, save_model
from tests.reference import llava_inputs, mllama_inputs, qwen3_vl_inputs, qwen_vl_inputs
from tests.reference.weights import TINY_LLAMA

TOKENS = torch.arange(10).view(1, 10)


@pytest.fixture
def folder(tmp_path):
    save_model(init_model(TINY_LLAMA, seed=1), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("limit", [5_000_000_000, 20_000])
def test_round_trip(tied, limit, tmp_path):
    model = init_model(TINY_LLAMA | {"tie_word_embeddings": tied}, seed=1)
    save_model(model, tmp_path / "m", max_shard_bytes=limit)
    shards = sorted(tmp_path.glob("m/*.safetensors"))
    assert (len(shards) == 1) == (limit > 20_000)
    stored = [key for shard in shards for key in load_file(shard)]
    assert sorted(stored) == sorted(model.state_dict()) and ("lm_head.weight" in stored) != tied
    if limit == 20_000:
        index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(stored)
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.state_dict().values())
    assert torch.equal(load_model(tmp_path / "m")(TOKENS), model(TOKENS))


def test_dtype_and_companions(folder, tmp_path):
    (folder / "tokenizer.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    model = load_model(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    save_model(model, tmp_path / "again")
    assert (tmp_path / "again" / "generation_config.json").read_text() == '{"eos_token_id": 2}'
    assert (tmp_path / "again" / "tokenizer.json").is_file()
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" and config["architectures"] == ["LlamaForCausalLM"]


def test_an_interrupted_write_leaves_the_old_directory(folder, monkeypatch):
    before = load_model(folder)(TOKENS)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(InputError, match="cannot be written: disk full"):
        save_model(init_model(TINY_LLAMA, seed=2), folder)
    assert torch.equal(load_model(folder)(TOKENS), before)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]  # nothing half-written is left beside it


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_that_is_none(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        InputError, match="has no weight_map that says which file holds a tensor|index.json must hold a JSON object"
    ):
        load_model(folder)


def test_saving_never_replaces_what_is_not_a_model(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not a model directory; saving would replace it"):
        save_model(init_model(TINY_LLAMA), tmp_path / "notes")
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"


def test_tensors_that_follow_from_others_are_tolerated(tmp_path):
    model = init_model(TINY_LLAMA | {"tie_word_embeddings": True})
    save_model(model, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    extra = {"lm_head.weight": torch.zeros(128, 32), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    save_file(load_file(path) | extra, path)
    assert torch.equal(load_model(tmp_path / "m")(TOKENS), model(TOKENS))


NESTED = {  # tiny models with nested settings
    "llava": llava_inputs.CONFIGS["llama"],
    "mllama": mllama_inputs.TINY,
    "qwen2_5_vl": qwen_vl_inputs.TINY,
    "qwen3_vl": qwen3_vl_inputs.TINY,
}


@pytest.mark.parametrize("family", NESTED)
@pytest.mark.parametrize("outer", [{}, {"tie_word_embeddings": False}], ids=["absent", "false"])
def test_tied_embeddings_may_be_named_by_the_text_settings_alone(family, outer, tmp_path):
    """transformers ties where either level says so; some such files store the head all the same."""
    raw = {key: value for key, value in NESTED[family].items() if key != "tie_word_embeddings"}
    text = {**raw["text_config"], "tie_word_embeddings": True}
    model = init_model({**raw, **outer, "text_config": text})
    assert "lm_head.weight" not in model.state_dict()
    save_model(model, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    embedding = model.decoder.embed_tokens.weight.detach()
    save_file(load_file(path) | {"lm_head.weight": embedding.clone()}, path)
    again = load_model(tmp_path / "m")
    assert torch.equal(again.head_weight, embedding) and again.head_weight is again.decoder.embed_tokens.weight


def test_a_published_directory_with_tied_embeddings(shared_data, tmp_path):
    raw = json.loads((shared_data / "published_dirs" / "q3b" / "config.json").read_text()) | {"vocab_size": 512}
    model = init_model(raw)
    assert raw["tie_word_embeddings"] and model.head_weight is model.decoder.embed_tokens.weight
    save_model(model, tmp_path / "m")
    assert "lm_head.weight" not in load_model(tmp_path / "m").state_dict()


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision", "gemma3", "lora", "checkpoint", "__init__", "a.b"])
def test_an_unsupported_family_is_named_with_those_that_are(folder, kind):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": kind}))
    with pytest.raises(InputError, match=f"model_type '{kind}' is not supported; .* llama, .* llava, .*vilt") as error:
        load_model(folder)
    assert "convert" not in str(error.value)


@pytest.mark.parametrize("kind", [None, 7, ["llama"]])
def test_a_family_must_be_named(kind):
    with pytest.raises(InputError, match="config.json names no model_type"):
        init_model({"model_type": kind})


@pytest.mark.parametrize(
    "files, pickled",
    [
        (["pytorch_model-00001-of-2.bin", "pytorch_model-00002-of-2.bin", "training_args.bin"], "pytorch_model-00001"),
        (["weights.pt", "optimizer.pt"], "weights.pt"),
    ],
)
def test_a_hub_repository_with_pickles_alone(folder, monkeypatch, files, pickled):
    (folder / "model.safetensors").unlink()  # the copy that the hub's library makes holds no pickles
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(folder))
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name: ["config.json", *files])
    with pytest.raises(InputError, match=f"has pickled weights only .{pickled}") as error:
        load_model("owner/tiny")
    assert "python -m mint.convert owner/tiny --out DIR" in str(error.value)
    assert not any(name in str(error.value) for name in ("training_args", "optimizer"))


def test_the_hub_may_be_out_of_reach(folder, monkeypatch):
    def fail(name):
        raise ConnectionError("no route")

    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(folder))
    monkeypatch.setattr("huggingface_hub.list_repo_files", fail)
    with pytest.raises(InputError, match="model.safetensors is missing"):
        load_model("owner/tiny")


def change(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: t.pop(NORM), "lacks weights: model.norm.weight"),
        (
            lambda t: t.update({"model.extra": torch.zeros(1)}),
            "holds 'model.extra', which this llama model has no place",
        ),
        (lambda t: t.update({NORM: torch.zeros(31)}), r"model.norm.weight is \(31,\), config.json asks for \(32,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, edit, message):
    change(folder, edit)
    with pytest.raises(InputError, match=message):
        load_model(folder)


def test_damaged_and_missing_files(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(InputError, match="damaged or not a safetensors file"):
        load_model(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="python -m mint.convert .*model --out DIR"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json cannot be read"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="not a model directory: config.json is missing"):
        load_model(folder)
    with pytest.raises(InputError, match="neither a directory nor a hub id"):
        load_model(tmp_path / "nowhere")

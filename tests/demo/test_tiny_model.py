"""Small random models for given texts, from the command line."""

import json
import threading
import time

import pytest

from mint.data.chat import load_tokenizer
from mint.demo import __main__ as demo
from mint.demo.cache import cache_folder, cached
from mint.models import load_model
from mint.models.llama import Llama
from mint.models.llava import Llava
from mint.models.lora import add_lora, lora_layers

PAPER_TARGETS = "language_model,fc1,fc2,multi_modal_projector,lm_head"  # of docs/tissue.md


@pytest.fixture
def pairs(tmp_path):
    answers = {"chosen": "There is <mask>no</mask> nodule.", "rejected": "There is a nodule."}
    row = {"prompt": "Is there a nodule?", **answers}
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row | {"id": i}) + "\n" for i in range(9)))
    return str(path)


def test_a_llava_whose_head_can_carry_an_adapter(pairs, tmp_path, capsys):
    command = ["base", "--vision", "--pairs", pairs, "--shape", "demo", "--out", f"{tmp_path}/model"]
    assert demo.main(command) == 0
    assert f"{tmp_path}/model: a random LLaVA of 1.6 M parameters" in capsys.readouterr().out
    model = load_model(tmp_path / "model")
    assert isinstance(model, Llava) and sum(p.numel() for p in model.parameters()) == pytest.approx(1.6e6, rel=0.05)
    layers = lora_layers(add_lora(model, 2, 4, 0.0, PAPER_TARGETS))
    assert {"lm_head", "model.multi_modal_projector.linear_1"} <= set(layers)
    tokens = json.loads((tmp_path / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    assert "nodule" in "".join(tokens) and not any("\u0120" in token[1:] for token in tokens)  # words at most
    assert not any("mask" in token for token in tokens)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert demo.main([*command, "--seed", "1"]) == 2
    assert "model exists already: delete it, or give another --out" in capsys.readouterr().err
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_a_llama_of_phrases_with_a_tied_head(pairs, tmp_path, capsys):
    assert demo.main(["base", "--pairs", pairs, "--shape", "demo", "--out", f"{tmp_path}/model"]) == 0
    model = load_model(tmp_path / "model")
    assert isinstance(model, Llama) and model.config.tie_word_embeddings
    assert len(load_tokenizer(tmp_path / "model").encode("There is no nodule")) == 1
    assert demo.main(["gallery", "--out", pairs]) == 2 and "pairs.jsonl exists already" in capsys.readouterr().err


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def build(folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("x", ["demo/cache.py"], build, "a minute")
    assert list((tmp_path / "mint").iterdir()) == []


def test_two_builders_of_a_cache_build_it_once(tmp_path, monkeypatch, capsys):
    """The second waits for the first, and uses what it built; what a killed builder left is removed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_folder("x", ["demo/cache.py"])
    (folder.parent / f".writing-1a-{folder.name}").mkdir(parents=True)
    built, begun = [], threading.Event()

    def build(aside):
        built.append(aside)
        begun.set()
        time.sleep(0.3)
        (aside / "model").touch()

    def ask():
        cached("x", ["demo/cache.py"], build, "a minute")

    first, second = threading.Thread(target=ask), threading.Thread(target=ask)
    first.start()
    assert begun.wait(30)
    second.start()
    first.join()
    second.join()
    printed = capsys.readouterr()
    assert len(built) == 1 and "another process is building the demo data" in printed.err
    assert printed.out.count("using the demo data in") == 1 and (folder / "model").is_file()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]

"""A merged model computes what the model with its adapter does."""

import pytest
import torch
from PIL import Image

from mint import merge
from mint.data.images import load_processor
from mint.demo.tiny_model import TOWER, write_base
from mint.models import load_model, save_model
from mint.models.lora import add_lora, load_adapter, lora_layers, save_adapter

TEXTS = ["Is there a nodule?", "There is no nodule."] * 20
COMPANIONS = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}


def made(folder, vision, dtype=torch.float32):
    """A model and an adapter, with random B, on its attention and, for images, its vision encoder and projector."""
    write_base(folder / "model", TEXTS, "demo", 300, vision=TOWER if vision else None)
    if dtype != torch.float32:
        save_model(load_model(folder / "model", dtype=dtype), folder / "model")
    model = load_model(folder / "model")
    add_lora(model, 4, 16, targets="q_proj,v_proj,multi_modal_projector" if vision else "all-linear", rslora=True)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        layer.lora_B.weight.data.normal_(0, 0.05, generator=generator)
    save_adapter(model, folder / "adapter")
    return ["--model", f"{folder}/model", "--adapter", f"{folder}/adapter", "--out", f"{folder}/merged"]


@pytest.mark.parametrize("vision", [False, True])
def test_logits_are_those_of_model_and_adapter(tmp_path, vision):
    assert merge.main(made(tmp_path, vision)) == 0
    merged = load_model(tmp_path / "merged")
    adapted, plain = load_adapter(load_model(tmp_path / "model"), tmp_path / "adapter"), load_model(tmp_path / "model")
    tokens, images = torch.arange(5, 25).view(2, 10), {}
    if vision:
        slot, count = merged.image_slots
        tokens = torch.cat([torch.full((2, count), slot), tokens], 1)
        processor = load_processor(tmp_path / "merged")
        images = {"images": processor([Image.linear_gradient("L").convert("RGB"), Image.new("RGB", (64, 64), "red")])}
    with torch.no_grad():
        expected = adapted(tokens, **images)
        assert (merged(tokens, **images) - expected).abs().max() < 1e-5
        assert (plain(tokens, **images) - expected).abs().max() > 1e-2
    held = {file.name for file in (tmp_path / "merged").iterdir()}
    assert held >= COMPANIONS | ({"preprocessor_config.json"} if vision else set()) and not lora_layers(merged)
    assert held == {file.name for file in (tmp_path / "model").iterdir()}


def test_the_dtype_of_the_weights_stays(tmp_path):
    """And the sum is rounded once: it is computed in float32."""
    assert merge.main(made(tmp_path, False, torch.bfloat16)) == 0
    merged, model = load_model(tmp_path / "merged", torch.bfloat16), load_model(tmp_path / "model")
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size < 1.1 * sum(
        p.numel() for p in model.parameters()
    ) * 2
    for name, layer in lora_layers(load_adapter(model, tmp_path / "adapter")).items():
        expected = layer.weight + layer.scaling * layer.lora_B.weight @ layer.lora_A.weight
        assert merged.get_submodule(name).weight.equal(expected.to(torch.bfloat16))
    exact = ["--out", f"{tmp_path}/exact", "--dtype", "float32"]
    assert merge.main(["--model", f"{tmp_path}/model", "--adapter", f"{tmp_path}/adapter", *exact]) == 0
    tokens, merged = torch.arange(5, 25).view(2, 10), load_model(tmp_path / "exact")
    with torch.no_grad():
        assert (merged(tokens) - model(tokens)).abs().max() < 1e-5


def test_mistakes(tmp_path, capsys):
    command = made(tmp_path, False)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "notes.txt").touch()
    for out, adapter, message in (
        ("merged", "adapter", "merged exists already"),
        ("new", "model", "holds no adapter"),
        ("model/config.json/x", "adapter", "cannot be written"),
    ):
        command[3], command[5] = f"{tmp_path}/{adapter}", f"{tmp_path}/{out}"
        assert merge.main(command) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists() and [file.name for file in (tmp_path / "merged").iterdir()] == ["notes.txt"]

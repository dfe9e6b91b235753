"""LLaVA: transformers' logits, names old and new, images that matter, refusals."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mint.errors import InputError
from mint.models import init_model
from mint.models.generate import generate
from mint.models.llava import Llava, LlavaConfig
from mint.models.lora import add_lora, load_adapter, lora_layers, save_adapter
from tests.reference.llava_inputs import CONFIGS, HERE, IMAGE, PATCHES, TINY, pixels, tokens, weights

RECORD = json.loads((HERE / "llava.json").read_text())
RESULTS = load_file(HERE / "llava.safetensors")


def build(raw):
    model = Llava(LlavaConfig.from_dict(raw)).eval()
    model.load_state_dict(weights({name: p.shape for name, p in model.named_parameters()}))
    return model.requires_grad_(False)


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_logits_equal_transformers(name):
    model = build(CONFIGS[name])
    assert {name: list(p.shape) for name, p in model.named_parameters()} == RECORD["shapes"][name]
    torch.testing.assert_close(model(tokens(name), {"pixel_values": pixels()}), RESULTS[name], atol=2e-5, rtol=0)


def test_changing_an_image_changes_its_row_and_no_other():
    model = build(TINY)
    plain = model(tokens("llama"), {"pixel_values": pixels()})
    changed = pixels()
    changed[2, :, -16:, -16:] += 1  # the second image of the second row
    moved = (model(tokens("llama"), {"pixel_values": changed}) - plain).abs()
    second = 4 + PATCHES
    assert moved[0].max() == 0 and moved[2].max() == 0 and moved[1, :second].max() == 0
    assert moved[1, second + PATCHES :].max(-1).values.min() > 1e-3


def test_decoding_sees_the_images_and_writes_none(monkeypatch):
    """Greedy answers with a cache, batched or alone, are the argmax of the whole text, and depend on the image."""
    model = build(TINY)
    with torch.no_grad():
        model.lm_head.weight[IMAGE] *= 6  # so that the placeholder would be written, were it allowed
    ids = tokens("llama")
    prompts = [ids[0, : 2 + PATCHES + 3].tolist(), ids[1, : 5 + 2 * PATCHES].tolist(), ids[2, :4].tolist()]
    own = [[0], [1, 2], []]
    plain = SimpleNamespace(eos_ids=set(), decode=lambda ids: list(ids))

    def answers(pictures, size):
        def images(members):
            wanted = [i for member in members for i in own[member]]
            return {"pixel_values": pictures[wanted]} if wanted else None

        return generate(model, plain, prompts, max_new_tokens=6, batch_size=size, images=images)

    expected, tempted = [], 0
    for prompt, mine in zip(prompts, own, strict=True):
        row = list(prompt)
        for _ in range(6):
            images = {"pixel_values": pixels()[mine]} if mine else None
            logits = model(torch.tensor([row]), images)[0, -1]
            tempted += int(logits.argmax() == IMAGE)
            logits[IMAGE] = -torch.inf
            row.append(int(logits.argmax()))
        expected.append(row[len(prompt) :])
    assert tempted > 0
    assert answers(pixels(), 3) == answers(pixels(), 1) == expected
    assert answers(pixels().flip(0), 3)[:2] != expected[:2] and answers(pixels().flip(0), 3)[2] == expected[2]


def test_places_and_features_must_agree():
    model = build(TINY)
    with pytest.raises(InputError, match="27 image tokens, the images 18 features"):
        model(tokens("llama"), {"pixel_values": pixels()[:2]})
    with pytest.raises(InputError, match="27 image tokens, the images 0 features"):
        model(tokens("llama"))
    assert model(tokens("llama")[2:]).isfinite().all()
    assert model.image_slots == (IMAGE, PATCHES) and build(CONFIGS["mistral_full"]).image_slots == (IMAGE, PATCHES + 1)


@pytest.mark.parametrize(
    "targets, beginnings",
    [
        ("all-linear", ("model.language_model.layers.",)),
        ("vision_tower", ("model.vision_tower.encoder.",)),
        ("multi_modal_projector,lm_head", ("model.multi_modal_projector.linear_", "lm_head")),
        (
            "vision_tower.encoder.layers.0.mlp, o_proj",
            ("model.vision_tower.encoder.layers.0.mlp.fc", "model.language_model."),
        ),
    ],
)
def test_adapters_reach_each_part(targets, beginnings, tmp_path):
    """The loss moves every one of its factors, and it is loaded where it was saved from."""
    model = add_lora(init_model(TINY, seed=1), rank=2, alpha=4, targets=targets)
    names = list(lora_layers(model))
    assert names and all(name.startswith(beginnings) for name in names)
    assert all(any(name.startswith(beginning) for name in names) for beginning in beginnings)
    model(tokens("llama"), {"pixel_values": pixels()}).square().sum().backward()
    unused = "model.vision_tower.encoder.layers.2."  # behind the layer whose features are read
    moved = {name for name, layer in lora_layers(model).items() if layer.lora_B.weight.grad is not None}
    assert moved == {name for name in names if not name.startswith(unused)}
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.weight.fill_(0.1)
    save_adapter(model, tmp_path)
    again = load_adapter(init_model(TINY, seed=1), tmp_path)
    given = tokens("llama"), {"pixel_values": pixels()}
    torch.testing.assert_close(again(*given), model(*given))


def test_settings_that_a_configuration_leaves_out():
    """As LLaVA-1.5's: its decoder's sizes are the library's own."""
    text = {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    config = LlavaConfig.from_dict({**TINY, "text_config": text})
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (4096, 32, 11008)
    assert config.feature_layers == (2,) and config.image_token == IMAGE and not config.tie_word_embeddings


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "'siglip_vision_model' is not supported"),
        ({"vision_feature_select_strategy": "cls"}, "'cls' is not supported"),
        ({"vision_feature_layer": -5}, "outside a tower of 3 layers"),
        ({"projector_hidden_act": "relu"}, "'relu' is not supported"),
        ({"text_config": None}, "needs text_config and vision_config"),
        ({"text_config": {"model_type": "gemma"}}, "'gemma' is not supported"),
    ],
)
def test_unsupported_settings(change, message):
    with pytest.raises(InputError, match=message):
        LlavaConfig.from_dict({**TINY, **change})

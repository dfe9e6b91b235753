"""CLIP: transformers' logits, features and image tower; round trip; refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mint.errors import InputError
from mint.models import init_model, load_model, save_model
from mint.models.clip import Clip, ClipConfig
from tests.reference.clip_inputs import CONFIGS, HERE, TINY, pixels, texts, weights

RECORD = json.loads((HERE / "clip.json").read_text())
RESULTS = load_file(HERE / "clip.safetensors")


def build(raw):
    model = Clip(ClipConfig.from_dict(raw)).eval()
    model.load_state_dict(weights({name: p.shape for name, p in model.named_parameters()}))
    return model.requires_grad_(False)


def test_names_and_shapes_are_the_checkpoints():
    assert {name: list(p.shape) for name, p in build(TINY).named_parameters()} == RECORD["shapes"]


@pytest.mark.parametrize("name", CONFIGS)
def test_everything_equals_transformers(name):
    """Padding behind a text changes nothing, with transformers' mask or without."""
    model, images = build(CONFIGS[name]), {"pixel_values": pixels()}
    tokens, _ = texts()
    made = {
        "logits": model(tokens, images),
        "logits_without_mask": model(tokens, images),
        "text": model.encode_text(tokens),
        "image": model.encode_image(images),
        "states": model.vision_model.hidden_states(pixels(), [2])[0],
    }
    for what, value in made.items():
        torch.testing.assert_close(value, RESULTS[f"{name}.{what}"], atol=1e-5, rtol=0)


def test_features_are_comparable():
    """By hand: logits are cosines times the scale."""
    model, images = build(TINY), {"pixel_values": pixels()}
    model.logit_scale.fill_(torch.tensor(100.0).log())
    tokens, _ = texts()
    text, image = model.encode_text(tokens), model.encode_image(images)
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(model(tokens, images)[1, 2], 100 * (image[1] * text[2]).sum(), atol=1e-4, rtol=0)


def test_image_and_text_matter():
    model, images = build(TINY), {"pixel_values": pixels()}
    tokens, _ = texts()
    plain = model(tokens, images)
    changed = images["pixel_values"].clone()
    changed[:, :, -16:, -16:] += 1
    assert (model(tokens, {"pixel_values": changed}) - plain).abs().min() > 1e-5
    other = tokens.clone()
    other[:, 1] = (other[:, 1] + 1) % 50 + 3
    assert (model(other, images) - plain).abs().max(0).values.min() > 1e-4


def test_round_trip_and_random_weights(tmp_path):
    model = init_model(TINY, seed=1)
    assert float(model.logit_scale.detach()) == pytest.approx(2.6592)
    assert model.vision_model.embeddings.class_embedding.std() > 0
    save_model(model, tmp_path / "clip")
    again = load_model(tmp_path / "clip")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


def test_the_second_form_of_a_tower_wins():
    """As in the first checkpoints, which hold both; other settings are the family's."""
    second = {"hidden_size": 1024, "patch_size": 14, "num_attention_heads": 16}
    config = ClipConfig.from_dict({"vision_config": {"hidden_size": 1}, "vision_config_dict": second})
    assert (config.vision.hidden_size, config.vision.patch_size, config.vision.image_size) == (1024, 14, 224)
    assert (config.text.hidden_size, config.text.max_position_embeddings, config.projection_dim) == (512, 77, 512)


@pytest.mark.parametrize(
    "tower, change, message",
    [
        ("vision_config", {"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ("text_config", {"num_attention_heads": 5}, "5 heads do not divide a width of 24"),
    ],
)
def test_unsupported_settings(tower, change, message):
    with pytest.raises(InputError, match=message):
        ClipConfig.from_dict(TINY | {tower: TINY[tower] | change})
    with pytest.raises(InputError, match="must be an object"):
        ClipConfig.from_dict(TINY | {tower: [1]})


def test_inputs_of_another_size():
    model = build(TINY)
    with pytest.raises(InputError, match="13 tokens is longer than the 12"):
        model.encode_text(torch.ones(1, 13, dtype=torch.int64))
    with pytest.raises(InputError, match="reads 48 x 48"):
        model.encode_image({"pixel_values": torch.zeros(1, 3, 48, 64)})

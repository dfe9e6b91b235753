"""The fusion classifier: transformers' logits, both modalities matter, padding does not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mint.errors import InputError
from mint.models import init_model, load_model, save_model
from mint.models.vilt import Vilt, ViltConfig, label_settings, small_config
from mint.training.setup import choose_precision
from tests.reference.vilt_inputs import HERE, INPUTS, TINY, inputs, weights

RECORD = json.loads((HERE / "vilt.json").read_text())
RESULTS = load_file(HERE / "vilt.safetensors")


@pytest.fixture(scope="module")
def model():
    model = Vilt(ViltConfig.from_dict(TINY)).eval()
    model.load_state_dict(weights({name: p.shape for name, p in model.named_parameters()}))
    return model


def run(model, given):
    given = dict(given)
    tokens, mask = given.pop("tokens"), given.pop("attention_mask", None)
    with torch.no_grad():
        return model(tokens, given, attention_mask=mask)


def test_names_and_shapes_are_the_checkpoints(model):
    assert {name: list(p.shape) for name, p in model.named_parameters()} == RECORD["shapes"]


@pytest.mark.parametrize("name", INPUTS)
def test_logits_equal_transformers(model, name):
    assert torch.allclose(run(model, inputs(name)), RESULTS[f"logits.{name}"], atol=1e-5, rtol=0)


def test_every_part_of_the_input_matters(model):
    given = inputs("square")
    plain = run(model, given)
    changed = given | {"pixel_values": given["pixel_values"].clone()}
    changed["pixel_values"][:, :, -16:, -16:] += 1
    assert (run(model, changed) - plain).abs().min() > 1e-4
    tokens = given["tokens"].clone()
    tokens[:, -1] = (tokens[:, -1] + 1) % TINY["vocab_size"]
    assert (run(model, given | {"tokens": tokens}) - plain).abs().min() > 1e-4
    assert (run(model, given | {"tokens": given["tokens"].flip(1)}) - plain).abs().max() > 1e-3  # places matter
    flipped = given | {"pixel_values": given["pixel_values"].roll(16, dims=-1)}
    assert (run(model, flipped) - plain).abs().max() > 1e-3


def test_what_is_masked_does_not_matter(model):
    given = inputs("padded_images")
    plain = run(model, given)
    changed = {name: value.clone() for name, value in given.items()}
    changed["pixel_values"] += 5 * (1 - given["pixel_mask"][:, None])
    changed["tokens"] = torch.where(given["attention_mask"] == 1, given["tokens"], 1)
    assert torch.allclose(run(model, changed), plain, atol=1e-6)
    full = given | {"pixel_mask": torch.ones_like(given["pixel_mask"])}
    assert (run(model, full) - plain).abs().max() > 1e-3


def test_padding_of_a_batch_changes_nothing(model):
    """A row alone, at its own size, has the logits it has in the batch."""
    given = inputs("padded_images")
    batch = run(model, given)
    for row, (height, width) in enumerate(INPUTS["padded_images"][3]):
        words = INPUTS["padded_images"][4][row]
        alone = {
            "tokens": given["tokens"][row : row + 1, :words],
            "pixel_values": given["pixel_values"][row : row + 1, :, :height, :width],
        }
        assert torch.allclose(run(model, alone), batch[row : row + 1], atol=1e-6)


def test_round_trip_and_a_new_head(tmp_path):
    labels = ["Noonan syndrome", 'a "quoted" name', "Béhr"]
    model = init_model(small_config(labels, 50, image_size=32, width=16, layers=2, heads=2, text_length=8), seed=3)
    save_model(model, tmp_path / "vilt")
    again = load_model(tmp_path / "vilt")
    given = {"tokens": torch.arange(8)[None], "pixel_values": torch.randn(1, 3, 32, 32)}
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert again.config.labels == tuple(labels)
    other = load_model(tmp_path / "vilt", settings=label_settings(["x", "y"]), fresh=("classifier.",), seed=5)
    assert run(other, given).shape == (1, 2) and other.config.labels == ("x", "y")
    kept = other.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items() if name.startswith("vilt."))
    assert kept["classifier.3.weight"].std() > 0 and torch.equal(kept["classifier.1.weight"], torch.ones(32))
    twin = load_model(tmp_path / "vilt", settings=label_settings(["x", "y"]), fresh=("classifier.",), seed=5)
    assert all(torch.equal(twin.state_dict()[name], value) for name, value in kept.items())


def test_a_pretraining_checkpoint_gets_a_head(tmp_path):
    """Masked-word checkpoints store another head and the places of words; both are left behind."""
    model = init_model(small_config(["x", "y"], 50, image_size=32, width=16, layers=2, heads=2), seed=3)
    save_model(model, tmp_path / "vilt")
    file = tmp_path / "vilt" / "model.safetensors"
    stored = {name: value for name, value in load_file(file).items() if not name.startswith("classifier.")}
    stored["mlm_score.bias"] = torch.zeros(50)
    stored["vilt.embeddings.text_embeddings.position_ids"] = torch.arange(64)[None]
    save_file(stored, file)
    with pytest.raises(InputError, match="mlm_score.bias"):
        load_model(tmp_path / "vilt")
    loaded = load_model(tmp_path / "vilt", settings=label_settings(list("abc")), fresh=("classifier.", "mlm_score."))
    assert loaded.config.labels == ("a", "b", "c")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"num_attention_heads": 5}, "heads must divide the width"),
        ({"max_image_length": 100}, "max_image_length 100 is not supported"),
        ({"id2label": {"1": "x"}}, "lacks '0'"),
    ],
)
def test_unsupported_settings(change, message):
    raw = {key: value for key, value in (TINY | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        ViltConfig.from_dict(raw)


@pytest.mark.cuda
def test_cuda_equals_the_cpu(model):
    choose_precision(False, torch.device("cuda"))
    given = {name: value.cuda() for name, value in inputs("padded_images").items()}
    on_cuda = Vilt(model.config).cuda().eval()
    on_cuda.load_state_dict(model.state_dict())
    assert torch.allclose(run(on_cuda, given).cpu(), RESULTS["logits.padded_images"], atol=1e-4)

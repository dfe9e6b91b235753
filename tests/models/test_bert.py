"""The sentence encoder's network: transformers' states, names of older checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mint.errors import InputError
from mint.models import load_model
from mint.models.bert import Bert, BertConfig
from tests.reference.bert_inputs import HERE, INPUTS, TINY, inputs, weights

RECORD = json.loads((HERE / "bert.json").read_text())
RESULTS = load_file(HERE / "bert.safetensors")


@pytest.fixture(scope="module")
def state():
    return weights({name: tuple(shape) for name, shape in RECORD["shapes"].items()})


@pytest.fixture(scope="module")
def model(state):
    model = Bert(BertConfig.from_dict(TINY)).eval()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("name", INPUTS)
def test_states_equal_transformers(model, name):
    tokens, mask = inputs(name)
    with torch.no_grad():
        states = model(tokens, None if mask.all() else mask)
    assert torch.allclose(states * mask[..., None], RESULTS[name], atol=1e-5, rtol=0)


def test_a_checkpoint_in_older_names(model, state, tmp_path):
    """With a prefix, TensorFlow's names of a norm, and stored positions."""
    renamed = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in state.items()
    }
    renamed["bert.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Bert)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 5}, "5 heads do not divide a width of 24"),
    ],
)
def test_settings_that_are_not_supported(changes, message):
    with pytest.raises(InputError, match=message):
        BertConfig.from_dict(TINY | changes)

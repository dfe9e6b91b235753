"""Attention weights: with them the values give what fused attention gave; rows sum to one; nothing later is seen."""

import pytest
import torch

from mint.errors import InputError
from mint.models import init_model
from mint.models.attention_maps import attention_to
from tests.models.test_mllama import model as mllama  # noqa: F401

BASE = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}


@pytest.mark.parametrize("changes", [{}, {"model_type": "mistral", "sliding_window": 4}])
def test_the_weights_are_those_that_are_used(changes):
    """One head: weights times values are what the layer's output projection receives."""
    model = init_model({**BASE, **changes}, seed=1)
    tokens, received, values = torch.randint(0, 50, (1, 12), generator=torch.Generator().manual_seed(0)), [], []
    for layer in model.decoder.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda m, inputs: received.append(inputs[0][0]))
        layer.self_attn.v_proj.register_forward_hook(lambda m, inputs, output: values.append(output[0]))
    everything = torch.arange(12)
    weights = attention_to(model, tokens, everything, everything)
    assert weights.shape == (3, 12, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 12))
    assert weights.triu(1).abs().max() == 0
    for mine, own, got in zip(
        weights, values[1::2], received, strict=True
    ):  # each layer projects twice: for us, then itself
        torch.testing.assert_close(mine @ own, got, atol=1e-6, rtol=1e-5)
    if "sliding_window" in changes:
        assert weights.tril(-4).abs().max() == 0


def test_heads_that_share_keys_are_averaged():
    """Four heads on two keys: the mean of the heads' own softmax, computed in float64 for the first layer."""
    model = init_model({**BASE, "num_attention_heads": 4, "num_key_value_heads": 2}, seed=2).double()
    tokens = torch.tensor([[3, 9, 4, 1, 7]])
    found = attention_to(model, tokens, torch.tensor([2, 4]), torch.tensor([0, 1]))
    layer = model.decoder.layers[0]
    x = model.decoder.embed_tokens.weight[tokens[0]]
    x = x / (x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt() * layer.input_layernorm.weight
    attention, size, wanted = layer.self_attn, 4, torch.zeros(2, 2, dtype=torch.float64)

    def turned(head, weight):
        y = x @ weight[head * size : head * size + size].T
        angle = torch.arange(5)[:, None] * model.config.rope_theta ** -(torch.arange(2) / 2)
        a, b = y[:, :2], y[:, 2:]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), 1)

    for head in range(4):
        scores = turned(head, attention.q_proj.weight) @ turned(head // 2, attention.k_proj.weight).T / 2
        for row, query in enumerate((2, 4)):
            wanted[row] += scores[query, : query + 1].softmax(0)[:2] / 4
    torch.testing.assert_close(found[0].double(), wanted, atol=1e-6, rtol=1e-5)


def test_images_beside_the_tokens(mllama):  # noqa: F811
    with pytest.raises(InputError, match="those of mllama do not"):
        attention_to(mllama, torch.tensor([[1, 2]]), torch.tensor([1]), torch.tensor([0]))

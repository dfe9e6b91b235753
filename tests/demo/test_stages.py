"""Loading the models of an experiment."""

import pytest
import torch

from mint.demo.stages import Hardware, load_student
from mint.models import init_model, load_model, save_model
from mint.models.lora import add_lora, lora_layers, save_adapter
from tests.reference.weights import TINY_LLAMA

TOKENS = torch.arange(24).view(2, 12) * 5 % 128


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_an_adapter_smaller_than_the_steps_of_bfloat16_is_not_rounded_away(dtype, tmp_path):
    """Its factors stay beside the weights there; in float32 the network is that with the adapter merged."""
    save_model(init_model(TINY_LLAMA), tmp_path / "base")
    adapted = add_lora(load_model(tmp_path / "base"), rank=2)
    for layer in lora_layers(adapted).values():
        torch.nn.init.normal_(layer.lora_B.weight, std=1e-5)
    save_adapter(adapted, tmp_path / "adapter")
    loaded = load_student(str(tmp_path / "base"), tmp_path / "adapter", Hardware("cpu", dtype))
    layers = lora_layers(loaded)
    if dtype == "bfloat16":
        assert all(
            parameter.dtype == torch.bfloat16 for name, parameter in loaded.named_parameters() if "lora" not in name
        )
        for name, layer in lora_layers(adapted).items():
            assert torch.equal(layers[name].lora_B.weight, layer.lora_B.weight.bfloat16()) and not layers[name].merged
    else:
        assert not layers
        torch.testing.assert_close(loaded(TOKENS), adapted(TOKENS))
        assert not torch.equal(loaded(TOKENS), load_model(tmp_path / "base")(TOKENS))

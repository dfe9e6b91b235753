"""Quantised weights below an adapter: values by hand, products and gradients, and training through the command."""

# ruff: noqa: F811

import math
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mint.config import TrainConfig
from mint.data.encode import EncodedPair
from mint.demo.stages import complete
from mint.errors import InputError
from mint.flags import parse
from mint.losses import load_loss
from mint.merge import merge
from mint.models import load_model, save_model
from mint.models.lora import add_lora, load_adapter, lora_layers, merge_lora
from mint.models.quantized import (
    KINDS,
    QuantizedLinear,
    dequantize,
    plain_parts,
    quantize_weight,
    quantizer,
    weight_bytes,
)
from mint.training.forward import Forward
from tests.test_train import losses, run, setting, settings  # noqa: F401 (a fixture)
from train import accumulate_gradients

# The 16 values of NF4 (QLoRA, appendix E).
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip


@pytest.fixture(scope="module")
def library():
    pytest.importorskip("torchao.quantization", reason="torchao, which --quantize uses, is not installed")


@pytest.fixture(scope="module")
def weight():
    return torch.randn(96, 128, generator=torch.Generator().manual_seed(0)) * 0.1


def by_hand(weight, kind):
    """The quantised weight as a plain one; int8: 255 steps of one size between the largest weight and its negative."""
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127.5
        return (weight / scale).round().clamp(-128, 127) * scale
    blocks, code = weight.view(-1, 64), torch.tensor(NF4)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / scale)[:, :, None] - code).abs().argmin(-1)
    return (code[nearest] * scale).view_as(weight)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_format(library, weight, kind):
    """But for weights halfway between two values, in int8 the largest of a row, and for nf4's scales of 8 bits."""
    found = dequantize(quantize_weight(weight, kind), torch.float32)
    differences = (found - by_hand(weight, kind)).abs().flatten().sort().values
    assert differences[: {"int8": -len(weight), "nf4": -5}[kind]].max() < {"int8": 1e-6, "nf4": 1e-3}[kind]
    assert (found - weight).abs().max() > {"int8": 1e-3, "nf4": 2e-2}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_that_of_the_dequantised_weight_with_and_without_an_adapter(library, weight, kind):
    layer = QuantizedLinear(torch.nn.Linear(128, 96, device="meta"), kind)
    layer.load(weight)
    layer.bias = torch.nn.Parameter(torch.randn(96))
    plain = torch.nn.Linear(128, 96)
    plain.load_state_dict({"weight": dequantize(layer.weight, torch.float32), "bias": layer.bias})
    models = [torch.nn.Sequential(x) for x in (layer, plain)]
    x = torch.randn(3, 7, 128, requires_grad=True)
    outputs = [model(x) for model in models]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in outputs))
    for model in models:
        torch.manual_seed(1)
        add_lora(model, 4, 8, targets=["0"])
        torch.nn.init.normal_(model[0].lora_B.weight)
    outputs = [model(x) for model in models]
    torch.testing.assert_close(*outputs)
    gradients = [
        torch.autograd.grad(y.square().sum(), [x, *(p for p in model.parameters() if p.requires_grad)])
        for y, model in zip(outputs, models, strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_dequantised_weight_is_kept_for_the_backward_pass(library, weight, kind, compiled):
    """Nor by a compiler, which would rather keep what the forward and the backward pass have in common."""
    layer, kept = QuantizedLinear(torch.nn.Linear(128, 96, bias=False, device="meta"), kind), []
    layer.load(weight)
    if compiled:
        layer.compile(backend="aot_eager")

    def keep(x):
        kept.append((x.dtype.is_floating_point, x.numel()))
        return x

    for _ in range(2):  # compiled at the first
        x = torch.randn(2, 128, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            y = layer(x).sin().sum()
        y.backward()
    assert kept and not [size for is_float, size in kept if is_float and size >= weight.numel()]


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_products_are_computed_once(library, weight, kind):
    """In the forward pass, and once more for the gradient of the input; also without an adapter, whose sum is kept."""
    layer = QuantizedLinear(torch.nn.Linear(128, 96, bias=False, device="meta"), kind)
    layer.load(weight)
    layer.compile(backend="aot_eager")
    x = torch.randn(2, 128, requires_grad=True)
    layer(x).sin().sum().backward()
    with FlopCounterMode(display=False) as counter:
        layer(x).sin().sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 2 * 128 * 96)


@pytest.mark.parametrize("kind", KINDS)
def test_the_linear_layers_of_the_decoder_are_quantised(library, setting, kind):
    plain, quantised = load_model(setting / "model"), load_model(setting / "model", quantize=kind)
    layers = {name: layer for name, layer in quantised.named_modules() if isinstance(layer, QuantizedLinear)}
    assert len(layers) == 7 * plain.config.num_hidden_layers
    with torch.no_grad():
        for name, layer in layers.items():
            plain.get_submodule(name).weight.copy_(dequantize(layer.weight, torch.float32))
        torch.testing.assert_close(plain.decoder.embed_tokens.weight, quantised.decoder.embed_tokens.weight)
        tokens = torch.arange(1, 13)[None]
        torch.testing.assert_close(plain(tokens), quantised(tokens), rtol=1e-4, atol=1e-5)
    numbers = sum(layer.weight.numel() for layer in layers.values())
    rest = sum(p.nbytes for p in plain.parameters()) - 4 * numbers
    for model in (plain, quantised):
        model.requires_grad_(False)
    assert weight_bytes(plain) == rest + 4 * numbers
    assert weight_bytes(quantised) < rest + {"int8": 1.1, "nf4": 0.6}[kind] * numbers


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_layers_give_the_same_losses_and_gradients(library, setting, kind, each_device):
    """As on CUDA by default; for the policy and the reference, and rows of several lengths."""
    pairs, loss = [EncodedPair(str(n), [1] * (30 + n), [2] * 12, [3] * 8) for n in range(3)], load_loss("dpo")
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = load_model(setting / "model", quantize=kind, device=each_device)
        torch.manual_seed(0)
        add_lora(model, 4, 8).train()
        for i, layer in enumerate(lora_layers(model).values()):
            drawn = torch.randn(layer.lora_B.weight.shape, generator=torch.Generator().manual_seed(i))
            layer.lora_B.weight.data.copy_(0.1 * drawn)
        if compiled:
            model.compile_blocks(backend="aot_eager")
        forward = Forward(model, loss, 4, shape={"rows": 1})
        losses = [accumulate_gradients(forward, pairs[:count])[0]["loss"] for count in (2, 3, 1)]
        gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        results.append((torch.tensor(losses), torch.cat(gradients)))
    for found, expected in zip(*results[::-1], strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_is_not_merged_or_saved(library, setting, tmp_path, kind):
    model = load_model(setting / "model", quantize=kind)
    with pytest.raises(InputError, match="the weights of the model are quantised: load it without that to save it"):
        save_model(model, tmp_path / "saved")
    with pytest.raises(InputError, match="load the model without that, and merge the adapter into it"):
        merge_lora(add_lora(model))


def test_a_run_starts_at_the_quantised_reference_and_its_adapter_fits_the_plain_model(
    library, setting, tmp_path, capsys
):
    """With a cache of the reference too: its fingerprint reads the quantised weights."""
    out = tmp_path / "run"
    common = ("--loss", "dpo", "--quantize", "nf4", "--steps", "3", "--cache-reference", "--sample-every", "3")
    run(*settings(setting, out, *common))
    found = losses(out)
    assert found[1] == pytest.approx(math.log(2), abs=1e-6) and found[3] < 0.9 * found[1]
    assert "weights in nf4: " in capsys.readouterr().out
    adapted = load_adapter(load_model(setting / "model"), out / "adapter")
    merge(setting / "model", out / "adapter", tmp_path / "merged")
    tokens = torch.arange(1, 13)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "merged")(tokens), adapted(tokens), rtol=1e-4, atol=1e-4)
    assert not any(layer.quantized for layer in lora_layers(adapted).values())


def test_parts_of_a_plain_tensor():
    tensor = torch.zeros(2)
    assert list(plain_parts("x", tensor)) == [("x", tensor)]


def test_without_the_library_there_is_a_clear_error(setting, tmp_path, monkeypatch, capsys):
    import train

    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    quantizer.cache_clear()
    assert train.main(settings(setting, tmp_path / "run", "--loss", "dpo", "--quantize", "int8")) == 2
    error = "error: --quantize int8 needs the package torchao: pip install 'torchao>=0.18'\n"
    assert capsys.readouterr().err == error and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "message"), [("--full", "--quantize is for frozen"), ("--dry-run", "--dry-run does not")]
)
def test_settings_that_contradict_it(flag, message):
    with pytest.raises(InputError, match=message):
        parse(TrainConfig, ["--model", "m", "--data", "d", "--quantize", "int8", flag], "")


def test_a_demo_that_trains_all_weights_trains_an_adapter_instead(tmp_path):
    assert not complete(TrainConfig(quantize="int8"), {"full": True}, tmp_path).full
    assert complete(TrainConfig(), {"full": True}, tmp_path).full


def test_a_layer_that_nf4_does_not_fit(library):
    with pytest.raises(InputError, match=r"--quantize nf4: a layer of \(3, 5\) weights is no multiple of 64"):
        quantize_weight(torch.ones(3, 5), "nf4")

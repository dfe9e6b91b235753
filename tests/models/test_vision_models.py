"""What LLaVA, Llama 3.2 Vision and Qwen-VL have in common: names, adapters, older files, activation checkpointing."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mint.models import init_model, load_model, save_model
from mint.models.lora import add_lora, load_adapter, lora_layers, save_adapter
from mint.models.recompute import SELECTIVE
from tests.reference import llava_inputs, mllama_inputs, qwen3_vl_inputs, qwen_vl_inputs
from tests.reference.weights import drawn_adapter

OLDER = [
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.", ""),
]
FAMILIES = {  # the inputs' module, an input, its images, from our names to those of the file that transformers writes
    "llava": (llava_inputs, "llama", lambda: {"pixel_values": llava_inputs.pixels()}, OLDER),
    "mllama": (mllama_inputs, "rows", lambda: mllama_inputs.images("rows"), OLDER),
    "qwen_vl": (
        qwen_vl_inputs,
        "rows",
        lambda: qwen_vl_inputs.images("rows"),
        [(r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")],
    ),
    "qwen3_vl": (qwen3_vl_inputs, "rows", lambda: qwen3_vl_inputs.images("rows"), []),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    inputs, name, images, older = FAMILIES[request.param]
    record = json.loads((inputs.HERE / f"{request.param}.json").read_text())
    shapes = record["shapes"].get(name, record["shapes"])
    given = inputs.tokens(name), images()
    results = load_file(inputs.HERE / f"{request.param}.safetensors")
    return SimpleNamespace(inputs=inputs, given=given, older=older, record=record, shapes=shapes, results=results)


def build(family):
    """The tiny model with the reference weights."""
    model = init_model(family.inputs.TINY)
    model.load_state_dict(family.inputs.weights({name: p.shape for name, p in model.named_parameters()}))
    return model


def test_names_and_shapes_are_transformers(family):
    assert {name: list(p.shape) for name, p in build(family).named_parameters()} == family.shapes


def test_adapters_are_pefts(family, tmp_path):
    """PEFT's logits with the same factors on every part, under the names that PEFT stores."""
    model = add_lora(build(family), rank=2, alpha=4, targets=family.inputs.ADAPTED)
    layers = lora_layers(model)
    ours = {
        f"{name}.{f}.weight": getattr(layer, f).weight for name, layer in layers.items() for f in ("lora_A", "lora_B")
    }
    factors = drawn_adapter({name: weight.shape for name, weight in ours.items()}, family.inputs.SEED)
    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(factors[name])
        torch.testing.assert_close(model(*family.given), family.results["adapter"], atol=3e-5, rtol=0)
    save_adapter(model, tmp_path)
    assert sorted(load_file(tmp_path / "adapter_model.safetensors")) == family.record["adapter"]
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    named = [name for name, _ in model.named_modules() if name.endswith(tuple(f".{target}" for target in targets))]
    assert set(named) | set(targets).intersection(layers) == set(
        layers
    )  # PEFT adapts whatever ends so, and nothing else


@pytest.mark.parametrize("full_names", [False, True])
def test_adapters_under_older_names_load(family, full_names, tmp_path):
    """As PEFT saved them while the network still had the names of the published files."""
    model = add_lora(build(family), rank=2, alpha=4, targets=family.inputs.ADAPTED)
    layers = lora_layers(model)
    for number, layer in enumerate(layers.values()):
        torch.nn.init.normal_(layer.lora_B.weight, generator=torch.Generator().manual_seed(number))
    save_adapter(model, tmp_path)

    def old(name):
        for pattern, replacement in family.older:
            name = re.sub(pattern, replacement, f"{name}.").removesuffix(".")
        return name

    tensors = load_file(tmp_path / "adapter_model.safetensors")
    wrapper = "base_model.model."
    renamed = {wrapper + old(name.removeprefix(wrapper)): tensor for name, tensor in tensors.items()}
    assert (set(renamed) == set(tensors)) == (not family.older)
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    if full_names:
        names = [old(name) for name in layers]
        config |= {"target_modules": names, "rank_pattern": dict.fromkeys(names, 2), "r": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    again = load_adapter(build(family), tmp_path)
    assert list(lora_layers(again)) == list(layers)
    for name, layer in lora_layers(again).items():
        assert torch.equal(layer.lora_B.weight, layers[name].lora_B.weight)


def test_older_names_are_read(family, tmp_path):
    """The file that transformers writes, and the first hub checkpoints, hold the same tensors under other names."""
    save_model(init_model(family.inputs.TINY, seed=2), tmp_path / "new")
    file = tmp_path / "new" / "model.safetensors"
    tensors = load_file(file)
    written = {}
    for name, value in tensors.items():
        for pattern, older in family.older:
            name = re.sub(pattern, older, name)
        written[name] = value
    assert sorted(written) == family.record["stored"]
    first = {re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name): value for name, value in written.items()}
    for stored in (written, first):
        save_file(stored, file)
        again = load_model(tmp_path / "new").state_dict()
        assert again.keys() == tensors.keys() and all(
            torch.equal(again[name], value) for name, value in tensors.items()
        )


def test_activation_checkpointing_keeps_less_and_changes_nothing(family):
    """In the image tower too: the same gradients from fewer kept numbers."""
    gradients, kept = [], []
    for recompute in (False, True, SELECTIVE):
        model, sizes = build(family).train(), []
        model.gradient_checkpointing = recompute

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(*family.given).square().mean()
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        kept.append(sum(sizes))
    assert kept[1] < 0.6 * kept[0]
    for name, gradient in gradients[0].items():
        if gradient is None:  # of a layer behind the one whose features are read
            assert gradients[1][name] is gradients[2][name] is None and "vision_tower" in name
            continue
        for other in gradients[1:]:
            torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-4)

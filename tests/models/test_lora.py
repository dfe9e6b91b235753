"""The adapter layer: its formula, PEFT's files both ways, merging, and every mistake in an adapter directory."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mint.errors import InputError
from mint.losses.logprobs import token_stats
from mint.models import init_model, load_model, save_model
from mint.models.lora import (
    LoRALinear,
    add_lora,
    apply_layers,
    keep_as_reference,
    load_adapter,
    lora_layers,
    merge_lora,
    reference,
    save_adapter,
    settle_lora,
)
from tests.reference.weights import TINY_LLAMA, reference_weights

REFERENCE = Path(__file__).parent.parent / "reference"
PEFT = load_file(REFERENCE / "peft.safetensors")
WEIGHTS_SEED = json.loads((REFERENCE / "trl.json").read_text())["weights_seed"]


def tiny_llama():
    model = init_model(TINY_LLAMA)
    model.load_state_dict(reference_weights(TINY_LLAMA, WEIGHTS_SEED))
    return model


def disturb(model, std=0.3):
    """Gives the adapters an update that is not zero."""
    for i, layer in enumerate(lora_layers(model).values()):
        torch.nn.init.normal_(layer.lora_B.weight, std=std, generator=torch.Generator().manual_seed(i))
    return model


TOKENS = torch.arange(24).view(2, 12) * 5 % 128


def make_layer(rank=2, alpha=3.0, dropout=0.0, rslora=False, size=(6, 5)):
    torch.manual_seed(0)
    layer = LoRALinear(torch.nn.Linear(*size), rank, alpha, dropout, rslora)
    torch.nn.init.normal_(layer.lora_B.weight)
    return layer


# -- the formula -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora, scaling", [(False, 3 / 2), (True, 3 / 2**0.5)])
def test_forward_is_the_formula(rslora, scaling):
    layer, x = make_layer(rslora=rslora), torch.randn(4, 6)
    expected = x @ layer.weight.T + layer.bias + scaling * x @ layer.lora_A.weight.T @ layer.lora_B.weight.T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_folded_and_separate_paths_agree_in_value_and_gradient(dtype, tolerance):
    layer = make_layer(rank=8, size=(16, 12)).to(dtype)
    x = torch.randn(5, 16, dtype=dtype, requires_grad=True)
    results = []
    for folded in (True, False):
        layer._folding_is_cheaper = lambda tokens, folded=folded: folded
        out = layer(x)
        grads = torch.autograd.grad(out.square().sum(), (x, layer.lora_A.weight, layer.lora_B.weight))
        results.append((out, *grads))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def one_by_one(layers, x):
    return [layer(x) for layer in layers]


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    "case, shared",
    [("policy", True), ("evaluation", True), ("loaded reference", True), ("dropout", False), ("merged", False)]
    + [("one without adapter", False), ("folded", False)],
)
def test_layers_of_one_input_are_what_each_gives_alone(case, shared, in_place, monkeypatch):
    """Of different sizes, ranks and scales: outputs, and the gradients of input and factors."""
    if case != "folded":
        monkeypatch.setattr(LoRALinear, "_folding_is_cheaper", lambda *_: False)
    dropout = 0.5 if case in ("dropout", "evaluation") else 0.0
    layers = [make_layer(r, alpha, dropout, size=(6, n)).double() for r, alpha, n in ((2, 3, 5), (3, 1, 4), (1, 2, 7))]
    for layer in layers:
        layer.in_place = in_place
        layer.train(case != "evaluation")
    if case == "loaded reference":
        layers[1].start = (torch.randn(3, 6).double(), torch.randn(4, 3).double())
        layers[1].as_reference = True
    if case == "merged":
        layers[2].fold()
    if case == "one without adapter":
        layers[1] = torch.nn.Linear(6, 4).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    joined, join, results = [], torch.cat, []
    monkeypatch.setattr(torch, "cat", lambda *given: joined.append(1) or join(*given))
    for apply in (apply_layers, one_by_one):
        torch.manual_seed(1)
        outputs = apply(layers, x)
        loss = sum((place * y.sin()).sum() for place, y in enumerate(outputs, 1))
        gradients = torch.autograd.grad(loss, [x, *trained], allow_unused=True)
        results.append([*outputs, *(torch.zeros(()) if g is None else g for g in gradients)])
    assert len(joined) == shared
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_layers_of_one_input_share_a_product():
    """Three of the weights, and one of the three A; without gradients each layer has its own."""
    layers, x = [make_layer(2, size=(16, 8)).bfloat16() for _ in range(3)], torch.randn(9, 16).bfloat16()
    for gradients, expected in ((True, 3 + 1), (False, 3 + 3)):
        with torch.set_grad_enabled(gradients), torch.profiler.profile() as profile:
            apply_layers(layers, x)
        assert sum(event.count for event in profile.key_averages() if event.key == "aten::linear") == expected


def test_folding_is_chosen_by_cost_and_never_under_dropout_or_low_precision():
    def folds(tokens, rank, **options):
        return make_layer(rank=rank, size=(512, 512), **options).train()._folding_is_cheaper(tokens)

    assert folds(4096, rank=256) and folds(4096, rank=128) and folds(600, rank=256)
    assert not folds(8, rank=256) and not folds(4096, rank=64)  # too few tokens, too small a rank
    assert not folds(4096, rank=256, dropout=0.1)
    low = LoRALinear(torch.nn.Linear(512, 512).bfloat16(), 256, 1.0)
    assert not low._folding_is_cheaper(4096)


def test_compiled_blocks_give_the_same_numbers():
    model = disturb(add_lora(tiny_llama(), rank=4, alpha=8))
    for name, layer in lora_layers(model).items():  # both ways to compute are compiled
        layer._folding_is_cheaper = lambda tokens, folded="self_attn" in name: folded
    results = []
    for compiled in (False, True):
        if compiled:
            model.compile_blocks(backend="aot_eager")  # inductor: benchmarks/step_time.py --compile
        logits = model(TOKENS)
        trained = [p for p in model.parameters() if p.requires_grad]
        results.append((logits, *torch.autograd.grad(logits.square().mean(), trained)))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_factors_are_float32_on_a_bfloat16_layer():
    layer = LoRALinear(torch.nn.Linear(6, 5).bfloat16(), 2, 4.0)
    torch.nn.init.ones_(layer.lora_B.weight)
    out = layer(torch.ones(3, 6, dtype=torch.bfloat16))
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert layer.lora_A.weight.grad.dtype == layer.lora_B.weight.dtype == torch.float32


def test_dropout_acts_on_the_update_alone_and_only_in_training():
    layer, x = make_layer(dropout=0.5), torch.randn(64, 6)
    assert torch.equal(layer.eval()(x), layer(x))
    base = torch.nn.functional.linear(x, layer.weight, layer.bias)
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    torch.nn.init.zeros_(layer.lora_B.weight)
    torch.testing.assert_close(layer(x), base)


def test_a_fresh_adapter_changes_nothing_and_trains_nothing_else():
    model = tiny_llama()
    before = model(TOKENS)
    add_lora(model, rank=4, alpha=8, dropout=0.1)
    assert torch.equal(model(TOKENS), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{n}.lora_{f}.weight" for n in lora_layers(model) for f in "AB"}


# -- targets -----------------------------------------------------------------------------------------------------


def test_all_linear_is_every_linear_layer_but_the_head():
    names = set(lora_layers(add_lora(tiny_llama(), 2, 2)))
    leaves = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(names) == 14 and {n.rpartition(".")[2] for n in names} == leaves


def test_targets_by_name_and_suffix():
    assert len(lora_layers(add_lora(tiny_llama(), 2, 2, targets="q_proj, lm_head"))) == 3
    one = add_lora(tiny_llama(), 2, 2, targets=["layers.1.mlp.up_proj"])
    assert list(lora_layers(one)) == ["model.layers.1.mlp.up_proj"]


def test_an_adapted_head_takes_part_in_the_logits():
    model = disturb(add_lora(tiny_llama(), 2, 2, targets="lm_head"))
    base, merged = tiny_llama(), merge_lora(deepcopy(model))
    assert not torch.allclose(model(TOKENS), base(TOKENS))
    torch.testing.assert_close(model(TOKENS), merged(TOKENS), atol=1e-5, rtol=1e-4)
    assert torch.equal(model.head_weight, base.head_weight)
    hidden = torch.randn(3, model.config.hidden_size)
    low, b = model.head_update(hidden)
    torch.testing.assert_close(hidden @ model.head_weight.T + low @ b.T, model.logits(hidden))
    assert low.requires_grad and b.requires_grad
    assert base.head_update(hidden) is None and merged.head_update(hidden) is None
    with reference(model):
        assert model.head_update(hidden) is None


def test_a_small_update_of_a_bfloat16_head_is_not_rounded_away():
    """Added to the weight, an update of a thousandth of it would be lost in bfloat16."""
    model = add_lora(tiny_llama().bfloat16(), 2, 2, targets="lm_head")
    torch.nn.init.normal_(model.lm_head.lora_B.weight, std=2e-5, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(4, model.config.hidden_size, generator=torch.Generator().manual_seed(1)).bfloat16()
    targets, wide = torch.arange(4), hidden.double()
    factors = model.lm_head.lora_A.weight.double(), model.lm_head.lora_B.weight.double()
    base, update = wide @ model.head_weight.double().T, wide @ (factors[1] @ factors[0]).T
    low, b = model.head_update(hidden)
    stats = token_stats(hidden, model.head_weight, targets, hidden, update=(low, b))
    true = [x.log_softmax(-1)[targets, targets] for x in (base + update, base)]
    assert 1e-5 < (true[0] - true[1]).abs().max() < 1e-2
    torch.testing.assert_close((stats.logps - stats.ref_logps).double(), true[0] - true[1], atol=2e-6, rtol=0)
    ours = torch.autograd.grad(stats.logps.sum(), model.lm_head.lora_B.weight)[0]
    exact = torch.autograd.grad(true[0].sum(), model.lm_head.lora_B.weight)[0]
    torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"targets": "q_proj,w_proj"}, "target 'w_proj' matches no linear layer; the model has: down_proj"),
        ({"targets": "proj"}, "matches no linear layer"),
        ({"targets": ""}, "matches no linear layer"),
        ({"rank": 0}, "rank of at least 1"),
        ({"alpha": 0}, "alpha > 0"),
        ({"dropout": 1.0}, "dropout in"),
    ],
)
def test_impossible_adapters_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        add_lora(tiny_llama(), **options)


def test_a_second_adapter_is_refused():
    with pytest.raises(InputError, match="has an adapter already"):
        add_lora(add_lora(tiny_llama(), 2, 2), 2, 2)


# -- reference and merging ---------------------------------------------------------------------------------------


def test_reference_is_the_base_under_a_fresh_adapter_and_the_start_under_a_loaded_one():
    model = disturb(add_lora(tiny_llama(), 4, 8))
    with reference(model):
        assert torch.equal(model(TOKENS), tiny_llama()(TOKENS))
    start = model(TOKENS)
    keep_as_reference(model)
    disturb(model, std=0.7)
    with reference(model):
        assert torch.equal(model(TOKENS), start)
    assert not torch.allclose(model(TOKENS), start)


def test_merging_keeps_the_logits():
    model = disturb(add_lora(tiny_llama(), 4, 8))
    adapted = model(TOKENS)
    merge_lora(model)
    torch.testing.assert_close(model(TOKENS), adapted, rtol=1e-4, atol=1e-5)


def test_merge_adds_in_float32_before_rounding():
    linear = torch.nn.Linear(64, 64, bias=False).bfloat16()
    layer = LoRALinear(linear, 4, 4.0)
    torch.nn.init.normal_(layer.lora_B.weight, std=0.01)
    exact = layer.weight.double() + layer.lora_B.weight.double() @ layer.lora_A.weight.double()
    layer.fold()
    assert torch.equal(layer.weight, exact.float().bfloat16())


@pytest.mark.parametrize(("dtype", "merged"), [(torch.float32, True), (torch.bfloat16, False)])
def test_inference_keeps_an_update_smaller_than_the_steps_of_bfloat16(dtype, merged):
    """The share of the update that is in the result: merged into bfloat16 weights, none of this one would be.

    Weights are +-0.5 to 1, where bfloat16 has steps of 1/256; the update adds 0.0015 to each, 0.1 to a result.
    """
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
    size, sign = (torch.rand(64, 64, generator=generator) for _ in range(2))
    with torch.no_grad():
        model[0].weight.copy_((size + 1) / 2 * (sign - 0.5).sign())
    add_lora(model.to(dtype), 4, 4.0, targets="0")
    torch.nn.init.constant_(model[0].lora_A.weight, 0.1)
    torch.nn.init.constant_(model[0].lora_B.weight, 0.00375)
    x = (1 + torch.randn(2000, 64, generator=generator) / 10).to(dtype)
    plain = x.double() @ model[0].weight.double().T
    expected = 0.0015 * x.double().sum(-1, keepdim=True).expand_as(plain)
    with torch.no_grad():
        assert bool(lora_layers(settle_lora(model))) is not merged
        assert ((model(x).double() - plain) / expected).mean() == pytest.approx(1, abs=0.1)
        if not merged:
            assert ((merge_lora(model)(x).double() - plain) / expected).mean() == pytest.approx(0, abs=0.1)


def test_a_merged_model_is_saved_as_a_plain_one(tmp_path):
    model = disturb(add_lora(tiny_llama(), 4, 8))
    adapted = model(TOKENS)
    with pytest.raises(InputError, match="merge it before saving"):
        save_model(model, tmp_path / "merged")
    save_model(merge_lora(model), tmp_path / "merged")
    torch.testing.assert_close(load_model(tmp_path / "merged")(TOKENS), adapted, rtol=1e-4, atol=1e-5)
    merge_lora(model, drop=True)
    assert not lora_layers(model)
    torch.testing.assert_close(model(TOKENS), adapted, rtol=1e-4, atol=1e-5)


# -- PEFT's files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "rslora", "patterns"])
def test_adapters_written_by_peft_give_its_logits(name):
    model = load_adapter(tiny_llama(), REFERENCE / "peft_adapters" / name)
    torch.testing.assert_close(model(PEFT["tokens"]), PEFT[name], rtol=1e-5, atol=1e-5)
    assert (PEFT[name] - PEFT["base"]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["plain", "rslora", "patterns"])
def test_saving_again_keeps_keys_tensors_and_settings(name, tmp_path):
    source = REFERENCE / "peft_adapters" / name
    save_adapter(load_adapter(tiny_llama(), source), tmp_path)
    theirs, ours = (load_file(folder / "adapter_model.safetensors") for folder in (source, tmp_path))
    assert set(theirs) == set(ours) and all(torch.equal(theirs[k], ours[k]) for k in theirs)
    again = load_adapter(tiny_llama(), tmp_path)
    torch.testing.assert_close(again(PEFT["tokens"]), PEFT[name], rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["use_rslora"] == (name == "rslora")


def test_a_partial_adapter_names_its_layers_in_full(tmp_path):
    save_adapter(add_lora(tiny_llama(), 2, 2, targets="layers.0.mlp.up_proj"), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.0.mlp.up_proj"]


def test_the_base_is_recorded_as_it_was_named(tmp_path, monkeypatch):
    """A hub id stays one, so that the adapter finds its base on any machine; peft_version says whose layout it is."""
    save_model(tiny_llama(), tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path / "cache"))
    for name in ("owner/tiny", str(tmp_path / "cache")):
        save_adapter(add_lora(load_model(name), 2, 2), tmp_path / "adapter")
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == name
        assert config["peft_version"] == "0.18.0"


@pytest.fixture
def adapter(tmp_path):
    shutil.copytree(REFERENCE / "peft_adapters" / "plain", tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refuse(folder, message):
    with pytest.raises(InputError, match=message):
        load_adapter(tiny_llama(), folder)


UP = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


def test_every_tensor_must_find_its_layer(adapter):
    edit_tensors(adapter, lambda t: t.update({UP.replace("up_proj", "sideways"): t[UP].clone()}))
    refuse(adapter, "no linear layer called model.layers.0.mlp.sideways")


def test_unknown_keys_are_refused(adapter):
    edit_tensors(adapter, lambda t: t.update({"base_model.model.lora_embedding_A": t[UP].clone()}))
    refuse(adapter, "unknown key 'base_model.model.lora_embedding_A'")


def test_half_a_layer_is_refused(adapter):
    edit_tensors(adapter, lambda t: t.pop(UP))
    refuse(adapter, "lora_A or lora_B missing for model.layers.0.mlp.up_proj")


def test_a_layer_promised_but_absent_is_refused(adapter):
    edit_tensors(adapter, lambda t: (t.pop(UP), t.pop(UP.replace("lora_A", "lora_B"))))
    refuse(adapter, "layers the file has no tensors for: model.layers.0.mlp.up_proj")


def test_shapes_must_fit(adapter):
    edit_tensors(adapter, lambda t: t.update({UP: t[UP][:, :5].contiguous()}))
    refuse(adapter, "has shapes")


def test_rank_must_be_the_configured_one(adapter):
    edit_config(adapter, r=8)
    refuse(adapter, "rank 4, not the one in adapter_config.json")


@pytest.mark.parametrize("change", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_other_kinds_of_adapter_are_refused(adapter, change):
    edit_config(adapter, **change)
    refuse(adapter, "is not supported")


def test_missing_and_damaged_files(adapter, tmp_path):
    refuse(tmp_path, "adapter_config.json is missing")
    (adapter / "adapter_model.safetensors").write_bytes(b"not safetensors")
    refuse(adapter, "cannot be read")
    (adapter / "adapter_model.safetensors").unlink()
    refuse(adapter, "is missing")
    (adapter / "adapter_config.json").write_text("{")
    refuse(adapter, "invalid JSON")

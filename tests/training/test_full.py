"""Full fine-tuning in the memory of one model: the reference in bfloat16, checkpoints that load in place, precision."""

# ruff: noqa: F811

import pytest
import torch

import train
from mint.config import TrainConfig
from mint.data.batch import EncodedPair, collate
from mint.flags import parse, to_toml
from mint.losses import load_loss
from mint.models import checkpoint, init_model, load_model, save_model
from mint.models.lora import add_lora
from mint.models.recompute import SELECTIVE, set_recompute
from mint.objective import preference_loss
from mint.training.run_directory import load_weights
from mint.training.setup import choose_precision, frozen_copy
from mint.training.step_trace import StepCounter
from tests.reference.weights import TINY_LLAMA
from tests.test_train import losses, setting, settings  # noqa: F401 (a fixture)

PAIRS = [EncodedPair(str(i), [1, 2, 3 + i], [4, 5, 6], [6, 7 + i]) for i in range(3)]


@pytest.mark.parametrize("tied", [False, True])
def test_a_reference_in_bfloat16_changes_no_number(tied):
    """The products are in bfloat16 anyway: bit for bit the loss against a copy in float32, in half the memory."""
    model = init_model({**TINY_LLAMA, "tie_word_embeddings": tied, "initializer_range": 0.1}).train()
    copies = frozen_copy(model, torch.float32), frozen_copy(model, torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    found = []
    for frozen in copies:
        assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
        with torch.autocast("cpu", torch.bfloat16):
            output = preference_loss(model, collate(PAIRS), load_loss("rrpo", {"alpha": 0.5}), frozen)
        found.append((output.loss.item(), output.metrics["rewards/margins"].item()))
    assert found[0] == found[1] and abs(found[0][1]) > 1e-4
    layers = [sum(p.nbytes for p in copy.decoder.layers.parameters() if p.dim() == 2) for copy in copies]
    assert layers[1] == layers[0] / 2
    assert all(p.requires_grad for p in model.parameters()) and model.head_weight.dtype == torch.float32


def test_a_checkpoint_is_loaded_into_the_model_without_a_second_one(tmp_path, monkeypatch):
    saved, model = (init_model(TINY_LLAMA, seed) for seed in (1, 2))
    save_model(saved, tmp_path / "model")
    monkeypatch.setattr(checkpoint, "build_model", None)
    places = [p.data_ptr() for p in model.parameters()]
    load_weights(tmp_path, model)
    assert [p.data_ptr() for p in model.parameters()] == places
    for name, parameter in saved.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)


def test_float32_products_on_cuda_are_in_tf32_unless_declined():
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for tf32, device, expected in ((True, "cpu", before), (True, "cuda", "high"), (False, "cuda", "highest")):
            choose_precision(tf32, torch.device(device))
            assert torch.get_float32_matmul_precision() == expected
            assert torch.backends.cudnn.allow_tf32 == (convolutions if device == "cpu" else tf32)
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ([], False),
        (["--checkpoint-activations"], True),
        (["--checkpoint-activations", "selective", "--steps", "1"], "selective"),
        (["--checkpoint-activations", "--no-checkpoint-activations"], False),
    ],
)
def test_the_choice_of_what_is_recomputed(tmp_path, flags, value):
    """From flags, and from the TOML file that a run saves."""
    config = parse(TrainConfig, flags, "")
    assert config.checkpoint_activations == value
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert parse(TrainConfig, ["--config", f"{tmp_path}/run.toml"], "") == config


@pytest.mark.parametrize("full", [False, True])
def test_selective_checkpointing_keeps_more_than_inputs_and_less_than_everything(full):
    held = []
    for recompute in (True, SELECTIVE, False):
        model = init_model(TINY_LLAMA) if full else add_lora(init_model(TINY_LLAMA), rank=4, dropout=0.1)
        set_recompute(model.train(), recompute)
        with StepCounter() as counter:
            output = preference_loss(model, collate(PAIRS), load_loss("orpo"))
            held.append(sum(counter.now.values()))
        assert output.loss.requires_grad
    assert held[0] < 0.9 * held[1] and held[1] < 0.9 * held[2]


def test_mistakes_in_that_choice(tmp_path, capsys):
    for flags, message in (
        (["--checkpoint-activations", "some"], "invalid choice: 'some'"),
        (["--no-checkpoint-activations", "selective"], "--no-checkpoint-activations takes no value"),
    ):
        with pytest.raises(SystemExit):
            parse(TrainConfig, flags, "")
        assert message in capsys.readouterr().err
    (tmp_path / "run.toml").write_text('checkpoint_activations = "some"\n')
    assert train.main(["--config", f"{tmp_path}/run.toml"]) == 2
    assert "checkpoint_activations must be one of selective, true or false, not 'some'" in capsys.readouterr().err


def test_a_run_in_bfloat16_with_selective_checkpointing(setting, tmp_path):
    """The losses of a run that recomputes nothing."""
    common = ("--loss", "dpo", "--full", "--dtype", "bfloat16", "--steps", "2")
    found = []
    for name, more in (("plain", ()), ("selective", ("--checkpoint-activations", "selective"))):
        assert train.main(settings(setting, tmp_path / name, *common, "--lr", "1e-3", *more)) == 0
        found.append(losses(tmp_path / name))
    assert found[0] == found[1] and found[0][1] != found[0][2]
    assert load_model(tmp_path / "selective" / "model").head_weight.dtype == torch.float32

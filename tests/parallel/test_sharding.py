"""FSDP2 in two and three processes: the numbers of one process, and no process with the whole model."""

# ruff: noqa: F811

import pytest
import torch
from torch.distributed.tensor import DTensor

import train
from mint import parallel
from mint.config import TrainConfig
from mint.data.batch import EncodedPair, collate
from mint.demo.tiny_model import write_base
from mint.errors import InputError
from mint.flags import parse
from mint.models import load_model
from mint.models.lora import add_lora
from mint.training import curves, setup, sharding
from mint.training.out_of_memory import memory_flags
from mint.training.run_directory import load_weights
from tests.parallel.launch import launch
from tests.parallel.test_training import STEP, assert_same_run, cut, flags, start
from tests.test_train import WORDS, records, run, setting, settings  # noqa: F401 (a fixture)
from tests.test_train_images import arguments
from tests.test_train_images import setting as images  # noqa: F401 (a fixture)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(curves, "plot_curves", lambda *_: None)


def test_a_sharded_run_equals_one_process(setting, tmp_path):
    """Three evaluation batches for two processes: one of them computes a batch more, which does not count."""
    more = ("--checkpoint-activations", "--steps", "1")
    run(*flags(setting, tmp_path / "one", *more))
    ended = start(2, tmp_path / "two", flags(setting, tmp_path / "two", *more, "--shard"))
    assert ended.statuses == [0, 0], ended.printed
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_an_adapter_continues_in_processes_that_do_not_divide_the_rows(setting, tmp_path):
    run(*settings(setting, tmp_path / "sft", "--loss", "sft", "--steps", "1"))
    more = (*STEP, "--loss", "dpo", "--adapter", f"{tmp_path}/sft/adapter", "--grad-accum", "3")
    run(*settings(setting, tmp_path / "one", *more))
    ended = start(3, tmp_path / "three", settings(setting, tmp_path / "three", *more, "--shard"))
    assert ended.statuses == [0, 0, 0], ended.printed
    assert_same_run(tmp_path / "three", tmp_path / "one")


def test_full_fine_tuning_continues_a_checkpoint_of_one_process(setting, tmp_path):
    """With a sharded reference; what the processes save is what one process saves."""
    one, two = tmp_path / "one", tmp_path / "two"
    more = (*STEP, "--full", "--loss", "dpo", "--lr", "1e-3", "--weight-decay", "0.1")
    run(*settings(setting, one, *more))
    ended = start(2, two, settings(setting, cut(one, two), *more, "--resume", "auto", "--shard"))
    assert ended.statuses == [0, 0], ended.printed
    assert_same_run(two, one)
    states = [torch.load(out / "checkpoints" / "step-2" / "state.pt")["optimizer"] for out in (one, two)]
    torch.testing.assert_close(*(state["state"] for state in states), rtol=1e-4, atol=1e-6)
    assert states[0]["param_groups"] == states[1]["param_groups"]


def test_a_sharded_model_with_a_whole_image_encoder(images, tmp_path):
    more = ("--loss", "dpo", "--batch-size", "3", "--grad-accum", "2", "--steps", "1")
    for name, size in (("one", 1), ("two", 2)):
        command = [*arguments(images, *more), "--out", str(tmp_path / name), *["--shard"] * (size > 1)]
        ended = start(size, tmp_path / name, command)
        assert ended.statuses == [0] * size, ended.printed
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_every_process_loads_its_rows_alone(setting, tmp_path):
    whole = dict(add_lora(load_model(f"{setting}/model"), rank=4).named_parameters())

    def load():
        config = parse(TrainConfig, settings(setting, tmp_path / "run", "--shard"), "")
        with parallel.processes():
            model, _, _ = setup.load_policy(config, setup.choose_loss(config), torch.device("cpu"), torch.float32)
            for name, p in model.named_parameters():
                if "lora" in name:
                    assert not isinstance(p, DTensor)
                    continue
                assert isinstance(p, DTensor) and p.shape == whole[name].shape
                own = whole[name].chunk(2)[parallel.rank()]
                assert torch.equal(p.to_local(), own) and p.to_local().untyped_storage().nbytes() == own.nbytes

    ended = launch(2, tmp_path / "output", load)
    assert ended.statuses == [0, 0], ended.printed


def test_weights_are_restored_after_an_evaluation(setting, tmp_path):
    """Which leaves the root group gathered."""
    other = write_base(tmp_path / "model", [str(record) for record in records(24)] + WORDS * 20, "demo", 400, seed=5)

    def restore():
        config = parse(TrainConfig, settings(setting, tmp_path / "run", "--shard", "--full"), "")
        with parallel.processes():
            model, _, _ = setup.load_policy(config, setup.choose_loss(config), torch.device("cpu"), torch.float32)
            with torch.no_grad():
                model.hidden_states(collate([EncodedPair("a", [1, 2], [3], [4])]))
            load_weights(tmp_path, model)
            found = sharding.gather_tensors(model.state_dict())
            wanted = load_model(other).state_dict() if parallel.is_main() else {}
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)

    ended = launch(2, tmp_path / "output", restore)
    assert ended.statuses == [0, 0], ended.printed


def test_what_does_not_go_with_sharding(setting, tmp_path, capsys):
    assert train.main(settings(setting, tmp_path / "run", "--shard")) == 2
    assert "--shard divides a model between processes: start several with torchrun" in capsys.readouterr().err
    for other in ({"compile": True}, {"full": True, "adapter": "DIR"}):
        with pytest.raises(InputError, match=f"--shard .*{list(other)[-1]}"):
            TrainConfig(shard=True, **other).check()
    assert not any(flag.startswith("--shard") for flag in memory_flags(TrainConfig()))
    for more, message in (
        (["--grad-accum", "3"], "--shard needs a --grad-accum that is a multiple of 2"),
        (["--grad-accum", "2", "--sample-every", "1"], "--shard and --sample-every do not go together"),
    ):
        ended = start(2, tmp_path / "output", settings(setting, tmp_path / "run", "--shard", *more))
        assert ended.statuses == [2, 2] and ended.printed.count("error: ") == 1 and message in ended.printed

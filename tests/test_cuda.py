"""The loop, the decoder and the ranking on a CUDA device: the CPU's numbers, and no waiting for the device."""

# ruff: noqa: F811

import json
import warnings

import pytest
import torch

import train
from mint.config import TrainConfig
from mint.data.batch import EncodedPair
from mint.data.chat import load_tokenizer
from mint.evaluation.name_scores import rank_names
from mint.losses import load_loss
from mint.models import init_model, load_language_model
from mint.models.generate import generate
from mint.models.lora import add_lora
from mint.optim import make_optimizer
from mint.training.forward import Forward
from mint.training.setup import choose_precision
from tests.reference.weights import TINY_LLAMA
from tests.test_train import WORDS, losses, setting, settings  # noqa: F401 (a fixture)
from tests.test_train_images import arguments
from tests.test_train_images import setting as pictured  # noqa: F401 (a fixture)

pytestmark = pytest.mark.cuda
ON_CUDA = ("--device", "cuda", "--dtype", "float32", "--no-tf32")


@pytest.fixture(autouse=True)
def precise():
    """Products in float32, whatever the test before asked for."""
    choose_precision(False, torch.device("cuda"))


def start(*flags):
    assert train.main(list(flags)) == 0


@pytest.mark.parametrize("loss", ["orpo", "dpo", "fire", "rrpo"])
@pytest.mark.parametrize("compile", ["--compile", "--no-compile"])
def test_losses_are_those_of_the_cpu(setting, tmp_path, loss, compile):
    common = ("--loss", loss, "--steps", "5", "--lr", "1e-3")
    start(*settings(setting, tmp_path / "cpu", *common))
    start(*settings(setting, tmp_path / "cuda", *common, *ON_CUDA, compile))
    expected, found = losses(tmp_path / "cpu"), losses(tmp_path / "cuda")
    assert len(found) == 5 and found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("flags", [(), ("--cache-reference",), ("--full",), ("--checkpoint-activations", "selective")])
def test_bfloat16_stays_near_float32(setting, tmp_path, flags):
    common = ("--loss", "dpo", "--steps", "4", "--lr", "1e-3", *flags)
    start(*settings(setting, tmp_path / "cpu", *common))
    start(*settings(setting, tmp_path / "cuda", *common, "--device", "cuda"))
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), abs=0.02)


def test_images_are_seen(pictured):
    start(*arguments(pictured, "--loss", "orpo", "--full", "--steps", "40", "--device", "cuda"))
    last = [json.loads(line) for line in (pictured / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["rewards/accuracies"] == 1.0


def test_a_run_goes_on_from_its_checkpoint(setting, tmp_path):
    common = ("--steps", "6", "--save-every", "3", *ON_CUDA)
    start(*settings(setting, tmp_path / "whole", *common))
    start(*settings(setting, tmp_path / "parts", *common))
    for folder in (tmp_path / "parts" / "checkpoints").glob("step-*6"):
        folder.rename(tmp_path / "gone")
    assert (tmp_path / "gone").is_dir()
    start(*settings(setting, tmp_path / "parts", *common, "--resume", "auto"))
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_answers_and_ranks_are_those_of_the_cpu(setting):
    folder = setting / "model"
    tokenizer, prompts = load_tokenizer(folder), [[{"role": "user", "content": text}] for text in WORDS]
    results = []
    for device in ("cpu", "cuda"):
        model = load_language_model(folder, device=device)
        sampled = {"temperature": 0.8, "top_p": 0.8, "top_k": 10, "seed": 3}
        answers = [generate(model, tokenizer, prompts, 24, **options) for options in ({}, sampled)]
        results.append((answers, rank_names(model, tokenizer, prompts, WORDS, top=len(WORDS))))
    (expected, expected_scores), (found, scores) = results
    assert found == expected
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["orpo", "dpo", "fire"])
def test_a_step_waits_for_the_device_once(name, dtype):
    """Counted by PyTorch: for the metrics, with the norm of the gradients."""
    loss = load_loss(name, {})
    model = add_lora(init_model(TINY_LLAMA | {"head_dim": 16}, dtype=dtype), 4, 8).cuda().train()
    marks = [True] * 3
    pairs = [EncodedPair(str(i), [1, 5, 6, 7 + i], [8, 9, 2], [9 + i, 10, 2], marks, marks) for i in range(4)]
    forward = Forward(model, loss, 2, shape={"row_length": 128, "rows": 1})
    optimizer = make_optimizer(model, TrainConfig())

    def step():
        train.accumulate_gradients(forward, forward.collate(pairs), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
    assert len(waits) <= 1, waits

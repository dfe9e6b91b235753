"""``--dry-run``: its estimates against real steps, what it prints, and that it writes nothing."""

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import train
from mint.config import TrainConfig
from mint.data.image_features import ImageReader, frozen_encoder
from mint.data.preferences import write_jsonl
from mint.demo.tiny_model import write_base
from mint.models import load_model, save_model
from mint.optim import clip_gradients, make_optimizer
from mint.training import setup
from mint.training.dry_run import dry_run
from mint.training.forward import Forward

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWER |= {"image_size": 32, "patch_size": 4}
SHADES = ("dark", "grey", "bright", "white")


def records():
    for number, shade in enumerate(SHADES):
        yield {
            "id": f"image-{number}",
            "prompt": [{"role": "user", "content": "Which shade does the image have?" + " Look closely." * number}],
            "images": [f"{shade}.png"],
            "corrupted_images": ["noise.png"],
            "chosen": f"The image is <mask>{shade}</mask>.",
            "rejected": f"The image is <mask>{SHADES[number - 1]}</mask>, I think.",
        }


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A blank LLaVA and four pairs with images."""
    folder = tmp_path_factory.mktemp("dry")
    for number, shade in enumerate((*SHADES, "noise")):
        Image.new("L", (20, 16), 60 * number).save(folder / f"{shade}.png")
    write_jsonl(folder / "pairs.jsonl", records())
    write_base(folder / "model", [str(record) for record in records()] * 20, "shallow", 300, vision=TOWER)
    return folder


def settings(setting, **given):
    common = {"model": str(setting / "model"), "data": str(setting / "pairs.jsonl"), "device": "cpu"}
    return TrainConfig(**common, batch_size=2, grad_accum=2, steps=1, lora_rank=8, **given)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


class RealStep:
    """A training step on the CPU, with the optimiser's state and the image features of earlier steps."""

    def __init__(self, config):
        loss = setup.choose_loss(config)
        model, frozen, config = setup.load_policy(config, loss, torch.device("cpu"), torch.float32)
        data = setup.read_data(config, model, loss)
        images = ImageReader(data.processor, frozen_encoder(model))
        order = setup.PairOrder(len(data.pairs), config.seed)
        shape = setup.compile_and_shape(config, [model], data, order, 1)
        self.model, self.config, self.frozen = model, config, frozen
        self.pairs = [data.pairs[i] for i in order.step(0, len(data.pairs))]
        self.forward = Forward(model, loss, config.batch_size, frozen, shape, images=images)
        self.optimizer = make_optimizer(model, config)
        self()

    def __call__(self):
        train.accumulate_gradients(self.forward, self.pairs)
        clip_gradients(self.model, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def held(self):
        """Bytes between steps."""
        states = [x for state in self.optimizer.state.values() for x in state.values()]
        networks = [self.model, self.frozen] if self.frozen else [self.model]
        return sum(x.nbytes for x in itertools.chain(states, *(network.parameters() for network in networks)))

    def peak(self):
        """Bytes beyond those, as PyTorch's CPU allocator reports them to its profiler."""
        with torch.profiler.profile(profile_memory=True) as profile:
            self()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))

    def flops(self):
        """As PyTorch's counter has them; for the attention of the CPU it has no formula."""

        def attention(query, key, *_, out_shape=None, **__):
            return 2 * 2 * query[0] * query[1] * query[2] * key[2] * query[3]  # q k^T and the sum of v

        def backward(grad, query, key, *_, out_shape=None, **__):
            return 5 * 2 * query[0] * query[1] * query[2] * key[2] * query[3]  # q k^T again, and four gradients

        names = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward")
        formulas = {getattr(torch.ops.aten, name): f for name, f in zip(names, (attention, backward), strict=True)}
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            self()
        return counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("loss", ["orpo", "dpo", "fire"])
def test_the_estimate_is_that_of_a_real_step(setting, loss, full, checkpointing):
    config = settings(setting, loss=loss, full=full, checkpoint_activations=checkpointing)
    trace, real = dry_run(config), RealStep(config)
    held = real.held()
    constant = sum(trace.peak[kind] for kind in ("weights", "adapter", "reference", "optimizer state"))
    print("PEAK", loss, full, checkpointing, sum(trace.peak.values())-constant, real.peak(), constant, held, trace.flops, real.flops())

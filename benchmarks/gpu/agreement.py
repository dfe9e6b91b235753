"""The loss and the adapter's gradients of a step on the device, next to those in float32 on the CPU.

The CPU takes dense attention masks and compiles nothing; the device does what training does there. Both have the same
frozen weights, rounded to bfloat16, and the same adapter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.gpu.problems import IMAGE
from benchmarks.step_worker import BETA, BOS, EOS, fill
from mint.cli import choose_device
from mint.config import TrainConfig
from mint.data.encode import EncodedPair
from mint.data.order import PairOrder
from mint.losses import Loss
from mint.models import init_model
from mint.models.llama import CausalLM
from mint.models.lora import add_lora, lora_layers
from mint.training import setup
from mint.training.forward import Forward
from train import accumulate_gradients

PAIRS, SIDE, PATCH, RANK = 4, 56, 14, 16
LLAMA = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0, "tie_word_embeddings": False,
}  # fmt: skip
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
LLAVA = {"model_type": "llava", "text_config": LLAMA, "vision_config": CLIP, "image_token_index": IMAGE}
CASES = {"DPO": ("dpo", LLAMA), "FiRe": ("fire", LLAMA), "FiRe with images": ("fire", LLAVA)}
LIMITS = {"float32": (1e-4, 1e-3), "bfloat16": (0.05, 0.1)}  # differences of loss and gradients that are expected


def measure_agreement(cases: Sequence[str], emit: Callable[[dict], None]) -> None:
    """Emits a row for each case and dtype."""
    device, _ = choose_device("auto", "auto")
    setup.choose_precision(False, device)
    for case in cases:
        name, config = CASES[case]
        pairs = make_pairs(images=config is LLAVA)
        loss = setup.choose_loss(TrainConfig(loss=name, beta=BETA))
        base = functools.partial(make_model, config)
        expected, gradients = step(base(torch.float32), loss, pairs, plain=True)
        for dtype in (torch.float32, torch.bfloat16):
            found, own = step(base(dtype).to(device), loss, pairs)
            differences = compare(own, gradients)
            emit({
                "case": case, "device": device.type, "dtype": str(dtype).removeprefix("torch."), "loss": expected,
                "difference": abs(found - expected), **differences,
            })  # fmt: skip


def make_pairs(images: bool) -> list[EncodedPair]:
    """PAIRS random pairs with marked spans; with images, each also has a twin with a corrupted one."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(10, LLAMA["vocab_size"], (length,), generator=generator).tolist()

    pairs = []
    for number in range(PAIRS):
        chosen, rejected = [*ids(12 + number), EOS], [*ids(20 - number), EOS]
        marks = [[3 <= place < 9 for place in range(len(answer))] for answer in (chosen, rejected)]
        pair = EncodedPair(str(number), [BOS, *ids(240 + 30 * number)], chosen, rejected, *marks)
        if images:
            prompt = [BOS, *[IMAGE] * (SIDE // PATCH) ** 2, *pair.prompt[1:]]
            pair = replace(pair, prompt=prompt, images=(str(number),), image_token=IMAGE)
            pair = replace(pair, twin=replace(pair, images=(str(PAIRS + number),)))
        pairs.append(pair)
    return pairs


class Pixels:
    """Reads the images of a batch: random pixels, by the number that is the file's name."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self._all = torch.randn(2 * PAIRS, 3, SIDE, SIDE, generator=generator)

    def holds(self, files: Sequence[str]) -> bool:
        return True

    def __call__(self, files: Sequence[str]) -> dict[str, Tensor]:
        return {"pixel_values": self._all, "order": torch.tensor([int(file) for file in files])}


def make_model(config: dict, dtype: torch.dtype) -> CausalLM:
    """On the CPU, with an adapter in float32 that is not zero."""
    model = add_lora(init_model(config), RANK, 2 * RANK)
    fill(model)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.data = parameter.data.bfloat16().to(dtype)
    return model.train()


def step(model: CausalLM, loss: Loss, pairs: list[EncodedPair], plain: bool = False) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradients on the CPU). plain: with dense masks and without the compiler."""
    config = TrainConfig(batch_size=len(pairs), compile=False if plain else None)
    if plain:
        model.attention_backend = "dense"
    data = setup.Data(pairs, [], None, None)
    shape = setup.compile_and_shape(config, [model], data, PairOrder(len(pairs), 0))
    forward = Forward(model, loss, config.batch_size, None, shape, images=Pixels() if pairs[0].images else None)
    metrics, _ = accumulate_gradients(forward, forward.collate(pairs))
    return metrics["loss"], adapter_gradients(model)


def adapter_gradients(model: nn.Module) -> dict[str, Tensor]:
    """By layer and factor, in float32 on the CPU."""
    factors = {
        f"{name}.{factor}": getattr(layer, factor).weight
        for name, layer in lora_layers(model).items()
        for factor in ("lora_A", "lora_B")
    }
    return {name: weight.grad.float().cpu() for name, weight in factors.items()}


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """gradient: norm of the difference over the norm, of all gradients as one vector; worst: of the worst factor."""
    assert found.keys() == expected.keys()
    differences = {name: float((found[name] - expected[name]).norm()) for name in expected}
    norms = {name: float(gradient.norm()) for name, gradient in expected.items()}

    def length(values: dict[str, float]) -> float:
        return sum(value**2 for value in values.values()) ** 0.5

    worst = max(differences[name] / norms[name] for name in expected)
    return {"gradient": length(differences) / length(norms), "worst": worst}

"""Greedy decoding of prompts of random ids: ``mint.models.generate`` or transformers, with the same weights."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch

from benchmarks.gpu.problems import PROBLEMS
from benchmarks.step_worker import BOS, fill

PROMPTS = (1, 16)  # decoded together
Decode = Callable[[list[list[int]], int], None]


class NoText:
    """A tokenizer for ids. eos_ids: tokens that end an answer; without one, all answers are equally long."""

    def __init__(self, eos_ids: set[int] | None = None):
        self.eos_ids = eos_ids or set()

    @staticmethod
    def decode(ids: list[int]) -> str:
        return " ".join(map(str, ids))


def measure_decoding(problem: str, side: str, length: int, emit: Callable[[dict], None]) -> None:
    """Emits a row for each number of prompts: tokens per second, the prompts included in the time.

    length: tokens of a prompt, and of an answer. side: ``ours`` or ``transformers``. The first call, which compiles, is
    not measured; neither side ends an answer early.
    """
    cuda = torch.cuda.is_available()
    vocabulary = PROBLEMS[problem].config["vocab_size"]
    for setting, decode in {"ours": our_decoders, "transformers": peer_decoders}[side](problem, cuda):
        for count in PROMPTS:
            row = {"problem": problem, "side": side, "setting": setting, "prompts": count}
            prompts = random_prompts(count, length, vocabulary)
            decode(prompts, length)
            _synchronize(cuda)
            started = time.perf_counter()
            decode(prompts, length)
            _synchronize(cuda)
            emit(row | {"tokens": count * length, "seconds": time.perf_counter() - started})


def random_prompts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    """``count`` prompts of ``length`` random ids."""
    draw = random.Random(count)
    return [[BOS, *(draw.randrange(3, vocabulary) for _ in range(length - 1))] for _ in range(count)]


def our_decoders(problem: str, cuda: bool) -> list[tuple[str, Decode]]:
    """The one of this project, without and with an adapter, which stays beside weights in bfloat16."""
    from mint.models import init_model
    from mint.models.generate import generate
    from mint.models.lora import add_lora, settle_lora

    dtype, device = (torch.bfloat16, "cuda") if cuda else (torch.float32, "cpu")
    rank = PROBLEMS[problem].rank

    def decoder(adapted: bool) -> Decode:
        model = init_model(PROBLEMS[problem].config, dtype=dtype, device=device)
        if adapted:
            add_lora(model, rank, 2 * rank)
        fill(model)
        settle_lora(model)
        return lambda prompts, length: generate(model, NoText(), prompts, length)

    recorded = "recorded" if cuda else ""
    return [(recorded, decoder(False)), (f"{recorded} adapter r = {rank}".strip(), decoder(True))]


def peer_decoders(problem: str, cuda: bool) -> list[tuple[str, Decode]]:
    """transformers' own with a growing cache, and on CUDA with the static one, whose step it compiles."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    dtype, device = (torch.bfloat16, "cuda") if cuda else (torch.float32, "cpu")
    settings = {name: value for name, value in PROBLEMS[problem].config.items() if name != "model_type"}
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**settings | {"eos_token_id": None}), dtype=dtype).eval()
    fill(model)

    def decoder(**options) -> Decode:
        def decode(prompts: list[list[int]], length: int) -> None:
            tokens = torch.tensor(prompts, device=device)
            written = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=length, do_sample=False, pad_token_id=0,
                **options,
            )  # fmt: skip
            assert written.shape[1] == tokens.shape[1] + length

        return decode

    static = [("static cache", decoder(cache_implementation="static"))] if cuda else []
    return [*static, ("", decoder())]


def _synchronize(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()

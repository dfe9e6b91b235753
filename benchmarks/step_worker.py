"""One variant of the step-time benchmark in a process of its own: ours, or TRL + PEFT, on the same problem.

``step_time.py`` starts it, with the interpreter that has the packages the variant needs, and reads the JSON line it
prints. Only the functions called ``ours`` and ``trl`` import the code they measure.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import resource
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "reference")]

import torch  # noqa: E402

BOS, EOS = 1, 2
PROMPT, CHOSEN, REJECTED = 360, 150, 200  # tokens on average: a note, a list of 10 diseases, a list of 15
BETA, LEARNING_RATE, CLIP = 0.1, 5e-5, 1.0


@dataclass(frozen=True)
class Variant:
    """The settings of one measurement, from the command line."""

    side: str
    objective: str
    rank: int
    vocab: int
    layers: int
    kv_heads: int
    dtype: str
    compile: bool
    checkpoint: bool
    cache_reference: bool
    model: str
    pairs: int
    warmup: int
    repeats: int
    threads: int

    def model_config(self) -> dict:
        """The content of ``config.json``: that of a directory, or of a small Llama."""
        if self.model:
            return json.loads((Path(self.model) / "config.json").read_text(encoding="utf-8"))
        return {
            "model_type": "llama", "vocab_size": self.vocab, "hidden_size": 512, "intermediate_size": 1376,
            "num_hidden_layers": self.layers, "num_attention_heads": 8, "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": False, "bos_token_id": BOS, "eos_token_id": EOS,
        }  # fmt: skip


def make_pairs(vocab: int, count: int) -> list[dict[str, list[int]]]:
    """``count`` random pairs whose lengths lie within 10 % of the averages above; the same in every process."""
    draw = random.Random(0)
    means = (PROMPT, CHOSEN, REJECTED)
    return [random_pair(draw, vocab, means, lambda mean: round(mean * draw.uniform(0.9, 1.1))) for _ in range(count)]


def random_pair(
    draw: random.Random, vocab: int, means: tuple[int, int, int], length: Callable[[int], int]
) -> dict[str, list[int]]:
    """Random ids of a prompt, a chosen and a rejected answer; length: of a part, from the mean of all pairs."""

    def ids(mean: int) -> list[int]:
        return [draw.randrange(3, vocab) for _ in range(length(mean) - 1)]

    prompt, chosen, rejected = means
    return {"prompt": [BOS, *ids(prompt)], "chosen": [*ids(chosen), EOS], "rejected": [*ids(rejected), EOS]}


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Gives everything but norms and biases normal weights that depend on its name alone, LoRA's A and B included.

    They are drawn on the parameter's device; each kind of device draws others. The names are the checkpoint's on both
    sides once PEFT's wrapper and adapter name are taken off.
    """
    for name, parameter in model.named_parameters():
        name = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.", ".")
        if parameter.dim() > 1 or name.endswith("class_embedding"):
            generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
            drawn = torch.randn(parameter.shape, generator=generator, device=parameter.device)
            parameter.copy_(drawn.mul_(0.02))


def resident_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Clock:
    """Wall and processor seconds of steps after ``warmup``; each step waits for a line on standard input."""

    def __init__(self, warmup: int):
        self.warmup, self.wall, self.cpu = warmup, [], []

    def start(self) -> None:
        print("ready", flush=True)
        sys.stdin.readline()
        self.at = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.wall.append(time.perf_counter() - self.at[0])
        self.cpu.append(time.process_time() - self.at[1])

    def result(self) -> dict[str, list[float]]:
        return {"seconds": self.wall[self.warmup :], "cpu_seconds": self.cpu[self.warmup :]}


def ours(variant: Variant, clock: Clock, before_model: Callable[[], None]) -> tuple[float, int]:
    """Times this project's step: batch, loss, backward, clip, AdamW, as ``train.py`` does it."""
    from mint.config import TrainConfig
    from mint.data.batch import EncodedPair, make_batches
    from mint.data.order import PairOrder, batch_shape
    from mint.losses import load_loss
    from mint.models import init_model
    from mint.models.attention import SPLIT_FROM
    from mint.models.lora import add_lora
    from mint.objective import preference_loss, reference_values
    from mint.optim import clip_gradients, make_optimizer

    settings, count = variant.model_config(), variant.pairs
    pairs = [EncodedPair(str(i), **pair) for i, pair in enumerate(make_pairs(settings["vocab_size"], count))]
    whole_sequence = variant.objective == "orpo"
    before_model()
    model = init_model(settings).to(getattr(torch, variant.dtype))
    add_lora(model, rank=variant.rank, alpha=2 * variant.rank)
    fill(model)
    model.train()
    model.gradient_checkpointing = variant.checkpoint
    if variant.compile:
        model.compile_blocks()
    config = TrainConfig(lr=LEARNING_RATE, max_grad_norm=CLIP, batch_size=count)
    shape = batch_shape(pairs, PairOrder(count, 0), count, variant.compile, SPLIT_FROM)
    optimizer, loss = make_optimizer(model, config), load_loss(variant.objective, {"beta": BETA})
    make = functools.partial(make_batches, pairs, count, **shape, prompt_targets=whole_sequence)
    cached = reference_values(model, *make(), loss.needs) if variant.cache_reference else None
    first = None
    for _ in range(variant.warmup + variant.repeats):
        clock.start()
        (batch,) = make()
        output = preference_loss(model, replace(batch, reference=cached), loss)
        output.loss.backward()
        clip_gradients(model, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.stop()
        first = float(output.loss.detach()) if first is None else first
    return first, sum(p.numel() for p in model.parameters() if p.requires_grad)


def trl(variant: Variant, clock: Clock, before_model: Callable[[], None]) -> tuple[float, int]:
    """Times ``Trainer.train`` of TRL's ORPOTrainer or DPOTrainer, from its step-begin to its step-end callback."""
    settings = variant.model_config()
    more = {"precompute_ref_log_probs": True} if variant.cache_reference else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(
            variant.objective, settings, make_pairs(settings["vocab_size"], variant.pairs), variant.rank,
            variant.dtype, clock, before_model, output_dir=folder, gradient_checkpointing=variant.checkpoint,
            torch_compile=variant.compile, per_device_train_batch_size=variant.pairs, max_grad_norm=CLIP,
            max_steps=variant.warmup + variant.repeats, **more,
        )  # fmt: skip
        first = trl_loss(trainer, variant.pairs)
        trainer.train()
    return first, sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


def trl_trainer(
    objective: str,
    config: dict,
    pairs: list[dict[str, list[int]]],
    rank: int,
    dtype: str,
    clock: object,
    before_model: Callable[[], None] = lambda: None,
    device: str = "cpu",
    attention: str | None = None,
    **arguments,
):
    """TRL's ORPOTrainer or DPOTrainer over ``pairs``, on a Llama of ``config`` with the weights of :func:`fill`.

    attention: transformers' name of the implementation. arguments: of TRL's configuration.
    """
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, LlamaConfig
    from trl import DPOConfig, DPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    from word_tokenizer import as_text, word_tokenizer

    disable_progress_bars()
    classes = {"orpo": (ORPOTrainer, ORPOConfig), "dpo": (DPOTrainer, DPOConfig)}
    trainer_class, config_class = classes[objective]
    settings = config_class(
        use_cpu=device == "cpu", dataloader_pin_memory=device != "cpu", bf16=dtype == "bfloat16", report_to="none",
        disable_tqdm=True, beta=BETA, save_strategy="no", logging_steps=10_000, learning_rate=LEARNING_RATE,
        **arguments,
    )  # fmt: skip
    tokenizer = word_tokenizer(config["vocab_size"])
    rows = Dataset.from_list(as_text(pairs))
    before_model()
    kept = LlamaConfig(**{name: value for name, value in config.items() if name != "model_type"})
    with torch.device(device):  # a dtype given here leaves the rotary frequencies in float32
        model = AutoModelForCausalLM.from_config(kept, dtype=getattr(torch, dtype), attn_implementation=attention)
    fill(model)  # the trainer may compute the reference at once
    adapter = LoraConfig(
        task_type="CAUSAL_LM", target_modules="all-linear", r=rank, lora_alpha=2 * rank, lora_dropout=0.0
    )
    trainer = trainer_class(
        model=model, args=settings, train_dataset=rows, processing_class=tokenizer, peft_config=adapter,
        callbacks=[stopwatch(clock)],
    )  # fmt: skip
    fill(trainer.model)
    trainer.model.train()
    return trainer


@torch.no_grad()
def trl_loss(trainer, count: int) -> float:
    """The loss of the first ``count`` pairs."""
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(count)]))
    with trainer.compute_loss_context_manager():
        return float(trainer.compute_loss(trainer.model, batch))


def stopwatch(clock: Clock) -> object:
    """A callback for transformers' Trainer that times its steps."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            clock.start()

        def on_step_end(self, *_, **__):
            clock.stop()

    return Stopwatch()


def report(kind: type, sides: dict[str, Callable]) -> None:
    """Measures the variant given as a JSON object on the command line, and prints the results as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", help=f"the fields of {kind.__name__} as a JSON object")
    variant = kind(**json.loads(parser.parse_args().variant))
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(variant.threads)
    clock, resident = Clock(variant.warmup), []
    loss, trainable = sides[variant.side](variant, clock, lambda: resident.append(resident_mib()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    memory = {"peak_mib": peak, "peak_over_start_mib": peak - resident[0]}
    print(json.dumps({"loss": loss, "trainable": trainable, "torch": torch.__version__, **clock.result(), **memory}))


if __name__ == "__main__":
    report(Variant, {"ours": ours, "trl": trl})

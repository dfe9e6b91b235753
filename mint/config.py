"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from mint.errors import InputError
from mint.flags import Setting, flag_of, option
from mint.ranges import Range, check_number, shown


@dataclass
class TrainConfig:
    """Settings of ``train.py``; the resolved form is saved as ``config.toml`` in the run directory."""

    demo: str | None = option(
        "data",
        None,
        "demo with its own model and data, for runs without --model (default: disease, or radiograph for losses "
        "that use corrupted images)",
        choices=("disease", "tissue", "radiograph"),
    )
    data: str | None = option(
        "data", None, "preference pairs: .jsonl, .jsonl.gz, .parquet, or OWNER/NAME[:SPLIT] of the hub", None, "FILE|ID"
    )
    eval_data: str | None = option("data", None, "held-out pairs to evaluate on, in the same format", metavar="FILE")
    stream: bool = option("data", False, "start at once on a file of any size: encode pairs when their step comes")
    max_length: int = option("data", 2048, "token limit of prompt + longer answer", metavar="N")
    images_anywhere: bool = option("data", False, "allow images outside the folder of the preference file")
    max_pixels: int | None = option("data", None, "most pixels of an image after resizing (Qwen-VL)", metavar="N")
    overlength: str = option("data", "drop", "what to do with longer pairs", ("drop", "error", "truncate-prompt"))
    spans: str = option(
        "data", "tags", "words that carry the reward: in <mask> tags, or where the answers differ", ("tags", "changes")
    )
    chat_date: str = option("data", "26 Jul 2024", "today's date, for chat templates that print it", metavar="DATE")
    model: str | None = option(
        "model", None, "model directory or hub id (default: the model of the demo)", None, "DIR|ID"
    )
    lora_rank: int | None = option("adapter", None, "rank r (default 16, or that of --adapter)", metavar="N")
    lora_alpha: float | None = option(
        "adapter", None, "alpha; the update is scaled by alpha / r (default 32, or that of --adapter)", metavar="X"
    )
    lora_dropout: float | None = option(
        "adapter", None, "dropout on the adapter's input (default 0, or that of --adapter)", metavar="X"
    )
    lora_targets: str | None = option(
        "adapter",
        None,
        "comma-separated names of layers or modules (default all-linear: every linear layer of the decoder)",
        metavar="NAMES",
    )
    rslora: bool | None = option("adapter", None, "scale by alpha / sqrt(r) (default: no, or as --adapter does)")
    full: bool = option("adapter", False, "train all weights instead of an adapter")
    adapter: str | None = option(
        "adapter", None, "PEFT adapter to continue from; it becomes part of the reference model", metavar="DIR"
    )
    loss: str = option("loss", "orpo", "a name of this list, or FILE.py:FUNCTION", metavar="NAME")
    loss_args: dict[str, Setting] = option("loss", {}, "any setting of the loss; repeatable", metavar="NAME=VALUE")
    nll_over: str = option("loss", "response", "tokens of the NLL term (orpo, sft)", choices=("response", "sequence"))
    beta: float | None = option("loss", None, "see the list", metavar="X")
    alpha: float | None = option("loss", None, "see the list", metavar="X")
    gamma: float | None = option("loss", None, "see the list", metavar="X")
    lam: float | None = option("loss", None, "lambda; see the list", metavar="X")
    label_smoothing: float | None = option("loss", None, "assumed share of flipped labels", metavar="X")
    kind: str | None = option("loss", None, "form of DPO: sigmoid, ipo or hinge", metavar="NAME")
    visual: str | None = option("loss", None, "visual term of FiRe-MPO: flip, v1 or v2", metavar="NAME")
    steps: int | None = option("optimisation", None, "optimiser steps (default: from --epochs)", metavar="N")
    epochs: float = option("optimisation", 1.0, "passes over the data, without --steps", metavar="N")
    batch_size: int = option("optimisation", 4, "pairs per forward pass (compiled: about)", metavar="N")
    grad_accum: int = option("optimisation", 1, "forward passes per optimiser step", metavar="N")
    lr: float = option("optimisation", 5e-5, "peak learning rate", metavar="X")
    warmup: float = option("optimisation", 0.1, "linear warm-up: steps, or below 1 a share of all steps", metavar="X")
    schedule: str = option("optimisation", "cosine", "after warm-up", choices=("cosine", "linear", "constant"))
    weight_decay: float = option("optimisation", 0.0, "weight decay of AdamW, on matrices only", metavar="X")
    adam_beta2: float = option("optimisation", 0.999, "second-moment decay of AdamW", metavar="X")
    max_grad_norm: float = option("optimisation", 1.0, "gradient clipping; 0: none", metavar="X")
    seed: int = option("optimisation", 0, "seed of order, initialisation and dropout", metavar="N")
    quantize: str | None = option(
        "model",
        None,
        "store the frozen weights of the decoder's linear layers, and with them the reference, in fewer bits (needs "
        "torchao)",
        choices=("int8", "nf4"),
    )
    image_features: str | None = option("hardware", None, "cache frozen vision features here", metavar="DIR")
    device: str = option("hardware", "auto", "where to compute", choices=("auto", "cpu", "cuda"))
    dtype: str = option("hardware", "auto", "auto: bfloat16 on CUDA, else float32", ("auto", "float32", "bfloat16"))
    compile: bool | None = option("hardware", None, "torch.compile the decoder block (default: on CUDA)")
    shard: bool = option("hardware", False, "divide the weights between the processes of torchrun (FSDP2)")
    checkpoint_activations: bool | str = option(
        "hardware",
        False,
        "recompute activations in the backward pass: less memory; selective: all but products and attention, which "
        "takes less time",
        choices=("selective",),
    )
    tf32: bool = option("hardware", True, "float32 products in TF32 on CUDA: faster, with 10 bits of precision")
    cache_reference: bool = option(
        "hardware", False, "compute the reference once, before training, and keep it in the run folder (DPO, FiRe, ...)"
    )
    out: str | None = option("output", None, "run directory (default: runs/LOSS, numbered)", metavar="DIR")
    eval_every: int = option("output", 0, "steps between evaluations; 0: before and after training", metavar="N")
    best: str | None = option(
        "output",
        None,
        "evaluation metric that selects the saved result, as eval/loss or eval/rewards/accuracies (default: the last "
        "step is saved)",
        metavar="METRIC",
    )
    patience: int | None = option(
        "output", None, "stop after N evaluations without a better --best (default: never)", metavar="N"
    )
    sample_every: int = option("output", 0, "steps between sample answers in samples.jsonl; 0: none", metavar="N")
    save_every: int = option("output", 0, "steps between checkpoints; 0: at the end only", metavar="N")
    keep: int = option("output", 2, "checkpoints to keep", metavar="N")
    resume: str | None = option(
        "output",
        None,
        "checkpoint to continue from, or auto: the newest in --out; more --steps extend a run",
        metavar="auto|DIR",
    )
    dry_run: bool = option(
        "output", False, "read everything, then print sizes, packing, memory and FLOPs per step instead of training"
    )
    track: str | None = option("output", None, "also log to this tracker", choices=("tensorboard", "trackio", "wandb"))

    LORA_DEFAULTS: ClassVar[dict] = {
        "lora_rank": 16,
        "lora_alpha": 32.0,
        "lora_dropout": 0.0,
        "lora_targets": "all-linear",
        "rslora": False,
    }
    LOSS_OPTIONS: ClassVar[tuple[str, ...]] = (*("beta", "alpha", "gamma", "lam", "label_smoothing", "kind", "visual"),)

    LEAST: ClassVar[dict[str, float]] = {
        **dict.fromkeys(("steps", "batch_size", "grad_accum", "keep", "patience"), 1),
        **dict.fromkeys(("lr", "warmup", "weight_decay", "max_grad_norm"), 0),
        **dict.fromkeys(("eval_every", "save_every", "sample_every"), 0),
        "max_length": 2,
        **dict.fromkeys(("lora_rank", "max_pixels"), 1),
        **dict.fromkeys(("lora_alpha", "lora_dropout", "adam_beta2"), 0),
    }
    MOST: ClassVar[dict[str, float]] = {
        **dict.fromkeys(("steps", "eval_every", "save_every", "sample_every", "keep", "patience"), 1_000_000_000),
        **dict.fromkeys(("batch_size", "grad_accum", "lora_rank", "epochs"), 1_000_000),
        **dict.fromkeys(("max_length", "warmup", "max_pixels"), 1_000_000_000),
        **dict.fromkeys(("lr", "weight_decay"), 1_000),
        **dict.fromkeys(("max_grad_norm", "lora_alpha"), 1e9),
        **dict.fromkeys(("beta", "alpha", "gamma", "lam"), 1e6),
        **dict.fromkeys(("lora_dropout", "adam_beta2", "label_smoothing"), 1),
    }

    def loss_options(self) -> dict[str, Setting]:
        """The settings of the loss that were given. Raises InputError for one given twice, or of another type."""
        for name, value in self.loss_args.items():
            if not isinstance(value, (bool, int, float, str)):
                raise InputError(f"{name} of the loss must be a number, a boolean or a string, not {shown(value)}")
            if name == "name":
                raise InputError("a setting of a loss cannot be called name, which stands for the loss in a TOML file")
            if not isinstance(value, str):
                check_number(f"{name} of the loss", value + 0, Range(-1e12, 1e12, whole=False))
        flags = {name: value for name in self.LOSS_OPTIONS if (value := getattr(self, name)) is not None}
        for name in flags:
            if name in self.loss_args:
                other = f"--loss-arg {name}={self.loss_args[name]}"
                raise InputError(f"{flag_of(name)} {flags[name]} and {other} set the same: leave one out")
        return {**flags, **self.loss_args}

    def total_steps(self, pairs: int) -> int:
        """Optimiser steps of a run on so many pairs."""
        return self.steps or math.ceil(self.epochs * pairs / (self.batch_size * self.grad_accum))

    def check(self) -> None:
        """Raises InputError for values out of range, and for settings that contradict each other."""
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{flag_of(name)} must be a finite number, not {value}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed must be in [0, 2^63), not {shown(self.seed)}")
        for name, least in self.LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise InputError(f"{flag_of(name)} must be at least {least}, not {shown(value)}")
        for name, most in self.MOST.items():
            if (value := getattr(self, name)) is not None and value > most:
                raise InputError(f"{flag_of(name)} must be at most {most:g}, not {shown(value)}")
        if 1 in (self.adam_beta2, self.lora_dropout):
            raise InputError("--adam-beta2 and --lora-dropout must be below 1")
        if self.epochs <= 0:
            raise InputError(f"--epochs must be positive, not {self.epochs}")
        if self.full and self.dtype == "bfloat16" and self.adapter:
            raise InputError("--full with --adapter merges the adapter into the weights: use --dtype float32 or auto")
        if self.quantize and self.full:
            raise InputError("--quantize is for frozen weights below an adapter: leave out --quantize or --full")
        if self.quantize and self.dry_run:
            raise InputError("--dry-run does not know the size of quantised weights: leave out --quantize")
        if self.shard and self.dry_run:
            raise InputError("--dry-run estimates the memory of a process with the whole model: leave out --shard")
        if self.shard and self.full and self.adapter:
            raise InputError("--shard --full does not merge --adapter: merge it first, with python -m mint.merge")
        if self.shard and self.compile:
            raise InputError("--shard and --compile do not go together: leave one out")
        if self.shard and (self.quantize or self.cache_reference):
            raise InputError("--shard does not go together with --quantize or --cache-reference: leave one out")
        if self.max_pixels is not None and self.model is None:
            raise InputError("--max-pixels needs --model: the demos resize every image to one size")
        if self.stream and self.overlength == "error":
            raise InputError(
                "--overlength error reads all pairs before the first step, --stream does not: leave one out"
            )
        if self.stream and self.cache_reference:
            raise InputError(
                "--cache-reference reads all pairs before the first step, --stream does not: leave one out"
            )
        if self.resume == "auto" and not self.out:
            raise InputError("--resume auto continues the run in --out: name it")
        if (self.model is None) != (self.data is None):
            missing = "--model" if self.model is None else "--data"
            raise InputError(f"{missing} is missing: give both, or neither to run a demo")
        if self.dry_run and self.model is None:
            raise InputError("--dry-run describes a run on your model and data: give --model and --data")
        if self.patience is not None and self.best is None:
            raise InputError("--patience needs --best, the metric that has to improve")
        if self.best is not None and (not self.eval_every or self.model and not self.eval_data):
            raise InputError("--best compares evaluations during training: give --eval-data and --eval-every")

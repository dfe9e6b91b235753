"""Settings of a command: one dataclass, filled from its defaults, a TOML file and the command line, in that order.

A field is declared once, with :func:`option`; the flag, its help and the check of the TOML file follow from it.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mint.cli import Parser
from mint.errors import InputError
from mint.losses import Setting, loss_names


def option(default, help: str, choices: Sequence[str] | None = None, metavar: str | None = None):
    """A dataclass field that is also a flag; a dictionary is filled by a flag that may be repeated."""
    metadata = {"help": help, "choices": choices, "metavar": metavar}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class TrainConfig:
    """Settings of ``train.py``; the resolved form is saved as ``config.toml`` in the run directory."""

    loss: str = option("orpo", f"{', '.join(loss_names())}, or FILE.py:FUNCTION")
    loss_args: dict[str, Setting] = option({}, "a setting of the loss, as tau=2; repeatable", metavar="NAME=VALUE")
    demo: str | None = option(
        None,
        "embedded default, where no --model is given (default: disease, or radiograph for losses that contrast images)",
        choices=("disease", "tissue", "radiograph"),
    )
    model: str | None = option(
        None, "model directory or hub id; without it the embedded default runs", metavar="DIR|ID"
    )
    data: str | None = option(None, "preference pairs, JSON Lines (.jsonl, .jsonl.gz, .parquet)", metavar="FILE")
    eval_data: str | None = option(None, "pairs to evaluate on, in the same form", metavar="FILE")
    out: str | None = option(None, "run directory (default runs/LOSS, numbered)", metavar="DIR")
    steps: int | None = option(None, "optimiser steps (default: from --epochs)")
    epochs: float = option(1.0, "passes over the data, where --steps is not given")
    batch_size: int = option(4, "pairs per forward pass")
    grad_accum: int = option(1, "forward passes per optimiser step")
    lr: float = option(5e-5, "peak learning rate")
    warmup: float = option(0.1, "steps of linear warm-up, or a share of all steps if below 1")
    schedule: str = option(
        "cosine", "after the warm-up: to zero, or constant", choices=("cosine", "linear", "constant")
    )
    weight_decay: float = option(0.0, "AdamW's decay, on matrices only")
    adam_beta2: float = option(0.999, "AdamW's second-moment decay")
    max_grad_norm: float = option(1.0, "gradient clipping (0: none)")
    lora_rank: int | None = option(None, "adapter rank r (default 16, or that of --adapter)")
    lora_alpha: float | None = option(
        None, "adapter alpha; the update is scaled by alpha / r (default 32, or that of --adapter)"
    )
    lora_dropout: float | None = option(None, "dropout on the adapter's input (default 0, or that of --adapter)")
    lora_targets: str | None = option(
        None, "all-linear (the decoder's, the default), or comma-separated layer or module names; --adapter has its own"
    )
    rslora: bool | None = option(None, "scale by alpha / sqrt(r) (default: no, or as --adapter does)")
    full: bool = option(False, "train all weights, without an adapter")
    adapter: str | None = option(None, "PEFT adapter to continue from; it becomes part of the reference", metavar="DIR")
    max_length: int = option(2048, "limit of prompt + longer answer in tokens (also the model's own)")
    images_anywhere: bool = option(False, "let the records name images outside the folder of their file")
    max_pixels: int | None = option(None, "most pixels of an image after resizing (Qwen-VL)", metavar="N")
    image_features: str | None = option(None, "cache frozen vision features here", metavar="DIR")
    overlength: str = option("drop", "what to do with longer pairs", choices=("drop", "error", "truncate-prompt"))
    spans: str = option(
        "tags", "words that carry the reward: <mask> tags, or where two answers differ", ("tags", "changes")
    )
    nll_over: str = option("response", "tokens the NLL runs over (orpo, sft)", choices=("response", "sequence"))
    beta: float | None = option(None, "beta of the loss (default: the loss's own)")
    alpha: float | None = option(None, "alpha of the loss")
    gamma: float | None = option(None, "gamma of the loss")
    lam: float | None = option(None, "lambda of the loss")
    label_smoothing: float | None = option(None, "share of labels taken to be flipped (dpo)")
    kind: str | None = option(None, "form of dpo: sigmoid, ipo, hinge")
    visual: str | None = option(None, "pair that fire contrasts under the corrupted image: flip, chosen, rejected")
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    dtype: str = option("auto", "auto: bfloat16 on CUDA, else float32", choices=("auto", "float32", "bfloat16"))
    compile: bool | None = option(None, "torch.compile of the decoder block (default: on CUDA)")
    checkpoint_activations: bool = option(False, "recompute activations in the backward pass to save memory")
    seed: int = option(0, "seed of order, initialisation and dropout")
    eval_every: int = option(0, "steps between evaluations (0: before and after training)")
    save_every: int = option(0, "steps between checkpoints (0: at the end only)")
    keep: int = option(2, "checkpoints to keep")
    resume: str | None = option(
        None, "checkpoint to continue from, or auto: the newest of --out; more --steps extend a run", metavar="auto|DIR"
    )
    chat_date: str = option("26 Jul 2024", "today's date in chat templates that print one")

    LORA_DEFAULTS: typing.ClassVar[dict] = {
        "lora_rank": 16,
        "lora_alpha": 32.0,
        "lora_dropout": 0.0,
        "lora_targets": "all-linear",
        "rslora": False,
    }
    LOSS_OPTIONS: typing.ClassVar[tuple[str, ...]] = (
        "beta",
        "alpha",
        "gamma",
        "lam",
        "label_smoothing",
        "kind",
        "visual",
    )

    def loss_options(self) -> dict[str, Setting]:
        """The settings of the loss that were given. Raises InputError for one given twice, or of another type."""
        for name, value in self.loss_args.items():
            if not isinstance(value, (bool, int, float, str)):
                raise InputError(f"{name} of the loss must be a number, a boolean or a string, not {value!r}")
            if name == "name":
                raise InputError("a setting of a loss cannot be called name, which stands for the loss in a TOML file")
        flags = {name: value for name in self.LOSS_OPTIONS if (value := getattr(self, name)) is not None}
        for name in flags:
            if name in self.loss_args:
                flag = f"--{name.replace('_', '-')} {flags[name]}"
                raise InputError(f"{flag} and --loss-arg {name}={self.loss_args[name]} set the same: leave one out")
        return {**flags, **self.loss_args}

    def check(self) -> None:
        """Raises InputError for values out of range."""
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"--{name.replace('_', '-')} must be a finite number, not {value}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed must be in [0, 2^63), not {self.seed}")
        for name, least in (("batch_size", 1), ("grad_accum", 1), ("keep", 1), ("max_length", 2), ("lr", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")
        if self.steps is not None and self.steps < 1 or self.epochs <= 0:
            raise InputError("--steps and --epochs must be positive")
        if min(self.warmup, self.weight_decay, self.max_grad_norm, self.save_every, self.eval_every) < 0:
            raise InputError("--warmup, --weight-decay, --max-grad-norm, --save-every and --eval-every are >= 0")
        if self.full and self.dtype == "bfloat16" and self.adapter:
            raise InputError("--full with --adapter merges the adapter into the weights: use --dtype float32 or auto")
        if self.max_pixels is not None and self.model is None:
            raise InputError("--max-pixels goes with --model: no embedded default keeps the size of an image")
        if self.resume == "auto" and not self.out:
            raise InputError("--resume auto continues the run in --out: name it")
        if (self.model is None) != (self.data is None):
            missing = "--model" if self.model is None else "--data"
            raise InputError(f"{missing} is missing: give both, or neither for the embedded default")


def parse(config_class: type, argv: Sequence[str] | None, description: str):
    """An instance of ``config_class`` from flags and, with ``--config FILE``, a TOML file; flags win.

    Raises InputError for a file that cannot be read, keys that are no setting and values of the wrong type.
    """
    parser = Parser(description=description)
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of these settings")
    kinds = {name: _kind(hint) for name, hint in typing.get_type_hints(config_class).items() if name.islower()}
    for field in dataclasses.fields(config_class):
        flag, kind = f"--{field.name.replace('_', '-')}", kinds[field.name]
        extra = (
            {"action": argparse.BooleanOptionalAction}
            if kind is bool
            else {"type": kind, "choices": field.metadata["choices"], "metavar": field.metadata["metavar"]}
        )
        if kind is dict:
            flag, extra = flag.removesuffix("s"), {"action": "append", "metavar": field.metadata["metavar"]}
        text = field.metadata["help"]
        if field.default is not None and kind not in (bool, dict):
            text += f" (default {field.default})"
        parser.add_argument(flag, dest=field.name, default=argparse.SUPPRESS, help=text, **extra)
    given = vars(parser.parse_args(argv))
    path = given.pop("config", None)
    values = _read_toml(path, config_class, kinds) if path else {}
    for name in [name for name in given if kinds[name] is dict]:
        given[name] = values.get(name, {}) | _assignments(f"--{name.removesuffix('s').replace('_', '-')}", given[name])
    config = config_class(**{**values, **given})
    config.check()
    return config


def _assignments(flag: str, texts: Sequence[str]) -> dict:
    """{name: value} from NAME=VALUE: a number, true or false, or else a string. Raises InputError for another form."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"{flag} takes NAME=VALUE, as tau=2, not {text!r}")
        if name in values:
            raise InputError(f"{flag} {name} is given twice")
        try:
            values[name] = value == "true" if value in ("true", "false") else ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[name] = value
    return values


def _kind(hint) -> type:
    """The plain type of an annotation such as ``int | None``."""
    if isinstance(hint, types.UnionType):
        return next(part for part in hint.__args__ if part is not types.NoneType)
    return typing.get_origin(hint) or hint


def _read_toml(path: str, config_class: type, kinds: dict[str, type]) -> dict:
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"--config {path} cannot be read: {error}") from None
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    if isinstance(values.get("loss"), dict):  # a table: the loss's name, and its settings
        settings = values.pop("loss")
        values |= {"loss": settings.pop("name")} if "name" in settings else {}
        values["loss_args"] = settings
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{path}: {name!r} is not a setting; see --help for the names")
        if kinds[name] is float and type(value) is int:
            values[name] = value = float(value)
        choices = fields[name].metadata["choices"]
        if type(value) is not kinds[name] or (choices and value not in choices):
            wanted = f"one of {', '.join(choices)}" if choices else f"a {kinds[name].__name__}"
            raise InputError(f"{path}: {name} must be {wanted}, not {value!r}")
    return values


def to_toml(config) -> str:
    """The settings as TOML, one line each; settings that are None are left out. A loss with settings is a table."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values = {name: value for name, value in values.items() if value is not None}
    settings = values.pop("loss_args", {})
    if settings:
        values["loss"] = {"name": values["loss"], **settings}
    return "".join(f"{name} = {_toml_value(value)}\n" for name, value in values.items())


def _toml_value(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'
    if isinstance(value, dict):
        keys = {name: name if name.isascii() else _toml_value(name) for name in value}  # identifiers
        return "{" + ", ".join(f"{keys[name]} = {_toml_value(item)}" for name, item in value.items()) + "}"
    return repr(value)

"""The files of a PEFT adapter: ``adapter_config.json`` and ``adapter_model.safetensors``, read and written.

Factors are a dictionary {layer name: {"lora_A": [r, in], "lora_B": [out, r]}}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mint.errors import InputError
from mint.files import file_aside, read_json, write_aside
from mint.ranges import SHARE, Range, check_number, check_numbers, shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's wrapper around the network
RANK, ALPHA = Range(1, 1_000_000), Range(0, 1e9, whole=False)
NUMBERS = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": SHARE}
Factors = dict[str, dict[str, Tensor]]
# What every adapter written here has in common. peft_version: the first PEFT with this field, and this layout.
WRITTEN = {
    "peft_type": "LORA",
    "peft_version": "0.18.0",
    "task_type": "CAUSAL_LM",
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "inference_mode": True,
    "init_lora_weights": True,
}
# Settings of adapter_config.json that change LoRA's formula.
BEYOND_PLAIN_LORA = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
)


def write_adapter(folder: str | Path, settings: dict, factors: Factors) -> None:
    """Writes both files as PEFT does, each atomically. settings: those that are not in ``WRITTEN``."""
    folder = Path(folder)
    tensors = {
        f"{PREFIX}{name}.{factor}.weight": tensor.detach().cpu().contiguous()
        for name, pair in factors.items()
        for factor, tensor in pair.items()
    }
    with file_aside(folder / WEIGHTS) as aside:
        save_file(tensors, aside, metadata={"format": "pt"})
    write_aside(folder / CONFIG, json.dumps({**WRITTEN, **settings}, indent=2) + "\n")


def read_adapter_config(folder: Path, rename: Callable[[str], str] = str) -> dict:
    """``adapter_config.json``; ``rename`` gives the present names of layers, also in target_modules and the patterns.

    Raises InputError if it is missing, cannot be read, or is not plain LoRA.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} holds no adapter: {path.name} is missing")
    config = read_json(path)
    if config.get("peft_type") != "LORA" or config.get("r") is None or config.get("lora_alpha") is None:
        raise InputError(f"{path} is not a LoRA configuration (peft_type LORA, r, lora_alpha)")
    _check_types(path, config)
    if config.get("bias", "none") != "none":
        raise InputError(f"{path}: bias = {config['bias']!r} is not supported; only plain LoRA adapters load")
    for key in BEYOND_PLAIN_LORA:
        if config.get(key):
            raise InputError(f"{path}: {key} = {config[key]!r} is not supported; only plain LoRA adapters load")
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = [rename(name) for name in config["target_modules"]]
    for key in ("rank_pattern", "alpha_pattern"):
        config[key] = {rename(name): value for name, value in (config.get(key) or {}).items()}
    return config


def _check_types(path: Path, config: dict) -> None:
    check_numbers(path, config, NUMBERS)
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key), dict | None):
            raise InputError(f"{path}: {key} must be an object of layer names and numbers")
        for name, value in (config.get(key) or {}).items():
            check_number(f"{path}: {key} of {name:.100}", value, RANK if key == "rank_pattern" else ALPHA)
    targets = config.get("target_modules")
    names = targets if isinstance(targets, list) else [targets]
    if targets is not None and not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: target_modules must be a name or a list of names, not {shown(targets)}")


def read_factors(folder: Path, rename: Callable[[str], str] = str) -> Factors:
    """The factors of every layer, under the name that ``rename`` gives it.

    Raises InputError if the file is missing, cannot be read, or holds other tensors than LoRA factors.
    """
    path = folder / WEIGHTS
    factors: Factors = {}
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():
                layer, _, factor = key.removesuffix(".weight").rpartition(".")
                if not (key.startswith(PREFIX) and key.endswith(".weight") and factor in ("lora_A", "lora_B")):
                    raise InputError(f"{path}: unknown key {key!r}; PEFT's keys look like {PREFIX}...lora_A.weight")
                factors.setdefault(rename(layer.removeprefix(PREFIX)), {})[factor] = file.get_tensor(key)
    except FileNotFoundError:
        raise InputError(f"{path} is missing (adapters saved as .bin are not read)") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return factors


def named_layers(config: dict, linears: Iterable[str]) -> list[str]:
    """Those of a model's linear layers that ``target_modules`` (a list of names or suffixes) says are adapted."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("layers_to_transform") or config.get("exclude_modules"):
        return []  # a pattern or a selection: the tensors in the file decide
    ends = tuple(f".{target}" for target in targets)
    return [name for name in linears if name in targets or name.endswith(ends)]


def pattern_value(pattern: dict, name: str, default: float) -> float:
    """PEFT's per-layer override: the first key that is the layer's name or a dotted suffix of it."""
    for key, value in pattern.items():
        if name == key or name.endswith("." + key):
            return value
    return default


def some(names: list[str], limit: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")

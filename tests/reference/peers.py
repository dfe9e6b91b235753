"""What the scripts ``make_*.py`` share: the tiny Llama in transformers and adapters in PEFT.

Needs the packages compared with (transformers, peft, trl); no test imports this file.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
from weights import drawn_adapter, reference_weights  # noqa: E402

WEIGHTS_SEED = 7


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of Python and ``packages``."""
    return {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in packages}


def tiny_llama(config: dict) -> LlamaForCausalLM:
    """transformers' Llama with the reference weights."""
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    model.load_state_dict(reference_weights(config, WEIGHTS_SEED))
    return model


def lora_config(rank: int = 4, alpha: int = 8, **options) -> LoraConfig:
    options.setdefault("target_modules", "all-linear")
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, task_type="CAUSAL_LM", **options)


def adapter_parameters(model: nn.Module, adapter: str = "default") -> dict[str, nn.Parameter]:
    """PEFT's LoRA parameters under the names of ``weights.reference_adapter``."""
    found = {}
    for name, parameter in model.named_parameters():
        if f".{adapter}." in name:
            found[name.replace("base_model.model.", "", 1).replace(f".{adapter}.", ".")] = parameter
    return found


@torch.no_grad()
def adapted_logits(model: nn.Module, targets: list[str], seed: int, **inputs) -> tuple[torch.Tensor, list[str]]:
    """(logits of PEFT with ``weights.drawn_adapter`` on the linear layers under ``targets``, names of its tensors)."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(f".{target}." in f".{name}." for target in targets)
    ]
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=names)).eval()
    parameters = adapter_parameters(adapted)
    factors = drawn_adapter({name: parameter.shape for name, parameter in parameters.items()}, seed)
    for name, parameter in parameters.items():
        parameter.copy_(factors[name])
    stored = sorted(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    return adapted(**inputs).logits.contiguous(), stored


@torch.no_grad()
def set_adapter(model: nn.Module, factors: dict[str, torch.Tensor], adapter: str = "default") -> None:
    """Copies ``factors`` into PEFT's parameters; the two must have the same names."""
    parameters = adapter_parameters(model, adapter)
    if set(parameters) != set(factors):
        raise ValueError(f"adapter and factors differ in {sorted(set(parameters) ^ set(factors))}")
    for name, parameter in parameters.items():
        parameter.copy_(factors[name])

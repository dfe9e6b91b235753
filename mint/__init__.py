"""Preference optimisation for biomedicine in plain PyTorch: MINT and FiRe-MPO.

The public API is loaded on first use, so ``import mint`` alone stays cheap: it does not import PyTorch.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_MODULES = {  # public name -> the module that defines it
    "AnswerStats": "mint.losses",
    "InputError": "mint.errors",
    "LossOutput": "mint.losses",
    "add_lora": "mint.models.lora",
    "encode_pairs": "mint.data.encode",
    "generate": "mint.models.generate",
    "load_adapter": "mint.models.lora",
    "load_loss": "mint.losses",
    "load_model": "mint.models",
    "load_tokenizer": "mint.data.chat",
    "make_batches": "mint.data.batch",
    "merge_lora": "mint.models.lora",
    "needs": "mint.losses",
    "preference_loss": "mint.objective",
    "read_preferences": "mint.data.preferences",
    "save_adapter": "mint.models.lora",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'mint' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Frozen linear layers with quantised weights, below a LoRA adapter (``--quantize``); torchao does the quantisation.

``int8``: 8 bits, one scale for each row of a weight.   ``nf4``: 4-bit NormalFloat in blocks of 64 weights, whose scales
are quantised to 8 bits too (QLoRA, arXiv 2305.14314).

The decoder's linear layers are quantised as they are loaded; embeddings, LM head, norms and image encoder are not. A
product is that of the dequantised weight, in the dtype of its input. The dequantised weight is discarded after the
product and made again for the backward pass, so that one layer's at a time is in memory.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mint.errors import InputError

KINDS = ("int8", "nf4")
BLOCK, SCALE_BLOCK = 64, 256  # nf4: weights with a scale, at most so many scales with a scale of their own


@functools.cache
def quantizer(kind: str) -> ModuleType:
    """``torchao.quantization``. Raises InputError if a version that has ``kind`` is not installed."""
    try:
        module = importlib.import_module("torchao.quantization")
        assert hasattr(module, "Int8WeightOnlyConfig") and hasattr(module, "to_nf4")
    except (ImportError, AssertionError):
        raise InputError(f"--quantize {kind} needs the package torchao: pip install 'torchao>=0.18'") from None
    return module


def quantize_weight(weight: Tensor, kind: str) -> nn.Parameter:
    """A weight [out, in] in the number format ``kind``, frozen; its ``dtype`` remains that of ``weight``.

    Raises InputError for a size that is no multiple of ``BLOCK`` with nf4, and if torchao is missing.
    """
    torchao: Any = quantizer(kind)
    if kind == "nf4":
        if weight.numel() % BLOCK:
            raise InputError(f"--quantize nf4: a layer of {tuple(weight.shape)} weights is no multiple of {BLOCK}")
        scales = math.gcd(weight.numel() // BLOCK, SCALE_BLOCK)
        return nn.Parameter(torchao.to_nf4(weight, BLOCK, scales), requires_grad=False)
    holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    holder.weight = nn.Parameter(weight, requires_grad=False)
    torchao.quantize_(nn.Sequential(holder), torchao.Int8WeightOnlyConfig(set_inductor_config=False))
    return nn.Parameter(holder.weight, requires_grad=False)


def dequantize(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The plain tensor [out, in] that a quantised weight stands for."""
    quantised: Any = weight
    of_nf4 = hasattr(type(weight), "get_original_weight")  # of the type: compiled code does not see it in the object
    return (quantised.get_original_weight() if of_nf4 else quantised.dequantize()).to(dtype)


def plain_parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the plain tensors that make up a quantised one, or of ``tensor`` itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        if isinstance(inner := getattr(tensor, part), Tensor):
            yield from plain_parts(f"{name}.{part}", inner.reshape(()) if inner.numel() == 1 else inner)


def _dequantized_product(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, dequantize(weight, x.dtype))


class _FrozenProduct(torch.autograd.Function):
    """x W^T for a quantised W without a gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return _dequantized_product(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ dequantize(ctx.weight, grad.dtype), None


def frozen_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` with a quantised weight; gradients flow to ``x`` and ``bias``."""
    if torch.compiler.is_compiling():  # a compiler would find both dequantised weights equal, and keep one
        y = checkpoint(_dequantized_product, x, weight, use_reentrant=False)
    else:
        y = _FrozenProduct.apply(x, weight)
    return y if bias is None else y + bias


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is quantised when it is loaded. product: computes it, also below an adapter."""

    product = staticmethod(frozen_product)

    def __init__(self, linear: nn.Linear, kind: str):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias, self.kind = linear.weight, linear.bias, kind

    def load(self, weight: Tensor) -> None:
        """Quantises ``weight`` and makes it the layer's."""
        self.weight = quantize_weight(weight, self.kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


def quantize_layers(decoder: nn.Module, kind: str) -> None:
    """Replaces the linear layers of a decoder on the meta device, in place, so that they load quantised."""
    for name, linear in [(name, m) for name, m in decoder.named_modules() if isinstance(m, nn.Linear)]:
        parent, _, leaf = name.rpartition(".")
        setattr(decoder.get_submodule(parent), leaf, QuantizedLinear(linear, kind))


def weight_bytes(model: nn.Module) -> int:
    """The memory of a model's frozen parameters."""
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    return sum(part.nbytes for name, p in frozen for _, part in plain_parts(name, p.data))

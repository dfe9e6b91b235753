"""Matrix products in float32 on the CPU by oneDNN, which PyTorch brings along and keeps for other types.

``torch.mm`` takes its products of float32 from the BLAS that PyTorch was built with. With AVX-512 oneDNN's are faster, most
of all where a factor is narrow, as LoRA's are (``benchmarks/README.md`` has the figures). For other devices and types, for
an x whose rows are not contiguous, under autocast and under ``torch.compile``, these functions are PyTorch's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    rowwise = x.stride(-1) == 1  # it would copy another layout of x first; the weight may have any
    return (
        plain
        and rowwise
        and _ONEDNN is not None
        and torch.backends.mkldnn.enabled
        and not torch.compiler.is_compiling()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, without a gradient. x: [T, in], weight: [out, in], bias: [out]."""
    if _by_onednn(x, weight):
        return _ONEDNN(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` for x [T, in], differentiable in all three."""
    return _Linear.apply(x, weight, bias) if _by_onednn(x, weight) else F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x_grad = None if weight is None else product(grad, weight.t())
        weight_grad = None if x is None else grad.t() @ x
        return x_grad, weight_grad, grad.sum(0) if ctx.needs_input_grad[2] else None

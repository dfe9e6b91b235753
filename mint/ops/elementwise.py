"""RMSNorm, rotary positions and SwiGLU with hand-written gradients.

On the CPU these operations are bound by memory bandwidth. Each makes few passes, works in place where it can, and saves
its inputs only for the backward pass. First-order gradients only. In compiled code they are the plain formulas, which
the compiler fuses and differentiates itself (PyTorch 2.11 loses the gradient of a function that works in place).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, rms(x) = sqrt(mean(x^2) + eps); x [..., H], weight [H]."""
    if torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding: pairs (i, i + D/2) of x [..., D] rotated by the angles of cos and sin.

    cos, sin: [..., D], broadcast to x.
    """
    if torch.compiler.is_compiling():
        low, high = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-high, low), dim=-1) * sin
    return _Rotate.apply(x, cos, sin)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, silu(z) = z sigmoid(z), of tensors of one shape."""
    return F.silu(gate) * up if torch.compiler.is_compiling() else _SwiGLU.apply(gate, up)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = (grad * x).mul_(inverse).reshape(-1, len(weight)).sum(0)
        inner = grad * weight
        along = (inner * x).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(x.shape[-1])
        return inner.mul_(inverse).addcmul_(x, along, value=-1), weight_grad, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, dim=-1)
        return _rotated(x, cos, first, second)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, dim=-1)
        return _rotated(grad, cos, second, first, sign=-1), None, None


def _rotated(x: Tensor, cos: Tensor, first: Tensor, second: Tensor, sign: int = 1) -> Tensor:
    """x * cos + sign * cat(-first * high, second * low), where low and high are the halves of x."""
    rotated = x * cos
    (low, high), (x_low, x_high) = rotated.chunk(2, dim=-1), x.chunk(2, dim=-1)
    low.addcmul_(x_high, first, value=-sign)
    high.addcmul_(x_low, second, value=sign)
    return rotated


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad, gate).mul_(up), F.silu(gate).mul_(grad)

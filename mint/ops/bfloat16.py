"""Products of bfloat16 numbers on CPUs that have instructions for them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch


@functools.cache
def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 (AVX-512 BF16 or AMX). Elsewhere such products are slower than float32's."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


@contextlib.contextmanager
def bfloat16_products(enabled: bool) -> Iterator[None]:
    """Within it, CPU products of float32 matrices round their factors to bfloat16; sums and results stay float32.

    PyTorch has no CPU product of two bfloat16 matrices with a float32 result; this setting of oneDNN is one. It has no
    effect without ``enabled`` or :func:`has_bfloat16`.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # missing from PyTorch's stubs
    before = matmul.fp32_precision
    if enabled and has_bfloat16():
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before

"""The setting under which float32 products take factors in bfloat16: only where the CPU can, and never left on."""

import pytest
import torch

from mint.losses import logprobs
from mint.losses.logprobs import token_stats
from mint.ops import bfloat16


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_of_a_bfloat16_head_use_the_instructions_of_the_cpu(able, dtype, monkeypatch):
    seen, product = set(), logprobs._product
    for module in (bfloat16, logprobs):
        monkeypatch.setattr(module, "has_bfloat16", lambda: able)

    def note(a, b):
        seen.add(torch.backends.mkldnn.matmul.fp32_precision == "bf16")
        return product(a, b)

    monkeypatch.setattr(logprobs, "_product", note)
    hidden, head = torch.ones(3, 4, dtype=dtype, requires_grad=True), torch.ones(5, 4, dtype=dtype, requires_grad=True)
    before = torch.backends.mkldnn.matmul.fp32_precision
    logps = token_stats(hidden, head, torch.tensor([0, 1, 2])).logps
    logps.sum().backward()  # a trainable head: the products are computed again
    assert seen == {able and dtype == torch.bfloat16}
    assert torch.backends.mkldnn.matmul.fp32_precision == before

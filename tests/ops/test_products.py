"""Products by oneDNN against float64, in every layout that models bring, and that oneDNN is what computes them."""

import pytest
import torch
import torch.nn.functional as F

from mint.ops import products

HAS_ONEDNN = products._ONEDNN is not None


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def calls(monkeypatch):
    """The shapes that went to oneDNN."""
    seen, onednn = [], products._ONEDNN

    def note(x, weight, *rest):
        seen.append((tuple(x.shape), tuple(weight.shape)))
        return onednn(x, weight, *rest)

    monkeypatch.setattr(products, "_ONEDNN", note)
    return seen


LAYOUTS = {
    "plain": (random(7, 24), random(5, 24, seed=1)),
    "weight transposed": (random(7, 24), random(24, 5, seed=1).t()),
    "rows of a wider tensor": (random(7, 48)[:, :24], random(5, 48, seed=1)[:, 24:]),
    "one row": (random(1, 24), random(5, 24, seed=1)),
    "no row": (random(0, 24), random(5, 24, seed=1)),
}


@pytest.mark.parametrize("bias", [None, random(5, seed=2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_product_equals_that_in_float64(layout, bias, calls):
    x, weight = LAYOUTS[layout]
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(products.product(x, weight, bias).double(), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == HAS_ONEDNN


def test_what_onednn_would_copy_or_round_goes_to_pytorch(calls):
    weight = random(5, 24, seed=1)
    for x in (random(24, 7).t(), random(7, 24).double(), random(7, 24).bfloat16()):
        out = products.product(x, weight.to(x.dtype))
        assert out.dtype == x.dtype
        torch.testing.assert_close(out, x @ weight.to(x.dtype).t())
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            products.product(random(7, 24), weight).dtype
            == products.linear(random(7, 24), weight).dtype
            == torch.bfloat16
        )
    assert not calls


@pytest.mark.parametrize("bias", [None, random(5, seed=2).requires_grad_()])
def test_linear_has_the_gradients_of_pytorchs(bias, calls):
    x, weight = random(7, 24).requires_grad_(), random(5, 24, seed=1).requires_grad_()
    inputs = [t for t in (x, weight, bias) if t is not None]
    grads = [torch.autograd.grad(f(x, weight, bias).sin().sum(), inputs) for f in (products.linear, F.linear)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(calls) == 2 * HAS_ONEDNN


def test_a_frozen_weight_keeps_no_input_alive():
    x, kept = random(7, 24).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        products.linear(x, random(5, 24, seed=1))
    assert kept == [(5, 24)]

"""Norm, rotation and SwiGLU: by hand, against PyTorch's own and plain formulas, gradients against differences."""

import math

import pytest
import torch
import torch.nn.functional as F

from mint.ops.elementwise import rms_norm, rotate, swiglu

CASES = {
    "rms_norm": (lambda x, weight: rms_norm(x, weight, 0.1), (2, 3, 8), (8,)),
    "swiglu": (swiglu, (2, 3, 4), (2, 3, 4)),
}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_differences(case):
    function, *shapes = CASES[case]
    inputs = [random(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(function, inputs)


def test_gradients_of_a_rotation_equal_differences_also_where_the_halves_have_angles_of_their_own():
    cos, sin = random(1, 1, 3, 4, seed=1), random(1, 1, 3, 4, seed=2)
    x = random(2, 3, 2, 4).transpose(1, 2).requires_grad_()  # heads as the decoder lays them out
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (x,))


def test_rms_norm_by_hand():
    out = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(out, torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5))


def test_rms_norm_equals_pytorchs_in_float32():
    x, weight = random(5, 16).float().requires_grad_(), random(16, seed=1).float().requires_grad_()
    ours, theirs = rms_norm(x, weight, 1e-5), F.rms_norm(x, (16,), weight, 1e-5)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), (x, weight)) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_quarter_turn_by_hand():
    angle = torch.tensor([math.pi / 2, 0.0]).repeat(2)  # of the pairs (0, 2) and (1, 3)
    out = rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), angle.cos(), angle.sin())
    torch.testing.assert_close(out, torch.tensor([-3.0, 2.0, 1.0, 4.0]))


def test_swiglu_by_hand():
    out = swiglu(torch.tensor([0.0, math.log(3)]), torch.tensor([5.0, 2.0]))
    torch.testing.assert_close(out, torch.tensor([0.0, math.log(3) * 0.75 * 2]))

"""Rotary positions and RMSNorm worked by hand."""

import math

import torch

from mint.models.llama import RMSNorm
from mint.models.rotary import cos_sin, rotate


def test_a_quarter_turn_by_hand():
    cos, sin = cos_sin(torch.tensor([math.pi / 2, 0.0]), torch.float32)  # of the pairs (0, 2) and (1, 3)
    torch.testing.assert_close(
        rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), cos, sin), torch.tensor([-3.0, 2.0, 1.0, 4.0])
    )


def test_rms_norm_by_hand():
    norm = RMSNorm(2, 0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5))

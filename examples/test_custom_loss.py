"""The unit test of the custom loss: numbers worked by hand, on statistics made from lists."""

import pytest
import torch

from examples.custom_loss import truncated_quadratic
from mint.errors import InputError
from mint.losses.testing import answer_stats


def test_by_hand():
    chosen = answer_stats([[-1.0, -1.0], [-0.5]], ref_logps=[[-2.0, -1.5], [-5.5]])  # d = 1.5 and 5
    rejected = answer_stats([[-3.0], [-2.0, -1.0]], ref_logps=[[-3.5], [-1.0, -1.0]])  # d = 0.5 and -1
    output = truncated_quadratic(chosen, rejected, tau=2.0)
    # margins 1 and 6: the first pair is half way to tau, (1 - 1/2)^2 = 1/4; the second is past it
    assert output.loss.item() == pytest.approx((0.25 + 0.0) / 2)
    assert output.metrics["margin_reached"].item() == 0.5
    output.loss.backward()
    # dL/d(margin) = -2 (1 - 1/2) / tau / 2 pairs = -1/4 for the first pair, 0 for the second
    expected = torch.tensor([[-0.25, -0.25], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(chosen.logps.grad, expected)


def test_tau_must_be_positive():
    side = answer_stats([[-1.0]], ref_logps=[[-1.0]])
    with pytest.raises(InputError, match="tau must be positive, not 0"):
        truncated_quadratic(side, side, tau=0)

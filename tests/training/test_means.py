"""Means over micro-batches, by hand."""

import pytest
import torch

from mint.losses import LossOutput
from mint.training.means import MeanMetrics


def test_means_are_weighted_by_share_and_read_at_the_end():
    """A metric that is missing from a micro-batch counts as 0 there, as a term without tokens does."""
    means = MeanMetrics()
    loss = torch.tensor(2.0, requires_grad=True)
    means.add(LossOutput(loss, {"margin": torch.tensor(4.0), "size": 3}), 0.25)
    means.add(LossOutput(loss * 3, {"margin": torch.tensor([8.0], dtype=torch.float64), "other": 1.0}), 0.75)
    means.include("norm", torch.tensor(9.0))
    expected = {"loss": 5.0, "margin": 7.0, "size": 0.75, "other": 0.75, "norm": 9.0}
    assert means.read() == pytest.approx(expected, rel=1e-12)
    assert MeanMetrics().read() == {}

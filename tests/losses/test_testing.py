"""The statistics that unit tests of losses are written with."""

import math

import pytest
import torch

from mint.losses.testing import answer_stats


def test_lists_become_padded_tables():
    side = answer_stats([[-1.0, -2.0], [-3.0]], ref_logps=[[-1.5, -1.0], [-2.0]], span=[[0, 1], [1]], padding=math.nan)
    assert side.mask.tolist() == [[True, True], [True, False]] and side.span.tolist() == [[False, True], [True, False]]
    assert side.logp_sum.tolist() == [-3.0, -3.0] and side.lengths.tolist() == [2, 1] and side.tokens.item() == 3
    assert side.total(side.log_ratio, side.span).tolist() == [-1.0, -1.0]
    assert math.isnan(side.logps[1, 1]) and side.kl_forward is None and side.logps.dtype == torch.float64


def test_gradients_arrive_at_the_log_probabilities():
    side = answer_stats([[-1.0, -2.0], [-3.0]], kl_forward=[[0.1, 0.2], [0.3]], token_count=6)
    (side.logp_sum.sum() / side.tokens + side.total(side.kl_forward).sum()).backward()
    torch.testing.assert_close(side.logps.grad, torch.tensor([[1, 1], [1, 0]]).double() / 6)
    assert side.kl_forward.grad.tolist() == [[1, 1], [1, 0]]


def test_an_answer_without_tokens():
    side = answer_stats([[], []])
    assert side.logps.shape == (2, 1) and not side.mask.any() and side.logp_sum.tolist() == [0, 0]


def test_lists_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"span has rows of \[1\] tokens, logps of \[2\]"):
        answer_stats([[-1.0, -2.0]], span=[[1]])

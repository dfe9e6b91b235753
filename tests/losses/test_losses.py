"""Each loss against numbers worked by hand, its limits, and the identities between losses."""

import math

import pytest
import torch

from mint.losses import (
    LOSSES,
    AnswerStats,
    cpo_loss,
    dpo_loss,
    fire_loss,
    load_loss,
    orpo_loss,
    rrpo_loss,
    sft_loss,
    simpo_loss,
)
from mint.losses.interface import nll
from mint.losses.testing import answer_stats

LN2 = math.log(2)


def stats(rows, ref=None, **more) -> AnswerStats:
    """Answers of unequal length; the padding holds NaN, which no loss may read."""
    return answer_stats(rows, ref, padding=math.nan, **more)


def number(x) -> float:
    return x.item() if isinstance(x, torch.Tensor) else x


def close(a, b, tolerance=1e-12):
    assert number(a) == pytest.approx(number(b), rel=tolerance, abs=tolerance)


# -- values worked by hand ---------------------------------------------------------------------------------------


def test_sft_is_the_mean_over_tokens_not_over_answers():
    out = sft_loss(stats([[-1.0, -2.0, -3.0], [-6.0]]))
    close(out.loss, 12 / 4)
    close(out.metrics["logps/chosen"], (-2.0 - 6.0) / 2)


def test_orpo_by_hand():
    chosen, rejected = stats([[math.log(0.5)] * 2]), stats([[math.log(0.2)] * 3])
    # odds 0.5 / 0.5 = 1 and 0.2 / 0.8 = 1/4: their ratio is 4, and sigmoid(log 4) = 4 / 5
    out = orpo_loss(chosen, rejected, beta=0.1)
    close(out.loss, LN2 - 0.1 * math.log(0.8))
    close(out.metrics["log_odds_chosen"], math.log(4))
    close(out.metrics["log_odds_ratio"], math.log(0.8))
    close(out.metrics["rewards/margins"], 0.1 * (math.log(0.5) - math.log(0.2)))


def test_orpo_nll_over_the_whole_sequence():
    prompt, chosen = stats([[-1.0, -1.0, -4.0]]), stats([[-2.0]])
    with_prompt = orpo_loss(chosen, stats([[-3.0]]), prompt=prompt)
    close(with_prompt.metrics["nll_loss"], (1 + 1 + 4 + 2) / 4)


def test_dpo_by_hand():
    chosen = stats([[-1.0, -1.0]], ref=[[-2.0, -2.0]])  # d = 2
    rejected = stats([[-3.0]], ref=[[-2.0]])  # d = -1
    margin = 0.5 * 3
    close(dpo_loss(chosen, rejected, beta=0.5).loss, math.log(1 + math.exp(-margin)))
    smooth = 0.9 * math.log(1 + math.exp(-margin)) + 0.1 * math.log(1 + math.exp(margin))
    close(dpo_loss(chosen, rejected, beta=0.5, label_smoothing=0.1).loss, smooth)
    close(dpo_loss(chosen, rejected, beta=0.5, kind="hinge").loss, 0.0)
    close(dpo_loss(chosen, rejected, beta=0.1, kind="hinge").loss, 1 - 0.3)
    close(dpo_loss(chosen, rejected, beta=0.5, kind="ipo").loss, (1.0 - (-1.0) - 1.0) ** 2)  # per-token means


@pytest.mark.parametrize("name", ["dpo", "rrpo", "fire"])
def test_first_loss_is_ln2_where_policy_and_reference_agree(name):
    rows, zeros = [[-1.0, -0.5], [-2.0]], [[0.0, 0.0], [0.0]]
    side = stats(rows, ref=rows, kl_forward=zeros, kl_reverse=zeros)
    close(LOSSES[name](side, side).loss, LN2)


def test_simpo_by_hand():
    out = simpo_loss(stats([[-1.0, -2.0]]), stats([[-2.0]]), beta=2.0, gamma=0.5)
    close(out.loss, math.log(1 + math.exp(-(2.0 * 0.5 - 0.5))))


def test_cpo_by_hand():
    out = cpo_loss(stats([[-1.0, -2.0]]), stats([[-5.0]]), beta=0.1, alpha=1.0)
    close(out.loss, math.log(1 + math.exp(-0.2)) + 1.5)


def test_rrpo_rewards_spans_and_anchors_every_chosen_token():
    chosen = stats([[-1.0, -1.0]], ref=[[-1.5, -9.0]], span=[[1, 0]], kl_forward=[[0.25, 0.5]])
    rejected = stats([[-4.0, -2.0]], ref=[[-3.0, -7.0]], span=[[1, 0]])
    u = 0.1 * (0.5 - (-1.0))
    close(rrpo_loss(chosen, rejected, beta=0.1, alpha=0.2).loss, math.log(1 + math.exp(-u)) + 0.2 * 0.75)


def test_fire_by_hand():
    kl = {"kl_forward": [[0.25, 7.0]], "kl_reverse": [[0.5, 7.0]]}
    chosen = stats([[-1.0, -1.0]], ref=[[-1.5, -9.0]], span=[[1, 0]], **kl)
    rejected = stats([[-4.0, -2.0]], ref=[[-3.0, -7.0]], span=[[1, 0]])
    blind_chosen = stats([[-2.0, 0.0]], ref=[[-1.0, 0.0]], span=[[1, 0]])  # R = -0.1
    blind_rejected = stats([[-1.0, 0.0]], ref=[[-3.0, 0.0]], span=[[1, 0]])  # R = 0.2
    out = fire_loss(chosen, rejected, blind_chosen, blind_rejected, beta=0.1, alpha=0.2, gamma=0.5, lam=0.25)
    ranking = math.log(1 + math.exp(-0.15))
    visual = math.log(1 + math.exp(-0.3))
    close(out.loss, ranking + 0.2 * (0.25 * 0.25 + 0.75 * 0.5) + 0.5 * visual)
    close(out.metrics["visual_loss"], visual)


def test_fire_counts_the_visual_term_only_where_a_corrupted_image_exists():
    rows, zeros = [[-1.0], [-2.0]], [[0.0], [0.0]]
    side = stats(rows, ref=rows, kl_forward=zeros, kl_reverse=zeros)
    blind = AnswerStats(side.logps, torch.tensor([[True], [False]]), ref_logps=side.ref_logps)
    close(fire_loss(side, side, blind, blind, gamma=0.1).loss, LN2 + 0.1 * LN2 / 2)
    close(fire_loss(side, side, gamma=0.1).loss, LN2)


# -- identities --------------------------------------------------------------------------------------------------


def random_side(seed: int, with_kl: bool = True) -> AnswerStats:
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1]])
    values = [-torch.rand(3, 6, generator=g, dtype=torch.float64) * 3 for _ in range(2)]
    kls = [torch.rand(3, 6, generator=g, dtype=torch.float64) for _ in range(2)] if with_kl else [None, None]
    return AnswerStats(values[0], mask, ref_logps=values[1], kl_forward=kls[0], kl_reverse=kls[1])


def test_fire_without_image_and_reverse_kl_is_rrpo():
    chosen, rejected = random_side(0), random_side(1)
    close(fire_loss(chosen, rejected, gamma=0, lam=1, alpha=0.3).loss, rrpo_loss(chosen, rejected, alpha=0.3).loss)


def test_fire_without_image_and_kl_is_dpo():
    chosen, rejected = random_side(2), random_side(3)
    close(fire_loss(chosen, rejected, gamma=0, alpha=0).loss, dpo_loss(chosen, rejected).loss)


def test_token_count_makes_micro_batches_add_up():
    whole = stats([[-1.0, -2.0, -3.0], [-6.0], [-1.0, -1.0], [-2.0]])
    parts = [stats([[-1.0, -2.0, -3.0], [-6.0]], token_count=3.5), stats([[-1.0, -1.0], [-2.0]], token_count=3.5)]
    close(sum(0.5 * sft_loss(part).loss for part in parts), sft_loss(whole).loss)


def test_a_side_without_tokens_changes_no_mean():
    side, empty = stats([[-1.0, -2.0], [-6.0]]), stats([[], []])
    close(nll(side, empty), nll(side))
    close(nll(empty), 0.0)
    close(nll(stats([[-3.0]], token_count=1.5), stats([[]], token_count=0.0)), 2.0)


def test_rrpo_without_a_kl_computes_none():
    assert load_loss("rrpo").needs.kl_forward and not load_loss("rrpo", {"alpha": 0.0}).needs.kl_forward
    chosen, rejected = stats([[-1.0]], ref=[[-1.5]]), stats([[-4.0]], ref=[[-3.0]])
    close(rrpo_loss(chosen, rejected, alpha=0.0).loss, dpo_loss(chosen, rejected).loss)


# -- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rejected_logp", [0.0, -1e-9, -1.0, -1e4])
@pytest.mark.parametrize("chosen_logp", [0.0, -1e-9, -1.0, -1e4])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_finite_at_the_limits_of_probability(name, chosen_logp, rejected_logp, dtype):
    leaves = []

    def side(value):
        logps = torch.full((2, 3), value, dtype=dtype, requires_grad=True)
        leaves.append(logps)
        ones = torch.ones(2, 3, dtype=dtype)
        mask = torch.tensor([[True, True, True], [True, False, False]])
        return AnswerStats(logps, mask, ref_logps=-ones, span=mask, kl_forward=ones, kl_reverse=ones)

    sides = [side(chosen_logp)] + ([side(rejected_logp)] if LOSSES[name].needs.rejected else [])
    output = LOSSES[name](*sides)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)
    assert all(math.isfinite(value) for value in output.metrics.values())


def test_orpo_log_odds_keep_their_precision_near_certainty():
    from mint.losses.orpo import log_odds

    x = torch.tensor([-1e-9], dtype=torch.float64, requires_grad=True)
    value = log_odds(x)
    close(value, -1e-9 - math.log(1e-9), 1e-8)  # log(p / (1 - p)) with 1 - p = 1e-9
    value.backward()
    close(x.grad, 1e9, 1e-6)  # d/dlogp = 1 / (1 - p)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_match_finite_differences(name):
    mask = torch.arange(4) < torch.tensor([[4], [2]])
    g = torch.Generator().manual_seed(5)
    ref, kl = (-torch.rand(2, 4, generator=g, dtype=torch.float64) for _ in range(2))
    logps = [(-torch.rand(2, 4, generator=g, dtype=torch.float64) - 0.1).requires_grad_() for _ in range(2)]

    def value(*logps):
        sides = [AnswerStats(x, mask, ref_logps=ref, kl_forward=-kl * x, kl_reverse=kl * x * x) for x in logps]
        return LOSSES[name](*sides[: 2 if LOSSES[name].needs.rejected else 1]).loss

    assert torch.autograd.gradcheck(value, logps if LOSSES[name].needs.rejected else logps[:1])

"""FiRe and mDPO against formulas written out in NumPy, values and gradients; what they do without spans or images."""

import math

import numpy as np
import pytest
import torch

from mint.errors import InputError
from mint.losses import AnswerStats, dpo_loss, fire_loss, load_loss, mdpo_loss

SIDES = ("chosen", "rejected", "corrupted_chosen", "corrupted_rejected")
EXTREMES = (0.0, -1e-9, -1.0, -1e4)


def random_numbers(seed: int, extreme: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """Four pairs of up to six tokens: full spans, one side without a span, no corrupted image, ordinary."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, (2, 4))
    numbers = {}
    for place, name in enumerate(SIDES):
        mask = np.arange(6) < lengths[place % 2][:, None]
        span = mask & (rng.random((4, 6)) < 0.6)
        span[0], span[1] = mask[0], mask[1] * (place % 2)
        if place >= 2:
            mask[2] = False
            span = numbers[SIDES[place - 2]]["span"] & mask
        logps = rng.choice(EXTREMES, (4, 6)) if extreme else -3 * rng.random((4, 6))
        numbers[name] = {"logps": logps, "ref_logps": -3 * rng.random((4, 6)), "mask": mask, "span": span}
        numbers[name] |= {"kl_forward": rng.random((4, 6)), "kl_reverse": rng.random((4, 6))}
    return numbers


def statistics(numbers) -> tuple[dict[str, AnswerStats], list[torch.Tensor]]:
    """The sides for a loss; padding holds NaN. And the tensors that gradients flow to."""
    sides, leaves = {}, []
    for name, values in numbers.items():
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in values.items()}
        for key in ("logps", "ref_logps", "kl_forward", "kl_reverse"):
            tensors[key] = tensors[key].masked_fill(~tensors["mask"], math.nan)
        for key in ("logps", "kl_forward", "kl_reverse"):
            leaves.append(tensors[key].requires_grad_())
        sides[name] = AnswerStats(**tensors)
    return sides, leaves


def reward(side, beta, where="span"):
    """R [P] = beta * sum over tokens of log pi - log ref."""
    return beta * np.where(side[where], side["logps"] - side["ref_logps"], 0).sum(1)


def lose(margin):
    """(-log sigmoid(margin), its derivative)."""
    return np.logaddexp(0, -margin), -1 / (1 + np.exp(np.minimum(margin, 700)))


def written_out(numbers, beta, alpha, gamma, lam, visual):
    """(the loss of FiRe, its gradient to each side's logps and KLs), with nothing of the project."""
    r = {name: reward(side, beta) for name, side in numbers.items()}
    exists = numbers["corrupted_chosen"]["mask"].any(1)
    minus, plus = {
        "flip": ("corrupted_chosen", "corrupted_rejected"),
        "chosen": ("corrupted_chosen", "chosen"),
        "rejected": ("rejected", "corrupted_rejected"),
    }[visual]
    rank, d_rank = lose(r["chosen"] - r["rejected"])
    image, d_image = lose(r[plus] - r[minus])
    chosen = numbers["chosen"]
    kl = np.where(chosen["span"], lam * chosen["kl_forward"] + (1 - lam) * chosen["kl_reverse"], 0).sum(1)
    loss = (rank + gamma * exists * image + alpha * kl).mean()
    slope = dict.fromkeys(SIDES, 0.0) | {"chosen": d_rank, "rejected": -d_rank}
    slope[plus] = slope[plus] + gamma * exists * d_image
    slope[minus] = slope[minus] - gamma * exists * d_image
    gradients = {}
    for name, side in numbers.items():
        gradients[name, "logps"] = np.where(side["span"], beta * np.asarray(slope[name])[..., None], 0) / 4
        for key, weight in (("kl_forward", lam), ("kl_reverse", 1 - lam)):
            gradients[name, key] = (name == "chosen") * alpha * weight * side["span"] / 4
    return loss, gradients


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("visual", ["flip", "chosen", "rejected"])
@pytest.mark.parametrize("seed", range(4))
def test_fire_is_what_the_paper_writes(seed, visual, extreme):
    settings = {"beta": 0.3, "alpha": 0.2, "gamma": 0.7, "lam": 0.25, "visual": visual}
    numbers = random_numbers(seed, extreme)
    sides, leaves = statistics(numbers)
    out = fire_loss(**sides, **settings)
    out.loss.backward()
    expected, gradients = written_out(numbers, **settings)
    assert out.loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    for place, leaf in enumerate(leaves):
        name, key = SIDES[place // 3], ("logps", "kl_forward", "kl_reverse")[place % 3]
        found = np.zeros((4, 6)) if leaf.grad is None else leaf.grad.numpy()
        np.testing.assert_allclose(found, gradients[name, key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_mdpo_is_what_the_paper_writes(seed, extreme):
    numbers = random_numbers(seed, extreme)
    sides, leaves = statistics({name: numbers[name] for name in SIDES[:3]})
    out = mdpo_loss(*sides.values(), beta=0.3)
    out.loss.backward()
    r = {name: reward(numbers[name], 0.3, "mask") for name in SIDES[:3]}
    exists = numbers["corrupted_chosen"]["mask"].any(1)
    terms = [lose(r["chosen"] - r["rejected"]), lose(r["chosen"] - r["corrupted_chosen"]), lose(r["chosen"])]
    expected = (terms[0][0] + exists * terms[1][0] + terms[2][0]).mean()
    assert out.loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    slopes = [terms[0][1] + exists * terms[1][1] + terms[2][1], -terms[0][1], -1.0 * exists * terms[1][1]]
    for name, leaf, slope in zip(SIDES, leaves[::3], slopes, strict=False):
        expected = np.where(numbers[name]["mask"], 0.3 * slope[:, None], 0) / 4
        np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_mdpo_without_images_is_dpo_and_its_anchor():
    sides, _ = statistics(random_numbers(5))
    anchor = torch.nn.functional.softplus(-0.1 * sides["chosen"].total(sides["chosen"].log_ratio)).mean()
    out = mdpo_loss(sides["chosen"], sides["rejected"])
    torch.testing.assert_close(out.loss, dpo_loss(sides["chosen"], sides["rejected"]).loss + anchor)


def test_a_term_without_weight_asks_for_nothing():
    fire = load_loss("fire").needs
    assert fire.kl_forward and fire.kl_reverse and fire.corrupted_image and fire.corrupted_rejected
    for options, name in (
        ({"lam": 0.0}, "kl_forward"),
        ({"lam": 1.0}, "kl_reverse"),
        ({"gamma": 0.0}, "corrupted_image"),
    ):
        assert not getattr(load_loss("fire", options).needs, name)
    assert not load_loss("fire", {"visual": "chosen"}).needs.corrupted_rejected
    masked = load_loss("mask-dpo", {"beta": 0.5})
    assert (
        not (masked.needs.kl_forward or masked.needs.kl_reverse or masked.needs.corrupted_image) and masked.needs.spans
    )
    sides, _ = statistics(random_numbers(6))
    plain = {name: sides[name] for name in SIDES[:2]}
    torch.testing.assert_close(masked(**plain).loss, fire_loss(**plain, beta=0.5, alpha=0.0, gamma=0.0).loss)
    with pytest.raises(InputError, match="has no setting 'gamma'; it takes: beta, lam, visual"):
        load_loss("mask-dpo", {"gamma": 0.1})
    for call in (lambda: fire_loss(**sides, visual="up"), lambda: load_loss("fire", {"visual": "up"})):
        with pytest.raises(InputError, match="'up' is none of flip, chosen, rejected"):
            call()
    torch.testing.assert_close(fire_loss(*list(sides.values())[:3]).loss, fire_loss(**plain).loss)  # one is no pair

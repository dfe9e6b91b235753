"""FiRe and mDPO against formulas written out in NumPy, values and gradients; what they do without spans or images."""

import math

import numpy as np
import pytest
import torch

from benchmarks.fire.methods import ABLATIONS, METHODS, row_config
from mint.errors import InputError
from mint.losses import AnswerStats, dpo_loss, fire_loss, load_loss, mdpo_loss
from mint.losses.fire import VISUAL
from mint.losses.interface import KL_OVER

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


def written_out(numbers, beta, alpha, gamma, lam, visual, kl_over="span"):
    """(the loss of FiRe, its gradient to each side's logps and KLs), with nothing of the project."""
    r = {name: reward(side, beta) for name, side in numbers.items()}
    exists = numbers["corrupted_chosen"]["mask"].any(1)
    minus, plus = {
        "flip": ("corrupted_chosen", "corrupted_rejected"),
        "v1": ("corrupted_chosen", "chosen"),
        "v2": ("corrupted_rejected", "chosen"),
    }[visual]
    rank, d_rank = lose(r["chosen"] - r["rejected"])
    image, d_image = lose(r[plus] - r[minus])
    chosen = numbers["chosen"]
    where = chosen["mask" if kl_over == "all" else "span"]
    kl = np.where(where, lam * chosen["kl_forward"] + (1 - lam) * chosen["kl_reverse"], 0).sum(1)
    loss = (rank + gamma * exists * image + alpha * kl).mean()
    slope = dict.fromkeys(SIDES, 0.0) | {"chosen": d_rank, "rejected": -d_rank}
    slope[plus] = slope[plus] + gamma * exists * d_image
    slope[minus] = slope[minus] - gamma * exists * d_image
    gradients = {}
    for name, side in numbers.items():
        gradients[name, "logps"] = np.where(side["span"], beta * np.asarray(slope[name])[..., None], 0) / 4
        for key, weight in (("kl_forward", lam), ("kl_reverse", 1 - lam)):
            gradients[name, key] = (name == "chosen") * alpha * weight * where / 4
    return loss, gradients


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("kl_over", ["span", "all"])
@pytest.mark.parametrize("visual", ["flip", "v1", "v2"])
@pytest.mark.parametrize("seed", range(4))
def test_fire_is_what_the_paper_writes(seed, visual, kl_over, extreme):
    settings = {"beta": 0.3, "alpha": 0.2, "gamma": 0.7, "lam": 0.25, "visual": visual, "kl_over": kl_over}
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


def mdpo_terms(numbers, beta):
    """(value, derivative) of the three terms of mDPO: ranking, image, anchor."""
    r = {name: reward(numbers[name], beta, "mask") for name in SIDES[:3]}
    return [lose(r["chosen"] - r["rejected"]), lose(r["chosen"] - r["corrupted_chosen"]), lose(r["chosen"])]


def mdpo_by_hand(numbers, beta):
    (ranking, _), (image, _), (anchor, _) = mdpo_terms(numbers, beta)
    return (ranking + numbers["corrupted_chosen"]["mask"].any(1) * image + anchor).mean()


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_mdpo_is_what_the_paper_writes(seed, extreme):
    numbers = random_numbers(seed, extreme)
    sides, leaves = statistics({name: numbers[name] for name in SIDES[:3]})
    out = mdpo_loss(*sides.values(), beta=0.3)
    out.loss.backward()
    exists = numbers["corrupted_chosen"]["mask"].any(1)
    terms = mdpo_terms(numbers, 0.3)
    assert out.loss.item() == pytest.approx(mdpo_by_hand(numbers, 0.3), rel=1e-9, abs=1e-9)
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
    corrupted = {name: load_loss("fire", {"visual": name}).needs.corrupted_answers for name in VISUAL}
    assert corrupted == {"flip": ("chosen", "rejected"), "v1": ("chosen",), "v2": ("rejected",)}
    masked = load_loss("mask-dpo", {"beta": 0.5})
    assert (
        not (masked.needs.kl_forward or masked.needs.kl_reverse or masked.needs.corrupted_image) and masked.needs.spans
    )
    sides, _ = statistics(random_numbers(6))
    plain = {name: sides[name] for name in SIDES[:2]}
    torch.testing.assert_close(masked(**plain).loss, fire_loss(**plain, beta=0.5, alpha=0.0, gamma=0.0).loss)
    with pytest.raises(InputError, match="has no setting 'gamma'; it takes: beta, lam, visual, kl_over"):
        load_loss("mask-dpo", {"gamma": 0.1})
    for call in (lambda: fire_loss(**sides, visual="up"), lambda: load_loss("fire", {"visual": "up"})):
        with pytest.raises(InputError, match="'up' is none of flip, v1, v2"):
            call()
    for call in (lambda: fire_loss(**sides, kl_over="up"), lambda: load_loss("fire", {"kl_over": "up"})):
        with pytest.raises(InputError, match="'up' is none of span, all"):
            call()
    assert [load_loss("fire", {"kl_over": where}).needs.kl_over for where in KL_OVER] == ["span", "all"]
    torch.testing.assert_close(fire_loss(*list(sides.values())[:3]).loss, fire_loss(**plain).loss)  # one is no pair


@pytest.mark.parametrize(("visual", "unused"), [("v1", "corrupted_rejected"), ("v2", "corrupted_chosen")])
def test_an_ablation_does_without_the_other_answer(visual, unused):
    numbers = random_numbers(7)
    sides, _ = statistics(numbers)
    del sides[unused]
    out = load_loss("fire", {"visual": visual})(**sides)
    expected, _ = written_out(numbers, 0.1, 0.01, 0.1, 0.5, visual)
    assert out.loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


# -- the rows of the comparison ----------------------------------------------------------------------------------

BETA = 0.1
FIRE = {"beta": BETA, "alpha": 0.01, "gamma": 0.1, "lam": 0.5, "visual": "flip"}
ROWS = {  # row -> the loss by a formula of this file
    "SFT": lambda n: -over(n["chosen"], "logps", "mask").sum() / n["chosen"]["mask"].sum(),
    "DPO": lambda n: lose(difference(n, "mask"))[0].mean(),
    "RRPO": lambda n: (lose(difference(n, "span"))[0] + 0.01 * over(n["chosen"], "kl_forward", "mask")).mean(),
    "RRPO, KL on spans": lambda n: (
        lose(difference(n, "span"))[0] + 0.01 * over(n["chosen"], "kl_forward", "span")
    ).mean(),
    "mDPO": lambda n: mdpo_by_hand(n, BETA),
    "MASK-DPO": lambda n: lose(difference(n, "span"))[0].mean(),
    "FiRe": lambda n: written_out(n, **FIRE)[0],
    "FiRe, no forward KL": lambda n: written_out(n, **FIRE | {"lam": 0.0})[0],
    "FiRe, no reverse KL": lambda n: written_out(n, **FIRE | {"lam": 1.0})[0],
    "FiRe, no KL": lambda n: written_out(n, **FIRE | {"alpha": 0.0})[0],
    "FiRe, no image term": lambda n: written_out(n, **FIRE | {"gamma": 0.0})[0],
    "FiRe, KL on the answer": lambda n: written_out(n, **FIRE, kl_over="all")[0],
    "FiRe, KL on the answer, no image term": lambda n: written_out(n, **FIRE | {"gamma": 0.0}, kl_over="all")[0],
    "FiRe, v1": lambda n: written_out(n, **FIRE | {"visual": "v1"})[0],
    "FiRe, v2": lambda n: written_out(n, **FIRE | {"visual": "v2"})[0],
}


def over(side, key, where):
    """[P]: the sum of a number over the tokens of the answer or of its span."""
    return np.where(side[where], side[key], 0).sum(1)


def difference(numbers, where):
    """[P]: R(v, y+) - R(v, y-)."""
    return reward(numbers["chosen"], BETA, where) - reward(numbers["rejected"], BETA, where)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("row", METHODS | ABLATIONS)
def test_every_row_of_the_comparison_is_its_formula(row, seed):
    """With the settings that the row is trained with, and the statistics that its loss asks for."""
    config = row_config((METHODS | ABLATIONS)[row], model="m", data="d")
    loss = load_loss(config.loss, config.loss_options())
    numbers = random_numbers(seed)
    sides, _ = statistics(numbers)
    found = loss(**{name: sides[name] for name in loss.needs.statistics if name in sides}).loss.item()
    assert found == pytest.approx(ROWS[row](numbers), rel=1e-9, abs=1e-9)

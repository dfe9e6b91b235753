"""Losses by name, from a file, their settings, and the messages for mistakes."""

import math

import pytest
import torch

from mint.errors import InputError
from mint.losses import LOSSES, AnswerStats, Loss, Needs, load_loss, loss_names, register
from mint.losses.check import check_loss
from mint.losses.interface import PRESETS
from mint.losses.testing import answer_stats

CUSTOM = """
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from mint.losses import LossOutput, needs, register

@dataclass
class Margin:
    beta: float = 1.0

@needs(reference=True)
def my_loss(chosen, rejected, beta=Margin().beta):
    return LossOutput(-beta * (chosen.log_ratio.sum() - rejected.log_ratio.sum()))

def bare(chosen, rejected):
    return LossOutput(rejected.logp_sum.mean() - chosen.logp_sum.mean())

@register("typed-in-a-file")
def typed(
    chosen, rejected, *, tau: float, rounds=1, on: bool = False, form: Literal["a", "b"] = "a", top: int | None = None
):
    return LossOutput(-chosen.logp_sum.mean() / tau, {"rounds": rounds})

@needs(fields=("weight",))
def weighted(chosen, rejected, weight):
    return LossOutput(-(weight * chosen.logp_mean).mean())

def prompted(chosen, rejected, prompt):
    return LossOutput(-prompt.logp_sum.mean())

@needs(rejected=False)
def two_sided(chosen, rejected): ...

def one_sided(chosen): ...

@needs(corrupted_image=True)
def blind(chosen, rejected, corrupted_chosen): ...

@needs(fields=("margin",))
def without_its_field(chosen, rejected): ...

@needs(fields=("prompt",))
def field_of_a_statistic(chosen, rejected, prompt): ...

number = 3
"""


@pytest.fixture
def custom_file(tmp_path):
    path = tmp_path / "my_loss.py"
    path.write_text(CUSTOM)
    return path


@pytest.fixture(autouse=True)
def registered():
    """Names that a test registers are taken back."""
    before = LOSSES.copy(), PRESETS.copy()
    yield
    for names, kept in zip((LOSSES, PRESETS), before, strict=True):
        names.clear()
        names.update(kept)


def test_built_in_loss_with_a_setting():
    loss = load_loss("dpo", {"beta": 0.5, "kind": "hinge"})
    assert loss.needs.reference and not loss.needs.kl_forward
    ones = torch.ones(1, 1)
    side = AnswerStats(-ones, ones.bool(), ref_logps=-ones)
    assert loss(chosen=side, rejected=side).loss.item() == 1.0


def test_the_built_in_losses_register_themselves():
    assert loss_names() == ["cpo", "dpo", "fire", "mask-dpo", "mdpo", "orpo", "rrpo", "sft", "simpo"]
    for name in loss_names():
        for prompt in (False, True):
            check_loss(load_loss(name), prompt)


def test_a_registered_loss_is_known_by_its_name():
    @register("double", weight=2.0)
    @register("single")
    def scaled(chosen, rejected, *, weight: float = 1.0): ...

    assert {"single", "double"} < set(loss_names())
    assert load_loss("single", {"weight": 3}).options == {"weight": 3.0}
    assert load_loss("double").options == {"weight": 2.0}
    with pytest.raises(InputError, match="the loss 'double' has no setting 'weight'; it takes: none"):
        load_loss("double", {"weight": 3.0})
    with pytest.raises(ValueError, match="mint.losses.dpo and .* both register a loss as 'dpo'"):
        register("dpo")(scaled)


def test_custom_loss_from_a_file_says_what_it_needs(custom_file):
    loss = load_loss(f"{custom_file}:my_loss", {"beta": 2.0})
    assert loss.needs.reference
    chosen, rejected = answer_stats([[-1.0]], ref_logps=[[-3.0]]), answer_stats([[-1.0]], ref_logps=[[-1.0]])
    assert loss(chosen=chosen, rejected=rejected).loss.item() == -4.0
    assert not load_loss(f"{custom_file}:bare").needs.reference


def test_settings_take_the_type_of_their_parameter(custom_file):
    given = {"tau": 2, "rounds": 3, "on": True, "form": "b", "top": 4.0}
    loss = load_loss(f"{custom_file}:typed", given)
    assert loss.options == given and [type(value) for value in loss.options.values()] == [float, int, bool, str, int]
    assert load_loss(f"{custom_file}:typed", {"tau": 1.0, "rounds": 0.5}).options["rounds"] == 0.5


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("orop", {}, "unknown loss 'orop': use one of cpo, dpo, fire, "),
        ("sft", {"beta": 1.0}, "has no setting 'beta'; it takes: none"),
        ("dpo", {"beta": "much"}, "beta of the loss 'dpo' must be a number, not 'much'"),
        ("dpo", {"beta": True}, "beta of the loss 'dpo' must be a number, not True"),
        ("dpo", {"kind": 2}, "kind of the loss 'dpo' must be a string, not 2"),
        ("nowhere.py:f", {}, "does not exist"),
        ("{file}:missing", {}, "no function 'missing'"),
        ("{file}:number", {}, "no function 'number'"),
        ("{file}:typed", {}, "needs a value for tau: give --loss-arg tau=VALUE"),
        ("{file}:typed", {"tau": 1, "on": 1}, "on of the loss .* must be true or false, not 1"),
        ("{file}:typed", {"tau": 1, "form": "c"}, "must be one of a, b, not 'c'"),
        ("{file}:typed", {"tau": 1, "top": 1.5}, "must be an integer, not 1.5"),
        ("{file}:typed", {"tau": 1, "top": math.inf}, "must be an integer, not inf"),
        ("{file}:typed", {"tau": 1, "temperature": 1}, "it takes: tau, rounds, on, form, top"),
        ("{file}:weighted", {"weight": 1.0}, "has no setting 'weight'"),
        ("{file}:prompted", {}, r"takes 'prompt' and does not ask for it: add @needs\(prompt=True\)"),
        ("{file}:two_sided", {}, r"takes 'rejected' and does not ask for it"),
        ("{file}:one_sided", {}, r"no parameter 'rejected': add it, or add @needs\(rejected=False\)"),
        ("{file}:blind", {}, r"or add @needs\(corrupted_rejected=False\)"),
        ("{file}:without_its_field", {}, "asks for the field 'margin' and has no parameter of that name"),
        ("{file}:field_of_a_statistic", {}, "asks for a field 'prompt', which is the name of a statistic"),
    ],
)
def test_mistakes_are_named(custom_file, name, options, message):
    with pytest.raises(InputError, match=message):
        load_loss(name.format(file=custom_file), options)


@pytest.mark.parametrize(
    "content, message",
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name' .line 1"),
        ("def f(:", "SyntaxError"),
        ("from mint.losses import needs\n@needs(refrence=True)\ndef f(chosen): ...", "@needs has no refrence"),
        ("from mint.losses import needs\n@needs(kl_forward=True)\ndef f(chosen): ...", "needs the reference too"),
        ("import sys\nsys.exit(3)", "SystemExit: 3 .line 2"),
        ("from mint.losses import needs\n@needs\ndef f(chosen, rejected): ...", "write @needs()"),
        (
            "from mint.losses import needs\n@needs(lambda *, a: {})\ndef f(chosen, rejected): ...",
            "given to @needs fails",
        ),
        ("from mint.losses import needs\n@needs(fields='ab')\ndef f(chosen, rejected): ...", "a tuple of names"),
        (
            "from mint.losses import needs\n"
            "@needs(corrupted_image=True, corrupted_chosen=False, corrupted_rejected=False)\n"
            "def f(chosen, rejected): ...",
            "needs an answer under it",
        ),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path, content, message):
    (tmp_path / "broken.py").write_text(content)
    with pytest.raises(InputError, match=message):
        load_loss(f"{tmp_path}/broken.py:f")


def made_of(body, wants=None, file="", **options):
    """A loss whose function has this body."""
    parameters = ", ".join([*(wants or Needs()).statistics, *(wants or Needs()).fields])
    names = {}
    exec("import torch\nfrom mint.losses import LossOutput\n" + f"def f({parameters}):\n    {body}", names)
    return Loss(file or "mine", names["f"], wants or Needs(), options)


ON_SPAN = "return LossOutput((chosen.logps * chosen.span).mean())"


@pytest.mark.parametrize(
    "body, wants, message",
    [
        ("return LossOutput(chosen.log_ratio.mean())", Needs(), r"reads chosen.ref_logps, .*@needs\(reference=True\)"),
        (
            "return LossOutput(rejected.total(rejected.kl_forward).mean())",
            Needs(reference=True, kl_forward=True),
            "reads rejected.kl_forward: a KL is computed on the chosen answer only",
        ),
        ("return LossOutput(chosen.kl_reverse.mean())", Needs(reference=True, kl_forward=True), "kl_reverse=True"),
        (ON_SPAN, Needs(), r"reads chosen.span, .*@needs\(spans=True\)"),
        (ON_SPAN, Needs(spans=True), "chosen.span is None there; read span_or_all"),
        ("return LossOutput((chosen.logps - rejected.logps).mean())", Needs(), "RuntimeError: The size of tensor"),
        ("return LossOutput(prompt.logps.mean())", Needs(prompt=True), "prompt is None without --nll-over sequence"),
        ("return -chosen.logp_sum.mean()", Needs(), r"must return a LossOutput\(loss, metrics\), not a tensor of"),
        ("return LossOutput(-chosen.logp_sum)", Needs(), r"a scalar .* a tensor of shape \[2\]; take its mean"),
        ("return LossOutput(0.5)", Needs(), "must return a scalar tensor, not a float"),
        ("return LossOutput(-chosen.logp_sum.mean().detach())", Needs(), "without a gradient"),
        ("return LossOutput(chosen.logp_sum.mean().log())", Needs(), "is nan on two made-up pairs"),
        (
            "return LossOutput(-chosen.total(chosen.logps, chosen.span_or_all).mean())",
            Needs(),
            "reads the span of chosen",
        ),
        ("return LossOutput(-chosen.logp_sum.mean(), {'step': 3.0})", Needs(), "a metric cannot be called 'step'"),
        ("return LossOutput(-chosen.logp_sum.mean(), None)", Needs(), "metrics must be a dict, not a NoneType"),
        ("return LossOutput(-chosen.logp_sum.mean(), {'m': chosen.logps})", Needs(), "the metric 'm' must be a number"),
    ],
)
def test_a_call_on_made_up_statistics_finds_what_is_wrong(body, wants, message):
    loss = made_of(body, wants)
    if wants.prompt:  # which a loss may do without
        loss.function.__defaults__ = (None,)
    with pytest.raises(InputError, match=message):
        check_loss(loss)


def test_a_loss_that_gets_what_it_asks_for_passes():
    wants = Needs(reference=True, kl_forward=True, spans=True, corrupted_image=True, prompt=True, fields=("weight",))
    body = """sides = (chosen, rejected, prompt, corrupted_chosen, corrupted_rejected)
    rewards = sum(side.total(side.log_ratio, side.span_or_all) for side in sides)
    return LossOutput((weight * rewards + chosen.total(chosen.kl_forward)).mean(), {"weight": weight.mean()})"""
    check_loss(made_of(body, wants), prompt=True)


def test_unknown_kind_of_dpo():
    side = AnswerStats(-torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), ref_logps=-torch.ones(1, 1))
    with pytest.raises(InputError, match="no kind 'cubic'"):
        load_loss("dpo", {"kind": "cubic"})(chosen=side, rejected=side)
    with pytest.raises(InputError, match="no kind 'cubic'"):
        check_loss(load_loss("dpo", {"kind": "cubic"}))

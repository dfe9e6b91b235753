"""Losses by name, from a file, and the messages for mistakes."""

import pytest
import torch

from mint.errors import InputError
from mint.losses import AnswerStats, load_loss

CUSTOM = '''
from mint.losses import LossOutput, needs

@needs(reference=True)
def my_loss(chosen, rejected, beta=1.0):
    return LossOutput(-beta * (chosen.log_ratio - rejected.log_ratio).mean())

def bare(chosen, rejected):
    return LossOutput(rejected.logp_sum.mean() - chosen.logp_sum.mean())

number = 3
'''


@pytest.fixture
def custom_file(tmp_path):
    path = tmp_path / "my_loss.py"
    path.write_text(CUSTOM)
    return path


def test_built_in_loss_with_a_setting():
    loss = load_loss("dpo", {"beta": 0.5, "kind": "hinge"})
    assert loss.needs.reference and not loss.needs.kl_forward
    ones = torch.ones(1, 1)
    side = AnswerStats(-ones, ones.bool(), ref_logps=-ones)
    assert loss(chosen=side, rejected=side).loss.item() == 1.0


def test_custom_loss_from_a_file_says_what_it_needs(custom_file):
    loss = load_loss(f"{custom_file}:my_loss", {"beta": 2.0})
    assert loss.needs.reference
    mask = torch.ones(1, 1, dtype=torch.bool)
    chosen = AnswerStats(torch.tensor([[-1.0]]), mask, ref_logps=torch.tensor([[-3.0]]))
    rejected = AnswerStats(torch.tensor([[-1.0]]), mask, ref_logps=torch.tensor([[-1.0]]))
    assert loss(chosen=chosen, rejected=rejected).loss.item() == -4.0
    assert not load_loss(f"{custom_file}:bare").needs.reference


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("orop", {}, "unknown loss 'orop'"),
        ("sft", {"beta": 1.0}, "has no setting 'beta'; it takes: none"),
        ("nowhere.py:f", {}, "does not exist"),
        ("{file}:missing", {}, "no function 'missing'"),
        ("{file}:number", {}, "no function 'number'"),
    ],
)
def test_mistakes_are_named(custom_file, name, options, message):
    with pytest.raises(InputError, match=message):
        load_loss(name.format(file=custom_file), options)


def test_unknown_kind_of_dpo():
    side = AnswerStats(-torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), ref_logps=-torch.ones(1, 1))
    with pytest.raises(InputError, match="no kind 'cubic'"):
        load_loss("dpo", {"kind": "cubic"})(chosen=side, rejected=side)

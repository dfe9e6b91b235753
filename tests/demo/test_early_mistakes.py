"""Mistakes in the flags of a demo are reported before it is built."""

import pytest

import train

DEMOS = ("disease", "tissue", "radiograph")
BEST = ["--best", "eval/loss", "--eval-every", "5"]


@pytest.fixture(autouse=True)
def built(monkeypatch):
    """The demos that ran."""
    ran = []
    for name in DEMOS:
        monkeypatch.setattr(f"mint.demo.{name}_demo.run", lambda config, _, name=name: ran.append(name))
    return ran


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora-targets", "sideways"], "LoRA target 'sideways' matches no linear layer"),
        (["--lora-targets", "vision_tower"], "LoRA target 'vision_tower' matches no linear layer"),
        (["--demo", "tissue", "--lora-targets", "lm_head"], "the LM head of this model is its embedding matrix"),
        (["--adapter", "missing"], "--adapter missing holds no adapter"),
        (["--out", "taken/run"], "--out taken/run cannot be written"),
        (["--demo", "radiograph", *BEST], "--best needs --eval-data: the radiograph demo has no evaluation pairs"),
        (["--max-pixels", "4096"], "--max-pixels needs --model"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, built, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    assert train.main(flags) == 2
    assert message in capsys.readouterr().err and not built


def test_targets_that_a_demo_has(built):
    vision = ["--lora-targets", "language_model,vision_tower,multi_modal_projector"]
    commands = (["--lora-targets", "q_proj"], ["--demo", "tissue", *vision], ["--loss", "fire", *vision], BEST)
    assert [train.main(flags) for flags in commands] == [0, 0, 0, 0]
    assert built == ["disease", "tissue", "radiograph", "disease"]

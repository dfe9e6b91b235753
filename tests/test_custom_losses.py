"""A loss of the user's own, from the command line to the update: its settings, its fields, and its mistakes."""

import json
from pathlib import Path

import pytest
import torch

import train
from mint.config import TrainConfig
from mint.data.batch import collate
from mint.data.chat import load_tokenizer
from mint.data.encode import encode_pairs
from mint.data.preferences import read_preferences, write_jsonl
from mint.demo import radiograph_demo
from mint.demo.stages import complete
from mint.demo.tiny_model import write_base
from mint.errors import InputError
from mint.flags import parse, to_toml
from mint.training import setup

DEMOS = ("disease", "tissue", "radiograph")
EXAMPLE = Path(__file__).parent.parent / "examples" / "custom_loss.py"
LOSS = """
from mint.losses import LossOutput, needs, nll

@needs(fields=("weight",))
def weighted(chosen, rejected, weight, *, tau: float):
    losses = weight * (rejected.logp_mean - chosen.logp_mean)
    return LossOutput(losses.mean() / tau, {"weight": weight.mean()})

@needs(prompt=True)
def with_prompt(chosen, rejected, prompt):
    return LossOutput(nll(chosen) + 0.1 * nll(prompt), {"prompts": float(prompt.mask.any())})
"""


def records(count=6):
    for i in range(count):
        yield {"prompt": f"What is {i}?", "chosen": f"{i} is a number", "rejected": f"no {i}", "weight": 0.5 * i}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A blank model, pairs with weights, and losses."""
    folder = tmp_path_factory.mktemp("setting")
    write_jsonl(folder / "pairs.jsonl", records())
    (folder / "mine.py").write_text(LOSS)
    write_base(folder / "model", [str(record) for record in records()] * 4, "demo", 320)
    return folder


def run(folder, out, *extra):
    common = ["--model", f"{folder}/model", "--data", f"{folder}/pairs.jsonl", "--out", str(out), "--device", "cpu"]
    return train.main([*common, "--batch-size", "3", "--lora-rank", "2", *extra])


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_example_trains_and_its_settings_can_be_given_again(folder, tmp_path):
    arguments = ["--loss", f"{EXAMPLE}:truncated_quadratic", "--loss-arg", "tau=2", "--steps", "2"]
    assert run(folder, tmp_path / "run", *arguments) == 0
    assert rows(tmp_path / "run")[0]["loss"] == pytest.approx(1.0) and "margin_reached" in rows(tmp_path / "run")[1]
    saved = tmp_path / "run" / "config.toml"
    assert parse(TrainConfig, ["--config", str(saved)], "").loss_args == {"tau": 2}
    assert train.main(["--config", str(saved), "--out", str(tmp_path / "again")]) == 0
    assert [row["loss"] for row in rows(tmp_path / "again")] == [row["loss"] for row in rows(tmp_path / "run")]


def test_fields_of_the_records_reach_the_loss(folder, tmp_path):
    """Every step has all six pairs, in two micro-batches: the mean weight is that of the file."""
    arguments = ["--loss", f"{folder}/mine.py:weighted", "--loss-arg", "tau=0.5", "--steps", "2", "--grad-accum", "2"]
    assert run(folder, tmp_path / "run", *arguments, "--eval-data", f"{folder}/pairs.jsonl") == 0
    assert [row["weight"] for row in rows(tmp_path / "run") if "weight" in row] == pytest.approx([1.25, 1.25])
    assert rows(tmp_path / "run")[0]["eval/weight"] == pytest.approx(1.25)


def test_fields_stay_with_their_pairs(folder):
    preferences = read_preferences(folder / "pairs.jsonl", fields=("weight",))
    pairs, _ = encode_pairs(preferences, load_tokenizer(folder / "model"), 200, fields=("weight",))
    batch = collate([pairs[i] for i in (4, 0, 3)]).to("cpu")
    assert batch.fields["weight"].tolist() == [2.0, 0.0, 1.5] and batch.fields["weight"].dtype == torch.float32
    assert not collate(encode_pairs(preferences, load_tokenizer(folder / "model"), 200)[0]).fields


@pytest.mark.parametrize(
    "value, message",
    [
        (None, "the loss reads the field 'weight', which the record lacks"),
        (True, "the field 'weight' must be a number, not a boolean"),
        ("2", "the field 'weight' must be a number, not a string"),
        (10**200, "the field 'weight' must be a finite number"),
    ],
)
def test_a_record_without_the_number_is_named(folder, tmp_path, capsys, value, message):
    given = [*records(3), {**next(records()), "weight": value}]
    write_jsonl(tmp_path / "pairs.jsonl", given)
    arguments = ["--loss", f"{folder}/mine.py:weighted", "--loss-arg", "tau=1", "--data", f"{tmp_path}/pairs.jsonl"]
    assert run(folder, tmp_path / "run", *arguments) == 2
    assert f"pairs.jsonl:4: {message}" in capsys.readouterr().err


def test_reserved_fields_are_refused(folder):
    with pytest.raises(InputError, match="a loss cannot ask for the fields id, images: "):
        read_preferences(folder / "pairs.jsonl", fields=("images", "weight", "id"))


def test_a_loss_that_cannot_do_without_the_prompt_gets_it(folder, tmp_path):
    assert run(folder, tmp_path / "run", "--loss", f"{folder}/mine.py:with_prompt", "--steps", "1") == 0
    (row,) = rows(tmp_path / "run")
    assert row["prompts"] == 1.0 and 0 < row["loss"] < 20


# -- the command line --------------------------------------------------------------------------------------------


def test_settings_from_flags_and_file(tmp_path):
    (tmp_path / "c.toml").write_text('seed = 3\n[loss]\nname = "dpo"\nbeta = 1\nlabel_smoothing = 0.1\n')
    flags = ["--loss-arg", "beta=0.5", "--loss-arg", "kind=ipo"]
    config = parse(TrainConfig, ["--config", f"{tmp_path}/c.toml", *flags], "")
    assert (config.loss, config.seed) == ("dpo", 3)
    assert config.loss_options() == {"beta": 0.5, "label_smoothing": 0.1, "kind": "ipo"}
    texts = ["a=1", "b=-2e3", "c=true", "d=False", "e=word", "f='7'", "g=", "h=x=y"]
    config = parse(TrainConfig, [part for text in texts for part in ("--loss-arg", text)], "")
    assert config.loss_args == {"a": 1, "b": -2000.0, "c": True, "d": False, "e": "word", "f": "7", "g": "", "h": "x=y"}


def test_settings_of_a_loss_survive_a_round_trip_through_toml(tmp_path):
    settings = {"tau": 2, "rate": 3e-7, "on": True, "form": 'a "b" \\ \n', "große": 1.0}
    config = TrainConfig(loss="mine.py:f", loss_args=settings, seed=1)
    (tmp_path / "c.toml").write_text(to_toml(config), encoding="utf-8")
    assert parse(TrainConfig, ["--config", f"{tmp_path}/c.toml"], "") == config
    assert 'loss = "dpo"\n' in to_toml(TrainConfig(loss="dpo")) and "loss_arg" not in to_toml(TrainConfig())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--loss", "foo"], "unknown loss 'foo'"),
        (["--loss-arg", "tau=2"], "the loss 'orpo' has no setting 'tau'; it takes: beta"),
        (["--loss-arg", "tau"], "--loss-arg takes NAME=VALUE, as tau=2, not 'tau'"),
        (["--loss-arg", "2=tau"], "--loss-arg takes NAME=VALUE"),
        (["--loss-arg", "beta=1", "--loss-arg", "beta=2"], "--loss-arg beta is given twice"),
        (["--loss-arg", "beta=1", "--beta", "2"], "--beta 2.0 and --loss-arg beta=1 set the same: leave one out"),
        (["--loss-arg", "beta=[1]"], "beta of the loss must be a number, a boolean or a string, not [1]"),
        (["--loss-arg", "beta=big"], "beta of the loss 'orpo' must be a number, not 'big'"),
        (["--loss-arg", "name=1"], "a setting of a loss cannot be called name"),
        (["--loss", "{folder}/mine.py:weighted"], "needs a value for tau"),
        (["--loss", f"{EXAMPLE}:truncated_quadratic", "--loss-arg", "tau=-1"], "tau must be positive, not -1.0"),
    ],
)
def test_mistakes_are_found_before_anything_is_built(folder, monkeypatch, capsys, arguments, message):
    built = []
    for demo in DEMOS:
        monkeypatch.setattr(f"mint.demo.{demo}_demo.run", lambda *_: built.append("demo"))
    monkeypatch.setattr(setup, "load_policy", lambda *_: built.append("model"))
    arguments = [argument.format(folder=folder) for argument in arguments]
    for model in ([], ["--model", f"{folder}/model", "--data", f"{folder}/pairs.jsonl"]):
        assert train.main([*arguments, *model]) == 2
        assert message in capsys.readouterr().err
    assert not built


def test_the_embedded_default_follows_the_loss(monkeypatch):
    ran = []
    for name in DEMOS:
        monkeypatch.setattr(f"mint.demo.{name}_demo.run", lambda config, _, name=name: ran.append(name))
    for arguments in ([], ["--loss", "fire"], ["--loss", "mdpo"], ["--loss", "fire", "--demo", "disease"]):
        assert train.main(arguments) == 0
    assert train.main(["--loss", "fire", "--gamma", "0"]) == 0
    assert ran == ["disease", "radiograph", "radiograph", "disease", "disease"]


def test_settings_of_the_loss_that_are_given_win_over_the_radiograph_recipe(folder):
    def completed(*flags):
        config = parse(TrainConfig, ["--loss", "fire", *flags], "")
        return complete(config, radiograph_demo.recipe(config.loss), folder).loss_options()

    assert completed() == {"kl_over": "all"}
    assert completed("--loss-arg", "kl_over=span", "--beta", "0.3") == {"kl_over": "span", "beta": 0.3}
    assert completed("--loss-arg", "lam=1") == {"kl_over": "all", "lam": 1}
    assert radiograph_demo.recipe(f"{EXAMPLE}:truncated_quadratic") == radiograph_demo.ALIGN

"""The best step of a run by hand, early stopping, and both through train.py and a resume."""

# ruff: noqa: F811

import json
import math

import pytest
import torch

import train
from mint.data.chat import load_tokenizer
from mint.data.encode import encode_pairs
from mint.data.preferences import read_preferences
from mint.losses import load_loss
from mint.models import load_model
from mint.models.lora import load_adapter, lora_layers
from mint.training import monitor
from mint.training.forward import Forward
from mint.training.selection import best_step, is_out_of_patience
from tests.test_train import rows, run, setting, settings  # noqa: F401 (a fixture)

ROWS = [
    {"step": 0, "eval/loss": 0.1, "eval/rewards/accuracies": 1.0},
    {"step": 5, "loss": 0.0},
    {"step": 5, "eval/loss": 2.0, "eval/rewards/accuracies": 0.5},
    {"step": 10, "eval/loss": 1.5, "eval/rewards/accuracies": 0.9},
    {"step": 15, "eval/loss": None, "eval/rewards/accuracies": 0.9},
    {"step": 20, "eval/loss": 1.6, "eval/rewards/accuracies": 0.7},
]


def test_the_best_step():
    assert best_step(ROWS, "eval/loss") == 10
    assert best_step(ROWS, "eval/rewards/accuracies") == 10  # the first of equals, and not the untrained model
    assert best_step([{"step": 1, "eval/kl/forward": 2.0}, {"step": 2, "eval/kl/forward": 1.0}], "eval/kl/forward") == 2
    assert best_step(ROWS[:2], "eval/loss") is None


def test_patience_counts_evaluations_since_the_best():
    assert [is_out_of_patience(ROWS, "eval/loss", patience) for patience in (1, 2, 3, None)] == [
        True,
        True,
        False,
        False,
    ]
    assert not is_out_of_patience(ROWS[:4], "eval/loss", 1)


LOSSES = (3.0, 2.0, 1.0, 1.5, 1.2, 0.5)  # of the evaluations after steps 0 to 5


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations with the losses above, by the number of steps taken; and the adapters that were evaluated."""
    seen = []

    def evaluate(forward, pairs):
        seen.append([layer.lora_B.weight.detach().clone() for layer in lora_layers(forward.model).values()])
        return {"eval/loss": LOSSES[len(seen) - 1]}

    monkeypatch.setattr(monitor, "evaluate", evaluate)
    return seen


def saved_adapter(setting, folder):
    model = load_adapter(load_model(setting / "model"), folder)
    return [layer.lora_B.weight for layer in lora_layers(model).values()]


BEST = ("--loss", "sft", "--eval-every", "1", "--best", "eval/loss", "--keep", "1")


def test_the_best_checkpoint_is_the_result_and_patience_ends_the_run(setting, tmp_path, capsys, scripted):
    more = (*BEST, "--eval-data", f"{setting}/eval.jsonl", "--steps", "9", "--patience", "2")
    run(*settings(setting, tmp_path / "run", *more))
    printed = capsys.readouterr().out
    assert "step 4: 2 evaluations without a better eval/loss; training ends early" in printed
    assert f"saved {tmp_path}/run/adapter (of step 2, the best by eval/loss)" in printed
    assert all(map(lambda a, b: a.equal(b), saved_adapter(setting, tmp_path / "run" / "adapter"), scripted[2]))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-2", "step-4"]
    run(*settings(setting, tmp_path / "run", *more, "--resume", "auto"))  # it had ended
    assert len(scripted) == 5 and max(row["step"] for row in rows(tmp_path / "run")) == 4


def test_a_resumed_run_knows_its_best_step(setting, tmp_path, scripted, monkeypatch):
    more = (*BEST, "--eval-data", f"{setting}/eval.jsonl", "--steps", "4")
    compute, calls = train.accumulate_gradients, []

    def fail_once(*arguments):
        calls.append(True)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(train, "accumulate_gradients", fail_once)
    assert train.main(settings(setting, tmp_path / "run", *more)) == 130
    assert [row.get("eval/loss") for row in rows(tmp_path / "run") if "eval/loss" in row] == [3.0, 2.0, 1.0, 1.5]
    run(*settings(setting, tmp_path / "run", *more, "--resume", "auto"))
    assert all(map(lambda a, b: a.equal(b), saved_adapter(setting, tmp_path / "run" / "adapter"), scripted[2]))


def test_patience_counts_an_evaluation_that_a_resume_makes_up_for(setting, tmp_path, capsys, scripted, monkeypatch):
    more = (*BEST, "--eval-data", f"{setting}/eval.jsonl", "--steps", "9", "--patience", "2")
    count, compute = [], monitor.evaluate

    def evaluate(forward, pairs):
        count.append(True)
        if len(count) == 5:  # after step 4, whose checkpoint is there
            raise KeyboardInterrupt
        return compute(forward, pairs)

    monkeypatch.setattr(monitor, "evaluate", evaluate)
    assert train.main(settings(setting, tmp_path / "run", *more)) == 130
    run(*settings(setting, tmp_path / "run", *more, "--resume", "auto"))
    assert "step 4: 2 evaluations without a better eval/loss" in capsys.readouterr().out
    assert max(row["step"] for row in rows(tmp_path / "run")) == 4


def test_an_unknown_metric_is_named_before_the_first_step(setting, tmp_path, capsys):
    more = ("--eval-data", f"{setting}/eval.jsonl", "--eval-every", "1", "--best", "eval/accuracy", "--steps", "2")
    assert train.main(settings(setting, tmp_path / "run", *more)) == 2
    assert (
        "--best eval/accuracy is no metric of this run's evaluations, which have: eval/loss" in capsys.readouterr().err
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# -- what is shown of the policy ---------------------------------------------------------------------------------


def test_statistics_a_rendered_pair_and_the_order_come_before_training(setting, tmp_path, capsys):
    run(*settings(setting, tmp_path / "run", "--steps", "1", "--show-text"))
    printed = capsys.readouterr().out
    places = [printed.find(text) for text in ("24 pairs", "length gap", "--- chosen:", "before training, ", "saved ")]
    assert -1 not in places and places == sorted(places)
    assert "of the first 24 pairs are in order" in printed
    run(*settings(setting, tmp_path / "other", "--steps", "1", "--loss", "sft"))
    printed = capsys.readouterr().out
    assert "in order" not in printed and "duplicates: " in printed and "--- chosen:" not in printed


def test_the_order_of_pairs_by_hand(setting):
    """Against the log-probabilities of the plain model, one answer at a time."""
    model = load_model(setting / "model")
    pairs, _ = encode_pairs(read_preferences(setting / "pairs.jsonl"), load_tokenizer(setting / "model"), 256)

    @torch.no_grad()
    def mean_logp(prompt, answer):
        logps = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(logps[range(len(answer)), answer].mean())

    share = sum(mean_logp(p.prompt, p.chosen) > mean_logp(p.prompt, p.rejected) for p in pairs) / len(pairs)
    assert 0 < share < 1
    assert f"before training, {100 * share:.0f} % of the first 24 pairs" in monitor.describe_order(
        Forward(model, load_loss("orpo"), 4), pairs
    )


def test_samples_are_written_shown_and_survive_a_resume(setting, tmp_path, monkeypatch, capsys):
    """And they do not change the run."""
    monkeypatch.setattr(monitor, "MAX_TOKENS", 6)
    more = ("--steps", "4", "--sample-every", "2", "--save-every", "2", "--keep", "5")
    run(*settings(setting, tmp_path / "run", *more))
    assert "step 2: case-0: " in capsys.readouterr().err
    file = tmp_path / "run" / "samples.jsonl"
    whole = file.read_text()
    samples = [json.loads(line) for line in whole.splitlines()]
    assert [(row["step"], row["id"]) for row in samples] == [(s, f"case-{i}") for s in (2, 4) for i in range(3)]
    assert samples[0]["chosen"].startswith("1. ") and set(samples[0]) == {"step", "id", "answer", "chosen"}
    without = settings(setting, tmp_path / "without", *more[:2], *more[4:])
    run(*without)
    plain = [{k: v for k, v in row.items() if k != "step_seconds"} for row in rows(tmp_path / "without")]
    assert plain == [{k: v for k, v in row.items() if k != "step_seconds"} for row in rows(tmp_path / "run")]
    run(*settings(setting, tmp_path / "run", *more, "--resume", f"{tmp_path}/run/checkpoints/step-2"))
    assert file.read_text() == whole
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path / "run"))


def test_samples_of_a_step_are_complete_before_its_checkpoint(setting, tmp_path, monkeypatch):
    """A run that is killed while it samples repeats the step."""
    monkeypatch.setattr(monitor, "MAX_TOKENS", 6)
    more = ("--steps", "4", "--sample-every", "2", "--save-every", "2", "--keep", "5")
    run(*settings(setting, tmp_path / "whole", *more))
    generate, calls = monitor.generate, []

    def fail_once(*arguments, **named):
        calls.append(True)
        if len(calls) == 2:  # after step 4
            raise KeyboardInterrupt
        return generate(*arguments, **named)

    monkeypatch.setattr(monitor, "generate", fail_once)
    assert train.main(settings(setting, tmp_path / "run", *more)) == 130
    run(*settings(setting, tmp_path / "run", *more, "--resume", "auto"))
    assert (tmp_path / "run" / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()

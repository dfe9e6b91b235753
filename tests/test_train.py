"""The loop as a user runs it: a small model, a handful of pairs, kills, resumes, and every mistake."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

import train
from mint.config import TrainConfig
from mint.data.preferences import write_jsonl
from mint.demo.tiny_model import write_base
from mint.errors import InputError
from mint.flags import parse, to_toml
from mint.models import load_model
from mint.models.lora import load_adapter, lora_layers
from mint.optim import learning_rate
from mint.training.run_directory import RunDirectory

WORDS = ["short stature", "seizures", "ptosis", "scoliosis", "hypotonia", "cleft palate"]


def records(count):
    for i in range(count):
        a, b, c = (WORDS[(i * k + 1) % 6] for k in (1, 2, 5))
        yield {
            "id": f"case-{i}",
            "prompt": [{"role": "user", "content": f"A patient with {a} and {b}.{' Also ' + c if i % 3 else ''}"}],
            "chosen": f"1. {c}" + (f"\n2. {a}" if i % 2 else ""),
            "rejected": f"1. none of {b} {i}",
        }


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A directory with a blank model, pairs to train on and pairs to evaluate."""
    folder = tmp_path_factory.mktemp("setting")
    write_jsonl(folder / "pairs.jsonl", records(24))
    write_jsonl(folder / "eval.jsonl", records(5))
    texts = [str(record) for record in records(24)] + WORDS * 20
    write_base(folder / "model", texts, "demo", 400)
    return folder


def settings(setting, out, *extra):
    common = ["--model", f"{setting}/model", "--data", f"{setting}/pairs.jsonl", "--out", str(out), "--device", "cpu"]
    return [*common, "--batch-size", "4", "--lr", "1e-2", "--lora-rank", "4", *extra]


def rows(out):
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def losses(out):
    return {row["step"]: row["loss"] for row in rows(out) if "loss" in row}


def run(*arguments):
    assert train.main(list(arguments)) == 0


# -- what a run leaves behind ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["orpo", "dpo", "sft", "rrpo", "fire", "simpo", "cpo"])
def test_every_loss_trains_and_leaves_a_complete_directory(setting, tmp_path, loss, capsys):
    out = tmp_path / "run"
    run(*settings(setting, out, "--loss", loss, "--steps", "6", "--eval-data", f"{setting}/eval.jsonl"))
    served = f"vllm serve {setting}/model --enable-lora --max-lora-rank 8 --lora-modules run={out}/adapter"
    assert capsys.readouterr().out.endswith(f"serve it with {served}\n")
    steps = [row for row in rows(out) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 7))
    assert {"loss", "lr", "grad_norm", "tokens", "pairs", "step_seconds"} <= set(steps[0])
    evaluated = [row["eval/loss"] for row in rows(out) if "eval/loss" in row]
    assert len(evaluated) == 2 and evaluated[1] < evaluated[0]
    if loss in ("dpo", "rrpo", "fire"):
        assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert {p.name for p in out.iterdir()} == {"adapter", "checkpoints", "config.toml", "curves.png", "metrics.jsonl"}
    adapted = load_adapter(load_model(f"{setting}/model"), out / "adapter")
    assert any(layer.lora_B.weight.any() for layer in lora_layers(adapted).values())


def test_full_fine_tuning_saves_a_model(setting, tmp_path):
    run(*settings(setting, tmp_path / "run", "--loss", "dpo", "--full", "--lr", "1e-3", "--steps", "3"))
    assert losses(tmp_path / "run")[1] == pytest.approx(math.log(2), abs=1e-6)
    before, after = load_model(f"{setting}/model"), load_model(tmp_path / "run" / "model")
    assert not torch.equal(before.head_weight, after.head_weight)
    assert (tmp_path / "run" / "model" / "tokenizer.json").is_file()


def test_an_adapter_to_continue_from_is_part_of_the_reference(setting, tmp_path):
    run(*settings(setting, tmp_path / "sft", "--loss", "sft", "--steps", "4"))
    run(*settings(setting, tmp_path / "dpo", "--loss", "dpo", "--steps", "2", "--adapter", f"{tmp_path}/sft/adapter"))
    assert losses(tmp_path / "dpo")[1] == pytest.approx(math.log(2), abs=1e-6)


def test_accumulation_gives_the_update_of_one_large_batch(setting, tmp_path):
    for name, size, accumulate in (("large", "8", "1"), ("small", "2", "4")):
        run(*settings(setting, tmp_path / name, "--steps", "3", "--batch-size", size, "--grad-accum", accumulate))
    large, small = losses(tmp_path / "large"), losses(tmp_path / "small")
    assert all(small[step] == pytest.approx(large[step], abs=1e-4) for step in large)


def test_custom_loss_and_toml(setting, tmp_path):
    loss = tmp_path / "mine.py"
    loss.write_text(
        "from mint.losses import LossOutput\n"
        "def margin(chosen, rejected, beta=1.0):\n"
        "    return LossOutput(beta * (rejected.logp_mean - chosen.logp_mean).mean())\n"
    )
    (tmp_path / "run.toml").write_text(f'loss = "{loss}:margin"\nbeta = 2\nsteps = 2\n')
    run(*settings(setting, tmp_path / "run", "--config", f"{tmp_path}/run.toml"))
    assert len(losses(tmp_path / "run")) == 2
    assert "beta = 2.0" in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule_by_hand(schedule):
    config = TrainConfig(lr=1.0, warmup=0.2, schedule=schedule)
    rates = [learning_rate(step, 10, config) for step in range(10)]
    expected = {
        "cosine": [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)],
        "linear": [1 - i / 8 for i in range(8)],
        "constant": [1.0] * 8,
    }
    assert rates == pytest.approx([0.5, 1.0, *expected[schedule]])


# -- what a log file shows ---------------------------------------------------------------------------------------


def test_evaluations_progress_and_a_summary_are_lines(setting, tmp_path, capsys):
    more = ("--steps", "4", "--eval-every", "2", "--eval-data", f"{setting}/eval.jsonl")
    run(*settings(setting, tmp_path / "run", *more))
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    number = r"-?[\d.]+"
    for step, line in zip((0, 2, 4), lines[:3], strict=True):
        assert re.fullmatch(rf"step {step}: eval loss {number}, preference accuracy \d+ %, margin {number}", line)
    assert re.fullmatch(rf"orpo: 4/4 steps, .*, loss {number}, tok/s [\d,]+, margin {number}, \d+ s in all", lines[3])
    pattern = rf"^eval loss {number} -> {number}, preference accuracy \d+ % -> \d+ %$"
    assert re.search(pattern, printed.out, re.MULTILINE)
    run(*settings(setting, tmp_path / "other", "--steps", "4", "--loss", "sft"))
    assert re.search(rf"^training loss {number} -> {number}$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "spans", "image"),
    [
        (["--loss", "fire"], True, True),
        (["--loss", "fire", "--spans", "changes", "--gamma", "0"], False, False),
        (["--loss", "mask-dpo"], True, False),
        (["--loss", "dpo"], False, False),
    ],
)
def test_a_loss_whose_terms_find_nothing_to_work_on_warns_once(setting, tmp_path, capsys, arguments, spans, image):
    more = ["--steps", "1", "--eval-data", f"{setting}/eval.jsonl", *arguments]
    run(*settings(setting, tmp_path / "run", *more))
    errors = capsys.readouterr().err
    assert errors.count(f"warning: no record of {setting}/pairs.jsonl marks a span") == spans
    assert errors.count(f"warning: no record of {setting}/pairs.jsonl has corrupted_images") == image
    assert errors.count("warning") == spans + image


# -- numbers that are not finite ---------------------------------------------------------------------------------

BAD_LOSS = """
from mint.losses import LossOutput
calls = 0
def sometimes(chosen, rejected):
    global calls
    calls += 1
    bad = calls == 2
    return LossOutput(-chosen.logp_mean.mean() * (float("nan") if bad else 1.0))
def always(chosen, rejected):
    of_the_run = chosen.mask.shape[0] == 4  # the check before it has other pairs
    return LossOutput(-chosen.logp_mean.mean() * (float("inf") if of_the_run else 1.0))
"""


@pytest.fixture
def bad_loss(tmp_path):
    (tmp_path / "bad.py").write_text(BAD_LOSS)
    return tmp_path / "bad.py"


def test_a_non_finite_step_is_skipped_and_its_examples_named(setting, tmp_path, bad_loss, capsys):
    run(*settings(setting, tmp_path / "run", "--loss", f"{bad_loss}:sometimes", "--steps", "3"))
    skipped = [row for row in rows(tmp_path / "run") if "skipped" in row]
    assert [row["step"] for row in skipped] == [2] and skipped[0]["loss"] is None
    assert len(skipped[0]["skipped"]) == 4 and skipped[0]["skipped"][0].startswith("case-")
    assert "step 2: non-finite loss" in capsys.readouterr().err


def test_ten_non_finite_steps_in_a_row_stop_the_run(setting, tmp_path, bad_loss, capsys):
    assert train.main(settings(setting, tmp_path / "run", "--loss", f"{bad_loss}:always", "--steps", "50")) == 2
    assert "10 steps in a row had a non-finite loss" in capsys.readouterr().err
    assert len(rows(tmp_path / "run")) == 10


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--loss", "orop"], "unknown loss 'orop'"),
        (["--loss", "sft", "--beta", "1"], "has no setting 'beta'"),
        (["--loss", "dpo", "--nll-over", "sequence"], "--nll-over sequence is for losses"),
        (["--data", "missing.jsonl"], "--data missing.jsonl does not exist"),
        (["--model", "missing"], "neither a directory nor a hub id"),
        (["--adapter", "missing"], "holds no adapter"),
        (["--lora-targets", "q_proj,lm_head"], "the LM head of this model is its embedding matrix"),
        (["--lora-targets", "sideways"], "matches no linear layer"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--max-length", "8"], "no pair is left"),
        (["--max-length", "8", "--overlength", "error"], "24 pairs are longer than --max-length 8"),
        (["--resume", "missing"], "is not a checkpoint"),
        (["--chat-date", "yesterday"], "is not a date"),
        (["--config", "missing.toml"], "--config missing.toml cannot be read"),
    ],
)
def test_mistakes_give_one_message_and_a_non_zero_exit(setting, tmp_path, capsys, extra, message):
    assert train.main(settings(setting, tmp_path / "run", *extra)) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and "Traceback" not in errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_cuda_without_a_device(setting, tmp_path, capsys):
    assert train.main([*settings(setting, tmp_path / "run"), "--device", "cuda"]) == 2
    assert "PyTorch sees no CUDA device" in capsys.readouterr().err


def test_bad_lines_are_all_reported_before_anything_trains(setting, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        '{"prompt": "q", "chosen": "a", "rejected": "b"}\n{\n{"prompt": "q", "chosen": "a", "rejected": "a"}\n'
    )
    assert train.main(settings(setting, tmp_path / "run", "--data", str(bad))) == 2
    errors = capsys.readouterr().err
    assert f"{bad}:2: " in errors and f"{bad}:3: " in errors and not (tmp_path / "run").exists()


def test_model_without_data_is_refused(capsys):
    assert train.main(["--model", "somewhere"]) == 2
    assert "--data is missing" in capsys.readouterr().err


def test_resume_auto_needs_a_run(capsys):
    assert train.main(["--resume", "auto"]) == 2
    assert "--resume auto continues the run in --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, message",
    [
        ("steps = 'x'", "steps must be of type int, not 'x'"),
        ("stepz = 3", "'stepz' is not a setting"),
        ("schedule = 'cubic'", "schedule must be one of cosine, linear, constant"),
        ("steps = ", "cannot be read"),
    ],
)
def test_toml_mistakes(tmp_path, line, message):
    (tmp_path / "c.toml").write_text(line)
    with pytest.raises(InputError, match=message):
        parse(TrainConfig, ["--config", str(tmp_path / "c.toml")], "")


def test_settings_survive_a_round_trip_through_toml(tmp_path):
    config = TrainConfig(model='a "quoted" \\ path\n', data="d", steps=7, rslora=True, lr=3e-7, compile=False)
    (tmp_path / "c.toml").write_text(to_toml(config))
    assert parse(TrainConfig, ["--config", str(tmp_path / "c.toml")], "") == config


def test_default_run_directories_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [RunDirectory(TrainConfig(loss="dpo")).path.name for _ in range(3)]
    assert names == ["dpo", "dpo-2", "dpo-3"]

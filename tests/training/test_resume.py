"""A run is continued with its own settings and pairs, or not at all."""

# ruff: noqa: F811

import json
import shutil
from dataclasses import replace

import pytest
import torch

import train
from mint.config import TrainConfig
from mint.data.batch import EncodedPair
from mint.data.preferences import write_jsonl
from mint.errors import InputError
from mint.optim import learning_rate
from mint.training.resume import check_record, hash_pairs, make_record
from tests.test_train import losses, records, rows, run, setting, settings  # noqa: F401 (a fixture)

CONFIG = TrainConfig(model="m", data="d.jsonl", lr=1e-3, **TrainConfig.LORA_DEFAULTS)
PAIRS = [EncodedPair("a", [1, 2], [3], [4], [True], [False]), EncodedPair("b", [1], [5, 6], [7])]


def record(config=CONFIG, pairs=PAIRS, total=10, dtype=torch.float32):
    return make_record(config, dtype, pairs, total)


def saved(folder, content):
    """A checkpoint of step 4 with ``content`` in its state.json."""
    checkpoint = folder / "checkpoints" / "step-4"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"step": 4, **content}))
    return checkpoint


def test_the_same_run_is_accepted_without_a_note(tmp_path):
    elsewhere = replace(CONFIG, data="copy.jsonl", out="other", resume="auto", save_every=3, device="cpu")
    assert check_record(saved(tmp_path, record()), record(elsewhere)) == []


def test_other_settings_are_refused_and_all_named(tmp_path):
    other = replace(CONFIG, loss="dpo", lr=1.0, seed=7, lora_rank=8)
    with pytest.raises(InputError) as error:
        check_record(saved(tmp_path, record()), record(other))
    assert "(--lora-rank: 16 -> 8; --loss: orpo -> dpo; --lr: 0.001 -> 1.0; --seed: 0 -> 7)" in str(error.value)


def test_auto_that_now_means_another_number_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="--dtype: float32 -> bfloat16"):
        check_record(saved(tmp_path, record()), record(dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (PAIRS[:1], "training pairs: 2 -> 1"),
        (PAIRS[::-1], "training pairs: 2 -> 2, with other contents or in another order"),
        ([PAIRS[0], replace(PAIRS[1], chosen=[5, 8])], "with other contents"),
        ([replace(PAIRS[0], chosen_span=[False]), PAIRS[1]], "with other contents"),
        ([replace(PAIRS[0], prompt=[1], chosen=[2, 3]), PAIRS[1]], "with other contents"),
        ([replace(PAIRS[0], twin=PAIRS[1]), PAIRS[1]], "with other contents"),
    ],
)
def test_other_pairs_are_refused(tmp_path, pairs, message):
    with pytest.raises(InputError, match=message):
        check_record(saved(tmp_path, record()), record(pairs=pairs))


def test_the_hash_knows_images_by_name_and_size_and_records_by_their_content(tmp_path):
    def hashed(folder, content, name="a"):
        folder.mkdir(exist_ok=True)
        (folder / "x.png").write_bytes(content)
        return hash_pairs([replace(PAIRS[0], id=name, images=(str(folder / "x.png"),))])

    first = hashed(tmp_path / "one", b"12345")
    assert hashed(tmp_path / "two", b"12345", name="b") == first
    assert hashed(tmp_path / "one", b"123456") != first


def test_a_longer_run_is_an_extension_and_a_shorter_one_ends_before_the_checkpoint(tmp_path):
    checkpoint = saved(tmp_path, record(replace(CONFIG, epochs=2.0)))
    assert check_record(checkpoint, record(replace(CONFIG, steps=60), total=60)) == [
        "the run now has 60 steps instead of 10; the cosine schedule spans the new length"
    ]
    constant = replace(CONFIG, schedule="constant")
    notes = check_record(saved(tmp_path / "b", record(constant)), record(constant, total=60))
    assert notes == ["the run now has 60 steps instead of 10"]
    with pytest.raises(InputError, match="is past the end of a run of 3 steps; raise --steps"):
        check_record(checkpoint, record(total=3))


def test_the_same_files_by_another_path_and_given_defaults_are_the_same_settings(tmp_path, monkeypatch):
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    first = replace(CONFIG, model="model", adapter="./adapter", loss="mine.py:f", loss_args={"tau": 2})
    checkpoint = saved(tmp_path, record(first))
    paths = {"model": f"{tmp_path}/model", "adapter": "adapter", "loss": f"{tmp_path}/model/../mine.py:f"}
    assert check_record(checkpoint, record(replace(first, **paths))) == []
    for changes, message in (
        ({"loss": "mine.py:g"}, "--loss: .*/mine.py:f -> .*/mine.py:g"),
        ({"loss_args": {"tau": 3}}, "--loss-arg tau: 2 -> 3"),
        ({"model": "adapter"}, "--model: .*/model -> .*/adapter"),
    ):
        with pytest.raises(InputError, match=message):
            check_record(checkpoint, record(replace(first, **changes)))
    checkpoint = saved(tmp_path / "dpo", record(replace(CONFIG, loss="dpo", beta=0.1)))
    assert check_record(checkpoint, record(replace(CONFIG, loss="dpo", loss_args={"kind": "sigmoid"}))) == []
    with pytest.raises(InputError, match="--beta: 0.1 -> 0.2"):
        check_record(checkpoint, record(replace(CONFIG, loss="dpo", beta=0.2)))


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoint = saved(tmp_path, {})
    (checkpoint / "state.json").write_text("{")
    with pytest.raises(InputError, match="step-4 is damaged: state.json cannot be read"):
        check_record(checkpoint, record())


# -- as a user meets it ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def started(setting, tmp_path_factory):
    """A run of four steps, with a checkpoint after two."""
    out = tmp_path_factory.mktemp("started") / "a"
    run(*settings(setting, out, "--steps", "4", "--save-every", "2"))
    return out


def test_a_new_folder_continues_the_same_run(setting, tmp_path, started):
    more = ("--steps", "4", "--resume", f"{started}/checkpoints/step-2")
    run(*settings(setting, tmp_path / "b", *more))
    whole = losses(started)
    assert losses(tmp_path / "b") == {step: whole[step] for step in (3, 4)}


def test_a_new_folder_does_not_allow_other_settings_or_data(setting, tmp_path, started, capsys):
    resumed = settings(setting, tmp_path / "b", "--steps", "4", "--resume", f"{started}/checkpoints/step-2")
    assert train.main([*resumed, "--loss", "dpo", "--lr", "1", "--seed", "7"]) == 2
    assert "(--loss: orpo -> dpo; --lr: 0.01 -> 1.0; --seed: 0 -> 7)" in capsys.readouterr().err
    edited = list(records(24))
    edited[3]["chosen"] += " indeed"
    write_jsonl(tmp_path / "edited.jsonl", edited)
    assert train.main([*resumed, "--data", f"{tmp_path}/edited.jsonl"]) == 2
    assert "training pairs: 24 -> 24, with other contents" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_more_steps_extend_a_run(setting, tmp_path, capsys):
    run(*settings(setting, tmp_path / "run", "--steps", "2"))
    more = ("--steps", "5", "--resume", "auto")
    run(*settings(setting, tmp_path / "run", *more))
    assert "the run now has 5 steps instead of 2; the cosine schedule spans the new length" in capsys.readouterr().err
    steps = rows(tmp_path / "run")
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5]
    expected = TrainConfig(lr=1e-2)
    assert [row["lr"] for row in steps[2:]] == pytest.approx([learning_rate(step, 5, expected) for step in (2, 3, 4)])
    run(*settings(setting, tmp_path / "run", *more))  # nothing is left to train; the result is saved again
    assert len(rows(tmp_path / "run")) == 5


def test_going_back_to_an_earlier_checkpoint_sets_the_later_ones_aside(setting, tmp_path):
    out, common = tmp_path / "run", ("--save-every", "1", "--keep", "3")
    run(*settings(setting, out, "--steps", "4", *common))
    run(*settings(setting, out, "--steps", "3", *common, "--resume", f"{out}/checkpoints/step-2"))
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-2", "step-3", "superseded"]
    aside = out / "checkpoints" / "superseded"
    assert sorted(path.name for path in aside.iterdir()) == ["metrics.jsonl", "step-3", "step-4"]
    assert [row["step"] for row in rows(aside)] == [1, 2, 3, 4] and [row["step"] for row in rows(out)] == [1, 2, 3]
    run(*settings(setting, out, "--steps", "4", *common, "--resume", "auto"))  # goes on from the new step 3
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4] and rows(out)[:2] == rows(aside)[:2]


def test_a_result_without_checkpoints_is_not_started_again(setting, tmp_path, capsys):
    out = tmp_path / "run"
    run(*settings(setting, out, "--steps", "2"))
    before = (out / "metrics.jsonl").read_text()
    shutil.copytree(out / "checkpoints" / "step-2", out / "checkpoints" / "step-kept")  # of the user's
    shutil.rmtree(out / "checkpoints" / "step-2")
    assert train.main([*settings(setting, out, "--steps", "2"), "--resume", "auto"]) == 2
    assert "holds a result and no checkpoint to resume" in capsys.readouterr().err
    assert (out / "metrics.jsonl").read_text() == before


def test_an_evaluation_that_an_interruption_prevented_is_made_up_for(setting, tmp_path):
    """A kill between a checkpoint and the evaluation of the same step, and one before the first checkpoint."""
    out, data = tmp_path / "run", ("--eval-data", f"{setting}/pairs.jsonl")
    run(*settings(setting, out, "--steps", "2", *data))
    whole = rows(out)
    assert [row["step"] for row in whole if "eval/loss" in row] == [0, 2]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole[:-1]))
    run(*settings(setting, out, "--steps", "2", *data, "--resume", "auto"))
    assert rows(out) == whole
    for folder in ("checkpoints", "adapter"):
        shutil.rmtree(out / folder)
    run(*settings(setting, out, "--steps", "2", *data, "--resume", "auto"))
    assert [row["step"] for row in rows(out) if "eval/loss" in row] == [0, 2]

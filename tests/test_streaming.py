"""--stream: training starts before the pairs are encoded, and is the training of the same pairs."""

# ruff: noqa: F811

import gc
import json
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file

import train
from mint.config import TrainConfig
from mint.data.encode import EncodedPair, EncodeReport
from mint.data.preferences import write_jsonl
from mint.data.streamed_pairs import SAMPLE, read_streamed
from mint.flags import parse
from mint.losses import load_loss
from mint.models import load_model
from mint.training import setup
from tests.test_train import losses, records, run, setting, settings  # noqa: F401 (a fixture)


def adapters_are_equal(one, two):
    first, second = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (one, two))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_streamed_run_is_the_run_of_the_whole_file(setting, tmp_path, capsys):
    for name, *extra in (("whole",), ("streamed", "--stream")):
        run(*settings(setting, tmp_path / name, "--loss", "orpo", "--epochs", "2", *extra))
    assert losses(tmp_path / "whole") == losses(tmp_path / "streamed")
    assert adapters_are_equal(tmp_path / "whole", tmp_path / "streamed")
    assert "24 records, of which 24 were encoded: 24 pairs" in capsys.readouterr().out


def test_a_streamed_run_is_resumed_exactly_and_only_with_its_file(setting, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes((setting / "pairs.jsonl").read_bytes())
    common = ("--loss", "dpo", "--stream", "--data", str(file), "--save-every", "3", "--schedule", "constant")
    run(*settings(setting, tmp_path / "whole", *common, "--steps", "9"))
    run(*settings(setting, tmp_path / "parts", *common, "--steps", "3"))
    again = settings(setting, tmp_path / "parts", *common, "--steps", "9", "--resume", "auto")
    run(*again)
    assert adapters_are_equal(tmp_path / "whole", tmp_path / "parts")
    file.write_text(file.read_text().replace("cleft", "Cleft", 1))
    capsys.readouterr()
    assert train.main(again) == 2
    assert "training pairs: 24 -> 24, with other contents" in capsys.readouterr().err


def test_a_long_pair_is_replaced_by_the_next(setting, tmp_path, capsys):
    lines = list(records(6))
    lines[2]["prompt"][0]["content"] *= 40
    write_jsonl(tmp_path / "pairs.jsonl", lines)
    out = tmp_path / "run"
    run(*settings(setting, out, "--data", f"{tmp_path}/pairs.jsonl", "--steps", "3", "--max-length", "150", "--stream"))
    printed = capsys.readouterr()
    assert "6 records, of which 6 were encoded: 5 pairs; 1 dropped as longer than --max-length: case-2" in printed.out
    assert "pairs.jsonl:3: too long" in printed.err and "the next record takes its place" in printed.err


def test_what_was_left_out_is_counted_in_the_sample_alone(setting, tmp_path):
    """A report of all steps would grow with them."""
    write_jsonl(tmp_path / "pairs.jsonl", records(6))
    given = settings(setting, tmp_path / "run", "--max-length", "20", "--overlength", "truncate-prompt")
    reader = setup._PairReader(parse(TrainConfig, given, ""), load_model(f"{setting}/model"), load_loss("orpo"))
    pairs, report = reader.stream(f"{tmp_path}/pairs.jsonl")
    again = [pair.id for _ in range(10) for pair in pairs]
    kept = [each.truncated for each in gc.get_objects() if type(each) is EncodeReport and {*each.truncated} & {*again}]
    assert len(report.truncated) == 6 and sorted(map(len, kept)) == [1, 6]


def test_bad_lines_are_named_before_training(setting, tmp_path, capsys):
    lines = [json.dumps(record) for record in records(3)]
    (tmp_path / "pairs.jsonl").write_text("\n".join([lines[0], "{", lines[1], lines[0]]))
    flags = ("--data", f"{tmp_path}/pairs.jsonl", "--stream")
    assert train.main(settings(setting, tmp_path / "run", *flags)) == 2
    error = capsys.readouterr().err
    assert "pairs.jsonl:2: invalid JSON" in error and "pairs.jsonl:4: id 'case-0' is also that of" in error
    assert train.main(settings(setting, tmp_path / "run", *flags, "--overlength", "error")) == 2
    assert "--stream does not" in capsys.readouterr().err


@pytest.mark.parametrize("marked", ["tags", "changes"])
def test_records_without_spans_are_left_out(setting, tmp_path, marked, capsys):
    lines = list(records(4))
    for record in lines[1:]:
        record["chosen"] = f"<mask>{record['chosen']}</mask>"
    if marked == "changes":
        lines[0]["rejected"] = lines[0]["chosen"].replace(" ", "  ")
    write_jsonl(tmp_path / "pairs.jsonl", lines)
    common = ("--data", f"{tmp_path}/pairs.jsonl", "--loss", "fire", "--spans", marked, "--steps", "2")
    run(*settings(setting, tmp_path / "whole", *common, "--batch-size", "3"))
    run(*settings(setting, tmp_path / "streamed", *common, "--batch-size", "3", "--stream"))
    assert "spans: " in capsys.readouterr().out
    if marked == "tags":
        assert losses(tmp_path / "whole") == losses(tmp_path / "streamed")


def test_memory_does_not_grow_with_the_texts(tmp_path):
    text = "finding " * 500
    write_jsonl(
        tmp_path / "pairs.jsonl",
        ({"id": i, "prompt": text, "chosen": f"yes {i}", "rejected": "no"} for i in range(4 * SAMPLE)),
    )
    tracemalloc.start()
    pairs = read_streamed(tmp_path / "pairs.jsonl", lambda record: EncodedPair(record.id, [1], [2], [3]))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pairs) == 4 * SAMPLE and len(pairs.sample) == SAMPLE
    assert kept < 2_000_000 < (tmp_path / "pairs.jsonl").stat().st_size
    assert [pair.id for pair in pairs[-2:]] == [str(4 * SAMPLE - 2), str(4 * SAMPLE - 1)]

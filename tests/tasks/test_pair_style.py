"""The style of preference pairs against values worked by hand; the command on preference files and MMedPO's."""

import gzip
import json

import pytest

import evaluate
from mint.errors import InputError
from mint.tasks.pair_style import PairStyle, pair_style, read_answers


def test_style_by_hand():
    """Lengths 1 and 5, 4 and 4, 3 and 5; edits 5 of 5 (no word is shared), 1 of 4, 2 of 5."""
    pairs = [
        ("Yes", "No, nothing is seen here."),
        ("A left pleural effusion.", "a right pleural effusion"),
        ("The liver is", "The liver is not visible"),
    ]
    found = pair_style(pairs)
    assert found == PairStyle(
        pairs=3,
        chosen=pytest.approx(8 / 3),
        rejected=pytest.approx(14 / 3),
        close=pytest.approx(2 / 3),
        edits=pytest.approx(8 / 3),
        relative=pytest.approx((1 + 1 / 4 + 2 / 5) / 3),
    )
    assert pair_style([("...", "?")]) == PairStyle(1, 0.0, 0.0, 1.0, 0.0, 0.0)
    with pytest.raises(InputError, match="no pairs"):
        pair_style([])


def test_the_command(tmp_path, capsys):
    """Spans are no words; MMedPO's images need not exist."""
    row = {"prompt": "Where?", "chosen": "On the <mask>left</mask>.", "rejected": "On the <mask>right</mask>."}
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    turns = [{"from": "human", "value": "<image>\nIs it large?"}, {"from": "gpt", "value": " No"}]
    record = {"id": 3, "image": "none.jpg", "conversations": turns}
    record["rejected_conversations"] = [turns[0], {"from": "gpt", "value": " Yes, it is large."}]
    (tmp_path / "theirs.json.gz").write_bytes(gzip.compress(json.dumps([record]).encode()))
    files = [f"{tmp_path}/own.jsonl", f"{tmp_path}/theirs.json.gz"]
    assert evaluate.main(["style", *files]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| | pairs | words, chosen | words, rejected | within 2 words (%) | edit distance (words) | relative |",
        "|---|---|---|---|---|---|---|",
        f"| {files[0]} | 1 | 3.0 | 3.0 | 100.0 | 1.0 | 0.33 |",
        f"| {files[1]} | 1 | 1.0 | 4.0 | 0.0 | 4.0 | 1.00 |",
    ]
    assert evaluate.main(["style", f"{tmp_path}/none.jsonl"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("name, count", [("vqa_rad", 1375), ("slake", 4919)])
def test_published_pairs_set_terse_answers_against_sentences(shared_data, name, count):
    found = pair_style(read_answers(shared_data / name / "preference_pairs.mmedpo.json.gz"))
    assert found.pairs == count and found.chosen < 3 and found.rejected > 13 and found.close < 0.1
    assert found.relative > 0.95

"""The table of FiRe-MPO's comparison: means over seeds by hand, leads seed by seed, rows of another number of seeds."""

import json

import pytest

from benchmarks.fire.methods import WIDER, compare
from mint.data.preferences import write_jsonl


def scored(folder, clinical, drops):
    """A run's files: questions on three images, contrasts on two."""
    told = [{"clinical": value, "facts": None, "closed": None, "open": value} for value in clinical]
    told[0]["facts"] = sum(clinical) / 4  # of the one report
    write_jsonl(
        folder / "predictions.jsonl", [{"id": str(i), "image": f"{i % 3}.png", **one} for i, one in enumerate(told)]
    )
    looked = [{"drop_lesion": drop, "difference": drop - 0.5, "flip_lesion": None} for drop in drops]
    pairs = [{"id": f"{i % 2}-{i}", **one} for i, one in enumerate(looked)]
    pairs.append({"id": "1-9", "drop_lesion": 0.0, "difference": 0.0, "flip_lesion": 1.0})
    write_jsonl(folder / "sensitivity" / "pairs.jsonl", pairs)
    return folder


def test_the_table_by_hand(tmp_path):
    rows = {
        "base": [scored(tmp_path / "base", [1, 0, 0, 0], [1.0, 2.0])],
        "DPO": [
            scored(tmp_path / "dpo0", [1, 1, 0, 0], [2.0, 2.0]),
            scored(tmp_path / "dpo1", [1, 0, 0, 0], [2.0, 2.0]),
        ],
        "FiRe": [
            scored(tmp_path / "fire0", [1, 1, 1, 0], [3.0, 3.0]),
            scored(tmp_path / "fire1", [1, 1, 0, 1], [3.0, 3.0]),
        ],
        WIDER: [
            scored(tmp_path / "wider0", [1, 1, 1, 1], [3.0, 3.0]),
            scored(tmp_path / "wider1", [1, 1, 1, 1], [3.0, 3.0]),
        ],
    }
    text = compare(rows, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "table.json").read_text())
    assert found["rows"]["FiRe"]["clinical"]["value"] == pytest.approx(6 / 8)
    assert found["rows"]["base"]["difference"]["value"] == pytest.approx((0.5 + 1.5 + 0.0) / 3)
    assert found["by_seed"]["DPO"]["clinical"] == [0.5, 0.25]
    assert found["leads"]["FiRe"]["DPO"]["clinical"]["value"] == pytest.approx(3 / 8)
    assert found["leads"]["FiRe"]["base"]["difference"]["value"] == pytest.approx((2.0 + 1.0 + 0.0) / 3)
    assert found["by_seed"]["DPO"]["facts"] == [0.5, 0.25] and found["leads"]["FiRe"]["DPO"]["facts"][
        "value"
    ] == pytest.approx(3 / 8)
    assert "| FiRe | 2 | 75.0 (" in text and "| DPO | +37.5 (" in text and "lead of FiRe over" in text
    assert found["leads"][WIDER]["FiRe"]["clinical"]["value"] == pytest.approx(2 / 8) and f"of {WIDER} over" in text
    assert "closed" not in found["rows"]["base"] and (tmp_path / "out" / "table.md").read_text() == text

"""The comparison of rejected lists, at the smallest size."""

import argparse
import json

import pytest

from benchmarks import rejected_lists
from mint import processes
from mint.data.preferences import read_preferences
from mint.demo import scarce
from mint.teachers import findings_teacher
from tests.demo.test_arms import InThisProcess

ROWS = {
    "SFT continued": ("sft", "random"),
    "ORPO, own samples rejected": ("orpo", "policy"),
    "FiRe on edits of own lists": ("fire", "edit"),
}


@pytest.fixture
def small(monkeypatch, few_resamples):
    monkeypatch.setattr(processes, "ProcessPoolExecutor", InThisProcess)
    for name, value in (("UNDIAGNOSED", 20), ("READ", (40, 11))):
        monkeypatch.setattr(scarce, name, value)
    for name, value in (
        ("DIAGNOSED", 60),
        ("UNSEEN", 6),
        ("FACES", 40),
        ("STEPS", 1),
        ("TUNING", (4, 14)),
        ("RATES", (1e-3,)),
        ("ROWS", ROWS),
    ):
        monkeypatch.setattr(rejected_lists, name, value)
    monkeypatch.setattr(findings_teacher.READING, "epochs", 1)
    for recipe, steps in ((scarce.BASE, 30), (scarce.ALIGN, 2)):
        monkeypatch.setitem(recipe, "steps", steps)
        monkeypatch.setitem(recipe, "batch_size", 8)


def test_every_arm_is_compared_in_all_ways_of_decoding(small, tmp_path):
    tables = rejected_lists.run_studies(argparse.Namespace(out=str(tmp_path), seeds=1))
    folder = tmp_path / "seed-0" / "diagnosed-60" / "preferences"
    own = read_preferences(folder / "policy.jsonl")
    assert own and {pair.chosen.text for pair in own} <= {
        p.chosen.text for p in read_preferences(folder / "random.jsonl")
    }
    assert all(pair.chosen.spans and pair.rejected.spans for pair in read_preferences(folder / "edit.jsonl"))
    rates = json.loads((tmp_path / "preferences" / "rates.json").read_text())
    assert set(rates) == set(ROWS) and set(rates.values()) <= set(rejected_lists.RATES)
    for way in rejected_lists.WAYS:
        systems = json.loads((tmp_path / "preferences" / way / "comparison.json").read_text())["systems"]
        assert list(systems) == ["SFT, the start", *ROWS]
    assert "sample\n\n| | top-1 |" in tables

"""The experiment with few diagnosed patients: its parts at the smallest size, and that a stopped one goes on."""

import argparse
import csv

import pytest

from benchmarks import scarce_diagnoses
from benchmarks.scarce_diagnoses import run_studies
from mint import processes
from mint.data.preferences import read_preferences
from mint.demo import arms, scarce
from mint.errors import InputError
from mint.teachers import findings_teacher
from tests.demo.test_arms import InThisProcess


@pytest.fixture
def small(monkeypatch, few_resamples):
    """A few faces, patients and steps."""
    monkeypatch.setattr(scarce, "UNDIAGNOSED", 60)
    monkeypatch.setattr(scarce_diagnoses, "UNSEEN", 12)
    monkeypatch.setattr(scarce, "READ", (40, 11))
    monkeypatch.setattr(scarce_diagnoses, "FACES", 40)
    monkeypatch.setattr(findings_teacher.READING, "epochs", 1)
    monkeypatch.setitem(scarce.BASE, "steps", 2)
    monkeypatch.setitem(scarce.ALIGN, "steps", 2)
    monkeypatch.setitem(scarce.ALIGN, "batch_size", 8)


def test_the_experiment_writes_tables_and_a_curve_and_does_nothing_twice(small, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "ProcessPoolExecutor", InThisProcess)
    out = tmp_path / "scarce"
    tables = run_studies(argparse.Namespace(out=str(out), diagnosed=[60], seeds=1))
    assert tables.startswith("60 diagnosed patients\n\n| | top-1 |")
    with open(out / "curve.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["score"] == "top_1_id"]
    assert {row["row"] for row in rows} >= {scarce.BOTH, *scarce.ROWS}
    assert {row["diagnosed"] for row in rows} == {"60"}
    assert (out / "curve.png").is_file() and (out / "diagnosed-60" / "comparison.html").is_file()
    study = out / "seed-0" / "diagnosed-60"
    pairs = read_preferences(study / "both.jsonl")
    assert len(pairs) == 60 * scarce.PAIRS.variants
    assert len(read_preferences(study / "diagnoses.jsonl")) == 60 * scarce.PAIRS.variants
    monkeypatch.setattr(arms, "run_arm", lambda *_: pytest.fail("ran again"))
    assert run_studies(argparse.Namespace(out=str(out), diagnosed=[60], seeds=1)) == tables


def test_numbers_out_of_range(tmp_path):
    with pytest.raises(InputError, match="--diagnosed at least 50"):
        run_studies(argparse.Namespace(out=str(tmp_path), diagnosed=[10], seeds=1))


def test_the_lessons_ask_for_findings_of_the_note_and_for_diseases_at_random(small, tmp_path):
    class Stop(Exception):
        pass

    def train(config):
        raise Stop

    with pytest.raises(Stop):
        scarce.teach_reading(tmp_path, train, k=3)
    lessons = read_preferences(tmp_path / "lessons.jsonl", require_rejected=False)
    lists = [(lesson.prompt[1]["content"], lesson.chosen.text.split("\n")) for lesson in lessons]
    assert len(lists) == 40
    diseases = [lines for _, lines in lists[::2]]
    assert all(lines[0] == "POTENTIAL_DISEASES:" and len(lines) == 4 for lines in diseases)
    assert len({lines[1] for lines in diseases}) > 10
    for note, lines in lists[1::2]:
        assert lines[0] == "FINDINGS:" and all(line.split(". ", 1)[1] in note for line in lines[1:])

"""The three populations: measured frequencies against the documented table."""

import re
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mint.demo import __main__ as demo
from mint.prefs.edit_pairs import read_asked
from mint.synthetic import radiographs
from mint.synthetic.populations import POPULATIONS
from mint.synthetic.radiographs import DEGREES, KINDS, ZONED, ZONES, draw_radiograph

COUNT, CLOSE = 4000, 0.05  # more than four standard errors of a frequency among 2,000
THIRDS = (1 / 3, 1 / 3, 1 / 3)


class NoFilm:
    """Findings are sampled, nothing is drawn."""

    def __init__(self, rng):
        for kind in KINDS:
            setattr(self, kind, lambda side, zone, degree: np.ones((1, 1), bool))
        self.tube, self.finish = lambda: None, lambda: Image.new("RGB", (1, 1))


@cache
def drawn(name):
    """What every patient of a sample of a population has, by kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(radiographs, "_Film", NoFilm)
        found = [draw_radiograph(f"{name}/{number}", POPULATIONS[name]) for number in range(COUNT)]
    return [{f.kind: f for f in one.findings} | ({"tube": True} if one.tube else {}) for one in found]


def share(patients, what, of):
    """How many of the patients for whom ``of`` holds have ``what``."""
    some = [patient for patient in patients if of(patient)]
    return sum(map(what, some)) / len(some)


def parse(cell):
    """Probabilities of a cell of the table."""
    return THIRDS if "each" in cell else tuple(float(Fraction(part)) for part in cell.split(", "))


def documented():
    """The table of docs/fire_findings.md: row -> population -> probabilities."""
    text = (Path(__file__).parents[2] / "docs" / "fire_findings.md").read_text(encoding="utf-8")
    head, _, *lines = text[text.index("| probability |") :].split("\n\n")[0].splitlines()
    names = [cell.strip() for cell in head.strip("|").split("|")][1:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(names, map(parse, row[1:]), strict=True)) for row in rows}


@pytest.mark.parametrize("name", POPULATIONS)
def test_frequencies_are_those_of_the_table(name):
    patients, table = drawn(name), {row: cells[name] for row, cells in documented().items()}
    pairs = {kind: habit.beside for kind, habit in POPULATIONS["ward"].habits.items() if habit.beside}
    pairs["tube"] = "pneumothorax"
    for kind, beside in pairs.items():
        (row,) = (row for row in table if re.fullmatch(f"{kind}, without and with an? {beside}", row))
        for present, expected in zip((False, True), table[row] * (2 // len(table[row])), strict=True):
            found = share(patients, lambda p, k=kind: k in p, lambda p, b=beside, w=present: (b in p) == w)
            assert found == pytest.approx(expected, abs=CLOSE), (row, present)
    for kind in KINDS:
        here = [patient[kind] for patient in patients if kind in patient]
        assert len(here) / COUNT == pytest.approx(0.5, abs=CLOSE)
        rows = [row.split(": ") for row in table]
        (side,) = (": ".join(row) for row in rows if row[0] == "left side" and kind in row[1])
        (degree,) = (": ".join(row) for row in rows if kind in row[0] and row[-1] == ", ".join(DEGREES))
        assert np.mean([f.side == "left" for f in here]) == pytest.approx(table[side][0], abs=CLOSE)
        assert [np.mean([f.degree == d for f in here]) for d in DEGREES] == pytest.approx(table[degree], abs=CLOSE)
        if kind in ZONED:
            expected = table[f"{kind}: {', '.join(ZONES)}"]
            assert [np.mean([f.zone == zone for f in here]) for zone in ZONES] == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("name", POPULATIONS)
def test_marginals_are_even_in_all(name):
    """What a model cannot use: the populations differ in correlations alone."""
    patients = drawn(name)
    findings = [patient[kind] for patient in patients for kind in KINDS if kind in patient]
    assert np.mean(["tube" in patient for patient in patients]) == pytest.approx(0.5, abs=CLOSE)
    assert np.mean([f.side == "left" for f in findings]) == pytest.approx(0.5, abs=CLOSE)
    assert [np.mean([f.degree == d for f in findings]) for d in DEGREES] == pytest.approx(THIRDS, abs=CLOSE)
    zones = [f.zone for f in findings if f.zone]
    assert [zones.count(zone) / len(zones) for zone in ZONES] == pytest.approx(THIRDS, abs=CLOSE)


def test_a_tube_is_seen_beside_every_lesion_that_is_hidden():
    """It is bright in the midline, and no lesion's mask covers it."""
    seen = [draw_radiograph(f"tube/{number}", POPULATIONS["balanced"]) for number in range(60)]
    column = {with_tube: [] for with_tube in (False, True)}
    for one in seen:
        pixels = np.asarray(one.image)[..., 0].astype(float)
        column[one.tube].append(pixels[2:14, 28:36].max(1).mean() - np.median(pixels))
        assert not any(finding.mask[:18, 31:33].any() for finding in one.findings)
    assert np.mean(column[True]) > np.mean(column[False]) + 30


def test_a_population_is_written(tmp_path):
    """The sets that the command writes for a seed differ by population alone."""
    sides = {}
    for name in ("ward", "reversed"):
        command = ["radiographs", "--out", f"{tmp_path}/{name}", "--taught", "1", "--asked", "25", "--unseen", "1"]
        assert demo.main([*command, "--patients", name]) == 0
        truths = {one.images: one.truth for one in read_asked(tmp_path / name / "questions.jsonl")}
        found = [f for truth in truths.values() for f in truth.findings if "effusion" in f.names and f.present]
        sides[name] = np.mean([f.side == "left" for f in found])
    assert sides["ward"] > 0.6 and sides["reversed"] < 0.4

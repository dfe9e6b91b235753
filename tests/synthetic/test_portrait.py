"""Drawn portraits: by seed, of every finding and both extremes of every trait, each visible; the contact sheet."""

import csv
import gzip
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mint.demo.__main__ import main
from mint.errors import InputError
from mint.synthetic.canvas import SIZE
from mint.synthetic.cohort import load_syndromes
from mint.synthetic.face import LIMIT, TRAITS, Face, make_face, read_findings
from mint.synthetic.gallery import write_gallery
from mint.synthetic.portrait import KNOWN_FINDINGS, Drawing, draw_portrait

SHARED = Path(__file__).parents[3] / "shared" / "data"


def pixels(*args):
    return np.asarray(draw_portrait(*args), dtype=float)


def drawn(**traits):
    """The same person with these traits, without the noise of light and camera."""
    face = Face(**traits)
    drawing = Drawing(face, random.Random(4), 10.0, "male")
    drawing.draw()
    image = np.asarray(drawing.finish(np.random.default_rng(0)), dtype=float)
    return image


def test_the_same_arguments_give_the_same_picture():
    first = draw_portrait(["HP:0000316", "HP:0000508"], "a", 4, "female")
    assert first.size == (SIZE, SIZE) and first.mode == "RGB"
    assert first.tobytes() == draw_portrait(["HP:0000508", "HP:0000316", "HP:0000508"], "a", 4, "female").tobytes()
    assert first.tobytes() != draw_portrait(["HP:0000316", "HP:0000508"], "b", 4, "female").tobytes()


def test_every_finding_of_the_cohort_is_drawn():
    facial = {feature.id for syndrome in load_syndromes() for feature in syndrome.features if feature.facial}
    assert facial <= KNOWN_FINDINGS


@pytest.mark.skipif(not (SHARED / "hpo" / "terms.tsv.gz").is_file(), reason="no HPO terms beside the project")
def test_labels_are_those_of_the_ontology():
    with gzip.open(SHARED / "hpo" / "terms.tsv.gz", "rt", encoding="utf-8") as file:
        labels = {row["id"]: row["label"] for row in csv.DictReader(file, delimiter="\t")}
    table = Path(__file__).parents[2] / "mint" / "synthetic" / "facial_terms.tsv"
    rows = [line.split("\t")[:2] for line in table.read_text(encoding="utf-8").splitlines() if line.startswith("HP:")]
    assert len({term for term, _ in rows}) == len(rows) > 200
    assert [(term, labels.get(term)) for term, _ in rows] == [tuple(row) for row in rows]


@pytest.mark.parametrize("trait", TRAITS)
def test_every_trait_shows(trait):
    """Somewhere a clear change: ten grey values in at least six pixels (an earlobe's crease is as small as that)."""
    table = [changes for changes in read_findings().values() if trait in changes]
    assert table, "no finding needs this trait"
    sign = 1 if max(changes[trait] for changes in table) > 0 else -1
    context = {"mouth_open": 0.6} if trait.startswith(("teeth", "tongue")) else {}
    context |= {"tongue": 1.0} if trait == "tongue_cleft" else {"lash_length": 1.0} if trait == "lash_curl" else {}
    change = np.abs(drawn(**context, **{trait: sign}) - drawn(**context)).max(2)
    assert (change > 10).sum() >= 6, f"{trait}: {(change > 10).sum()} pixels"


def test_distances_are_what_the_traits_say():
    """Hypertelorism sets the irises apart, low-set ears lie lower, a long philtrum lowers the mouth."""

    def measured(**traits):
        return Drawing(Face(**traits), random.Random(1), 10.0, "female")

    plain = measured()
    assert measured(eye_distance=1).eye_x - plain.eye_x == pytest.approx(3.4)
    assert measured(philtrum_length=1).mouth_y - plain.mouth_y == pytest.approx(3.6)
    assert measured(nose_length=-1).nose_y < plain.nose_y and measured(chin_depth=-1).chin < plain.chin


def test_traits_stay_within_limits_and_faces_differ():
    many = sorted(KNOWN_FINDINGS)
    face = make_face(many, random.Random(0), 40, "male")
    assert all(abs(getattr(face, name)) <= LIMIT for name in TRAITS)
    draw_portrait(many, "all")
    draw_portrait(["HP:9999999"], 0)  # not drawn, no error
    faces = [make_face([], random.Random(i), 10, "male").eye_distance for i in range(200)]
    assert 0.1 < np.std(faces) < 0.25 and abs(np.mean(faces)) < 0.05


def test_extremes_of_age_and_unknown_patients():
    for age in (0.0, 0.02, 110.0, None):
        for sex in ("male", "female", None, "unknown"):
            assert pixels([], "x", age, sex).std() > 10


def test_the_contact_sheet(tmp_path, capsys):
    assert main(["gallery", "--out", str(tmp_path / "g.png"), "--patients", "1"]) == 0
    with Image.open(tmp_path / "g.png") as sheet:
        assert sheet.format == "PNG" and sheet.height > 14 * SIZE
    with pytest.raises(InputError, match="cannot be written"):
        write_gallery(tmp_path / "nowhere" / "g.png", 1)
    with pytest.raises(InputError, match="at least one patient"):
        write_gallery(tmp_path / "g.png", 0)

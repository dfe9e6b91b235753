"""Faces to learn from: drawn after the cases' findings, named by a network that has seen them."""

import json

import pytest

from mint.data.cases import Case, Term
from mint.errors import InputError
from mint.models import load_model
from mint.synthetic.faces import draw_faces, fit_faces
from mint.teachers.vilt_teacher import FusionTeacher, load_teacher
from mint.teachers.vilt_training import FusionSettings, fit_teacher

SETS = [["HP:0000574", "HP:0010808"], ["HP:0002211"], ["HP:0007418"], ["HP:0009720", "HP:0000411"]]


def cases(count=40):
    return [
        Case(f"c{i}", "AB"[i % 2], observed=(Term("", f"Sign {i % 9}"),), facial=tuple(Term(t, t) for t in SETS[i % 4]))
        for i in range(count)
    ]


def test_faces_follow_the_cases(tmp_path):
    faces = draw_faces(200, tmp_path, SETS)
    assert len(faces) == 200 and all(face.image.is_file() and face.facial for face in faces)
    found = [{term.id for term in face.facial} for face in faces]
    assert {term for terms in found for term in terms} == {term for terms in SETS for term in terms}
    assert (
        0.4 < sum(set(s) <= terms for terms in found for s in SETS[:1]) / 50 < 1.2
    )  # a quarter of them, less what is left out
    again = draw_faces(5, tmp_path / "again", SETS)
    assert [face.image.read_bytes() for face in again] == [face.image.read_bytes() for face in faces[:5]]


def test_a_network_learns_to_name_findings_and_a_teacher_begins_with_it(tmp_path):
    fit_faces(cases(), tmp_path / "faces", 400, epochs=6)
    record = json.loads((tmp_path / "faces" / "fit.json").read_text())
    first, last = record["epochs"][0]["loss"], record["epochs"][-1]["loss"]
    assert last < 0.75 * first and record["base"] is not None
    assert set(load_model(tmp_path / "faces").config.labels) == {term for terms in SETS for term in terms}
    settings = FusionSettings.from_scratch(epochs=1, held_out=0.0)
    teacher = fit_teacher(cases(), tmp_path / "teacher", settings, base=str(tmp_path / "faces"))
    assert isinstance(teacher, FusionTeacher) and load_teacher(tmp_path / "teacher").classes == ("A", "B")


def test_what_cannot_be_learned_from(tmp_path):
    with pytest.raises(InputError, match="no case has a facial finding"):
        fit_faces([Case("a", "A", facial=(Term("HP:9999999", "x"),))], tmp_path / "f", 200)
    with pytest.raises(InputError, match="at least 100 faces"):
        fit_faces(cases(), tmp_path / "f", 99)

"""A teacher that names what it sees in a face, and counts findings of diagnosed patients."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mint.data.cases import Case, Term
from mint.errors import InputError
from mint.models import save_model
from mint.models.face_reader import FaceReader, FaceReaderConfig
from mint.teachers.findings_teacher import COUNTS, READING, FindingsTeacher, fit_reader, load_findings_teacher
from mint.teachers.naive_bayes import NaiveBayesTeacher

LEFT, RIGHT, COUGH = Term("HP:1", "Left mark"), Term("HP:2", "Right mark"), Term("HP:3", "Cough")


def face(folder, number, *terms):
    """A picture with a bar on the sides that the terms name."""
    image = Image.new("RGB", (112, 112), (120 + number % 40, 130, 140))
    draw = ImageDraw.Draw(image)
    for term, x in ((LEFT, 15), (RIGHT, 80)):
        if term in terms:
            draw.rectangle((x, 20, x + 18, 90), fill="black")
    path = folder / f"{number}-{'-'.join(term.id[-1] for term in terms)}.png"
    image.save(path)
    return path


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    sets = [(), (LEFT,), (RIGHT,), (LEFT, RIGHT)]
    faces = [Case(f"face-{n}", "", facial=sets[n % 4], image=face(folder, n, *sets[n % 4])) for n in range(64)]
    return fit_reader(faces, dataclasses.replace(READING, epochs=16, batch_size=16))


@pytest.fixture
def patients(tmp_path):
    """Two diseases that the face alone tells apart, each with a note that says nothing."""
    return [
        Case(f"p{n}", disease, observed=(COUGH,), image=face(tmp_path, n, term))
        for n, (disease, term) in enumerate([("Sinistra", LEFT), ("Dextra", RIGHT)] * 4)
    ]


def with_view(teacher, view):
    return FindingsTeacher(teacher.reader, teacher.counts, view)


def test_the_findings_of_new_faces_decide_where_the_note_says_nothing(reader, patients):
    teacher = FindingsTeacher.fit(reader, patients[:4])
    new = patients[4:]
    assert [teacher.classes[i] for i in teacher.scores(new).argmax(1)] == [case.disease for case in new]
    assert [with_view(teacher, "image").classes[i] for i in with_view(teacher, "image").scores(new).argmax(1)] == [
        case.disease for case in new
    ]
    text = with_view(teacher, "text").scores(new)
    assert np.allclose(text, text[0])


def test_scores_are_those_of_naive_bayes_over_note_and_seen_findings(reader, patients):
    teacher = FindingsTeacher.fit(reader, patients)
    shown = {"Sinistra": LEFT, "Dextra": RIGHT}
    seen = [dataclasses.replace(case, observed=(COUGH, shown[case.disease])) for case in patients]
    assert [case.observed for case in teacher.look(patients, "both")] == [case.observed for case in seen]
    expected = NaiveBayesTeacher(seen)
    assert np.array_equal(teacher.scores(patients, own=patients), expected.scores(seen))


def test_a_case_without_a_portrait_is_ranked_by_its_note(reader, patients):
    teacher = FindingsTeacher.fit(reader, patients)
    case = dataclasses.replace(patients[0], image=None, observed=(LEFT,))
    assert teacher.classes[teacher.scores([case]).argmax()] == "Sinistra"


def test_a_saved_teacher_gives_the_same_scores_and_holds_no_patient(reader, patients, tmp_path):
    teacher = FindingsTeacher.fit(reader, patients)
    teacher.save(tmp_path / "teacher")
    assert not any(case.id in (tmp_path / "teacher" / COUNTS).read_text() for case in patients)
    for view in ("both", "image", "text"):
        loaded = load_findings_teacher(tmp_path / "teacher", view=view)
        assert np.allclose(loaded.scores(patients), with_view(teacher, view).scores(patients))


def test_damaged_parts_are_named(reader, patients, tmp_path):
    folder = tmp_path / "teacher"
    FindingsTeacher.fit(reader, patients).save(folder)
    counts = json.loads((folder / COUNTS).read_text())
    (folder / COUNTS).write_text(json.dumps({"both": counts["both"]}))
    with pytest.raises(InputError, match="lacks the counts of a view"):
        load_findings_teacher(folder)
    counts["text"]["cases"] = [1, 2, 3]
    (folder / COUNTS).write_text(json.dumps(counts))
    with pytest.raises(InputError, match="another form"):
        load_findings_teacher(folder)


@pytest.mark.parametrize("broken", [{"widths": []}, {"image_size": 20, "widths": [4, 4, 4]}, {"findings": None}])
def test_settings_that_make_no_network(broken):
    raw = {"findings": [["HP:1", "x"]], "image_size": 16, "widths": [4], "hidden_size": 8} | broken
    with pytest.raises(InputError, match="config.json"):
        FaceReaderConfig.from_dict(raw)


def test_the_network_halves_the_image_with_every_convolution():
    raw = {"findings": [["HP:1", "x"], ["HP:2", "y"]], "image_size": 16, "widths": [4, 6], "hidden_size": 8}
    model = FaceReader(FaceReaderConfig.from_dict(raw))
    assert model.hidden.in_features == 6 * 4 * 4
    assert model(torch.zeros(3, 3, 16, 16)).shape == (3, 2)


def test_faces_without_findings_are_an_error(tmp_path):
    with pytest.raises(InputError, match="no face has a finding"):
        fit_reader([Case("a", "", image=face(tmp_path, 1))])


def test_a_bare_reader_is_no_teacher(reader, tmp_path):
    save_model(reader, tmp_path / "reader")
    with pytest.raises(InputError, match="holds a face reader, no teacher"):
        load_findings_teacher(tmp_path / "reader")

"""The multimodal teacher: its inputs, learning from both modalities, folds, and cohorts that it refuses."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mint.data.cases import Case, Term
from mint.data.phrases import train_phrases
from mint.data.text_encoder import TextEncoder
from mint.errors import InputError
from mint.models import init_model, load_model, save_model
from mint.teachers import vilt_training
from mint.teachers.loading import load_teachers
from mint.teachers.vilt_teacher import FoldedTeacher, FusionInputs, FusionTeacher, describe, load_teacher
from mint.teachers.vilt_training import CONTROL, FusionSettings, count, fit_folds, fit_teacher
from tests.reference.weights import TINY_LLAMA

SETTINGS = FusionSettings.from_scratch(epochs=20, batch_size=16, lr=3e-3, held_out=0.2, patience=20, drop_terms=0.0)


def term(label):
    return Term("", label)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Four diseases: colour tells A, B from C, D; the note tells A, C from B, D. Neither alone is enough."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    cases = []
    for i in range(80):
        red, seizures = i % 4 < 2, i % 2 == 0
        pixels = rng.integers(0, 60, (32, 32, 3)) + np.array([150, 0, 0] if red else [0, 0, 150])
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        labels = ["Seizure" if seizures else "Short stature", f"Finding {i % 7}"]
        cases.append(
            Case(f"c{i}", "ABCD"[i % 4], observed=tuple(map(term, labels)), image=folder / f"{i}.png", subject=f"p{i}")
        )
    return cases


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    def tiny(labels, vocabulary, *_, **__):
        return real(
            labels, vocabulary, image_size=32, patch_size=8, width=32, layers=2, heads=2, text_length=16, dropout=0.0
        )

    real = vilt_training.small_config
    monkeypatch.setattr(vilt_training, "small_config", tiny)
    monkeypatch.setattr(vilt_training, "IMAGE_SIZE", 32)
    monkeypatch.setattr(vilt_training, "PATCH_SIZE", 8)
    monkeypatch.setattr(vilt_training, "VOCABULARY", 400)


@pytest.fixture(scope="module")
def teacher(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit") / "teacher"
    with pytest.MonkeyPatch.context() as patch:
        small_network.__wrapped__(patch)
        fit_teacher(cohort, folder, SETTINGS)
    return folder


def accuracy(teacher, cases):
    found = teacher.scores(cases).argmax(1)
    return np.mean([teacher.classes[i] == case.disease for i, case in zip(found, cases, strict=True)])


def test_the_text_of_a_case():
    case = Case(
        "x", "d", age_years=3.5, sex="male", observed=(term("Growth delay, severe (Z < -3)"), term("Band and bone"))
    )
    assert describe(case) == "Sex male, Age 3 years 6 months, Growth delay severe Z < -3, Band bone"
    absent = tuple(term(f"Sign {i}") for i in range(9))
    assert describe(Case("x", "d", excluded=absent)) == ", ".join(f"no Sign {i}" for i in range(6))
    assert describe(Case("x", "d")) == "*"
    assert describe(replace(case, text="as it is, and so")) == "as it is, and so"
    european = Case("x", "d", age_years=3.5, sex="male", ethnicity="European", observed=(term("Ptosis"),))
    assert describe(european) == "Sex male, Age 3 years 6 months, Ethnicity European, Ptosis"
    summary = {"summary": "A rare disorder of the face, and bones."}
    bare = replace(european, observed=(), excluded=(term("Seizure"),), **summary)
    assert (
        describe(bare)
        == "Sex male, Age 3 years 6 months, Ethnicity European, A rare disorder of the face bones, no Seizure"
    )
    line = "Sex male Age 3 years 6 months Ethnicity European"
    assert describe(replace(case, observed=(), text=line, **summary)) == f"{line} A rare disorder of the face bones"


def test_text_never_becomes_a_control_token(tmp_path):
    train_phrases(["Seizure, Ptosis"], 300, CONTROL, "[CLS] $A [SEP]").save(str(tmp_path / "tokenizer.json"))
    encoder = TextEncoder(tmp_path, limit=12)
    ids, cut = encoder.encode("Seizure [SEP]")
    assert ids[0] == encoder.first and ids[-1] == encoder.last and ids[1:-1].count(encoder.last) == 0 and not cut
    long, cut = encoder.encode("unseen words to be spelt")
    assert len(long) == 12 and cut and long[-1] == encoder.last
    tokens, mask = encoder.batch([ids, long])
    assert tokens[0, len(ids) :].eq(encoder.padding).all() and mask[0].sum() == len(ids) and mask[1].all()
    assert encoder.batch([long, long])[1] is None


def test_it_learns_from_both_and_ranks_with_either(cohort, teacher):
    both, image, text = (load_teacher(teacher, view=view) for view in ("both", "image", "text"))
    assert both.classes == ("A", "B", "C", "D")
    assert accuracy(both, cohort) > 0.95
    for teacher, pairs in ((image, ("AB", "CD")), (text, ("AC", "BD"))):
        assert 0.3 < accuracy(teacher, cohort) < 0.8  # half of what is to be known
        best_two = np.argsort(-teacher.scores(cohort), 1)[:, :2]
        found = [{teacher.classes[i] for i in row} for row in best_two]
        pair_of = {name: set(pair) for pair in pairs for name in pair}
        right = [names == pair_of[case.disease] for case, names in zip(cohort, found, strict=True)]
        assert np.mean(right) > 0.9


def test_a_saved_teacher_is_a_model_directory(cohort, teacher):
    record = json.loads((teacher / "fit.json").read_text())
    assert record["cases"] == record["with_image"] == 80 and record["texts_cut"] == 0
    assert {"epoch", "loss", "held_out_loss", "held_out_top_1"} == set(record["epochs"][0])
    assert load_model(teacher).config.labels == ("A", "B", "C", "D")
    assert not list(teacher.parent.glob(".fitting-*"))
    again = fit_teacher(cohort, teacher.parent / "again", SETTINGS)
    np.testing.assert_array_equal(again.scores(cohort[:5]), load_teacher(teacher).scores(cohort[:5]))  # by seed
    with pytest.raises(InputError, match="holds a teacher already"):
        fit_teacher(cohort, teacher, SETTINGS)


def test_the_best_epoch_is_kept_and_training_stops(cohort, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 4.0, 0.0])
    states = []

    def evaluate(self):
        states.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return {"held_out_loss": next(losses), "held_out_top_1": 0.0}

    monkeypatch.setattr(vilt_training._Fit, "_evaluate", evaluate)
    teacher = fit_teacher(cohort, tmp_path / "t", replace(SETTINGS, patience=2))
    assert len(states) == 4
    assert all(torch.equal(value, states[1][name]) for name, value in teacher.model.state_dict().items())


def test_every_epoch_is_printed_and_the_loss_in_between(cohort, tmp_path, monkeypatch, capsys):
    """Without a terminal: lines with the loss, one line for each epoch, and the epoch that is kept."""
    losses = iter([0.5, 0.25, 0.75])
    monkeypatch.setattr(
        vilt_training._Fit, "_evaluate", lambda _: {"held_out_loss": next(losses), "held_out_top_1": 0.125}
    )
    monkeypatch.setattr("mint.progress.SECONDS", 0.0)
    fit_teacher(cohort, tmp_path / "t", replace(SETTINGS, epochs=9, patience=1), title="teacher 2/5")
    printed = capsys.readouterr()
    steps = re.findall(r"^teacher 2/5: (\d+)/(\d+) steps, .*, loss \d+\.\d{3}", printed.err, re.MULTILINE)
    total = int(steps[0][1])
    assert [int(step) for step, _ in steps[:4]] == [1, 2, 3, 4]
    assert [int(step) for step, _ in steps] == list(range(1, total // 3 + 1))  # three epochs of nine
    epochs = re.findall(r"^teacher 2/5: epoch (.*)", printed.err, re.MULTILINE)
    assert [re.sub(r", loss [\d.]+,", ",", line) for line in epochs] == [
        "1/9, held-out loss 0.500, held-out top-1 12.5 %",
        "2/9, held-out loss 0.250, held-out top-1 12.5 %",
        "3/9, held-out loss 0.750, held-out top-1 12.5 %",
    ]
    assert printed.out == f"teacher 2/5: kept the weights of epoch {epochs[1]}\n"


def test_missing_modalities(cohort, teacher):
    """Without an image, a case is classified by its text; without text, by its image; without both, by the prior."""
    both, image, text = (load_teacher(teacher, view=view) for view in ("both", "image", "text"))
    no_image, no_text = replace(cohort[0], image=None), replace(cohort[0], observed=())
    np.testing.assert_allclose(both.scores([no_image]), text.scores(cohort[:1]), atol=1e-5)
    np.testing.assert_allclose(both.scores([no_text]), image.scores(cohort[:1]), atol=1e-5)
    assert np.isfinite(both.scores([replace(no_image, observed=())])).all()
    assert both.scores([]).shape == (0, 4)


def test_folds_rank_their_own_cases_unseen(cohort, tmp_path):
    quick = replace(SETTINGS, epochs=1)
    folded = fit_folds(cohort, tmp_path / "t", 2, quick)
    assert sorted(np.bincount(list(folded.fold_of.values()))) == [40, 40]
    for fold in range(2):
        seen = json.loads((tmp_path / "t" / f"fold-{fold + 1}" / "fit.json").read_text())
        assert seen["cases"] == 40
    loaded = load_teacher(tmp_path / "t")
    assert isinstance(loaded, FoldedTeacher) and loaded.classes == ("A", "B", "C", "D")
    parts = [teacher.scores(cohort[:6]) for teacher in loaded.teachers]
    own = loaded.scores(cohort[:6], cohort[:6])
    for row, case in enumerate(cohort[:6]):
        np.testing.assert_allclose(own[row], parts[loaded.fold_of[case.id]][row], atol=1e-5)
    np.testing.assert_allclose(loaded.scores(cohort[:6]), (parts[0] + parts[1]) / 2, atol=1e-5)
    stranger = [replace(cohort[0], id="new")]
    np.testing.assert_allclose(loaded.scores(stranger, stranger), (parts[0] + parts[1])[:1] / 2, atol=1e-5)
    with pytest.raises(InputError, match="holds a teacher already"):
        fit_folds(cohort, tmp_path / "t", 2, quick)
    with pytest.raises(InputError, match="at least two folds"):
        fit_folds(cohort, tmp_path / "u", 1, quick)


def test_several_teachers_rank_as_their_mean(cohort, teacher, tmp_path):
    fit_teacher(cohort, tmp_path / "other", replace(SETTINGS, epochs=1, seed=5))
    both = load_teachers([teacher, tmp_path / "other"])
    parts = [load_teacher(folder).scores(cohort[:5]) for folder in (teacher, tmp_path / "other")]
    np.testing.assert_allclose(both.scores(cohort[:5]), (parts[0] + parts[1]) / 2, atol=1e-5)
    assert load_teachers([teacher]).name == "fusion" and both.classes == load_teacher(teacher).classes
    fit_teacher([c for c in cohort if c.disease in "AB"], tmp_path / "few", replace(SETTINGS, epochs=1))
    with pytest.raises(InputError, match="same diseases"):
        load_teachers([teacher, tmp_path / "few"])


def test_patients_stay_together_across_folds(cohort, tmp_path):
    twice = [replace(case, subject=f"p{i // 2}") for i, case in enumerate(cohort)]
    folded = fit_folds(twice, tmp_path / "t", 3, replace(SETTINGS, epochs=1))
    assert all(folded.fold_of[f"c{2 * i}"] == folded.fold_of[f"c{2 * i + 1}"] for i in range(40))


def test_a_pretrained_network_gets_a_new_head(cohort, teacher, tmp_path):
    some = [case for case in cohort if case.disease in "AB"]
    fitted = fit_teacher(some, tmp_path / "t", replace(SETTINGS, epochs=1, lr=1e-9), base=str(teacher))
    assert fitted.classes == ("A", "B") and fitted.model.classifier[3].weight.shape[0] == 2
    kept, before = fitted.model.state_dict(), load_model(teacher).state_dict()
    assert all(torch.allclose(kept[name], before[name], atol=1e-6) for name in before if name.startswith("vilt."))
    assert isinstance(load_teacher(tmp_path / "t"), FusionTeacher) and (tmp_path / "t" / "tokenizer.json").is_file()


def test_what_a_cohort_offers(cohort):
    cases = [*cohort[:4], Case("x", "E", subject="p0"), replace(cohort[0], id="y", image=None)]
    assert count(cases) == {"cases": 6, "diseases": 5, "diseases_of_one_patient": 5, "with_image": 4, "with_text": 5}


def test_the_limit_on_text_is_counted(cohort, teacher):
    inputs = FusionInputs(teacher, 6)
    inputs.batch(["Seizure, unheard of before", "*", None], [None] * 3)
    assert inputs.cut == 1


def test_what_cannot_be_used(cohort, teacher, tmp_path):
    with pytest.raises(InputError, match="at least two diseases"):
        fit_teacher([case for case in cohort if case.disease == "A"], tmp_path / "t", SETTINGS)
    for wrong in ({"epochs": 0}, {"lr": 0.0}, {"held_out": 1.0}, {"drop_terms": 0.7}):
        with pytest.raises(InputError, match="the teacher's"):
            fit_teacher(cohort, tmp_path / "t", replace(SETTINGS, **wrong))
    broken = tmp_path / "x.png"
    broken.write_bytes(b"no image")
    with pytest.raises(InputError, match="x.png cannot be read"):
        fit_teacher([*cohort, replace(cohort[0], id="b", image=broken)], tmp_path / "t", SETTINGS)
    with pytest.raises(InputError, match="is not a model directory"):
        load_teacher(tmp_path)
    save_model(init_model(TINY_LLAMA), tmp_path / "llama")
    with pytest.raises(InputError, match="holds no fusion classifier"):
        load_teacher(tmp_path / "llama")
    other = shutil.copytree(teacher, tmp_path / "other")
    (other / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    with pytest.raises(InputError, match="other has no ViLT image processor"):
        load_teacher(other)
    (tmp_path / "folds.json").write_text("{}")
    with pytest.raises(InputError, match="folds.json cannot be read"):
        load_teacher(tmp_path)

"""Notes, prompts and lists."""

import random
from dataclasses import replace

import pytest

from mint.data.cases import (
    Case,
    Term,
    diagnosis_messages,
    format_list,
    in_prose,
    parse_list,
    read_term_ids,
    vary,
    write_note,
)
from mint.errors import InputError

CASE = Case(
    "1",
    "Noonan syndrome 1",
    age_years=3.5,
    sex="female",
    observed=(Term("HP:1", "Short stature"), Term("HP:2", "EEG abnormality"), Term("HP:3", "Scoliosis")),
    excluded=(Term("HP:4", "Ptosis"), Term("HP:5", "Cleft palate")),
)


def test_the_fixed_note():
    assert write_note(CASE) == (
        "A 3-year-old girl presents with short stature, EEG abnormality, and scoliosis. "
        "There is no ptosis or cleft palate."
    )


def test_a_note_survives_any_missing_field():
    assert write_note(Case("1", "x")) == "A patient is referred for genetic counselling."
    assert write_note(Case("1", "x", age_years=0.0, sex="male")).startswith("A newborn boy")
    assert write_note(Case("1", "x", age_years=0.5)).startswith("A 6-month-old patient")
    assert write_note(Case("1", "x", age_years=80, sex="male")).startswith("An 80-year-old man")
    assert write_note(Case("1", "x", text="As it was written.")) == "As it was written."


def test_what_is_for_the_teacher_alone_is_not_in_the_note():
    more = {
        "ethnicity": "European",
        "genes": ("ELN",),
        "summary": "A disorder of elastin.",
        "facial": (Term("", "Ptosis"),),
    }
    assert write_note(replace(CASE, **more)) == write_note(CASE)
    assert write_note(Case("1", "x", text="As it was.", **more)) == "As it was."


def test_wording_varies_but_every_label_stays_verbatim():
    notes = {write_note(CASE, random.Random(seed)) for seed in range(40)}
    assert len(notes) > 8
    for note in notes:
        assert all(in_prose(t.label) in note for t in CASE.observed + CASE.excluded) and "Noonan" not in note


def test_excluded_findings_are_limited():
    many = Case("1", "x", excluded=tuple(Term(str(i), f"Sign number{i}") for i in range(30)))
    assert write_note(many, excluded_limit=2).endswith("There is no sign number0 or sign number1.")


@pytest.mark.parametrize(
    "label, prose",
    [
        ("Seizure", "seizure"),
        ("EEG abnormality", "EEG abnormality"),
        ("T-cell defect", "T-cell defect"),
        ("", ""),
        ("Low-set ears", "low-set ears"),
        ("Dandy-Walker malformation", "Dandy-Walker malformation"),
        ("Brushfield spots", "Brushfield spots"),
    ],  # fmt: skip
)
def test_labels_in_prose(label, prose):
    assert in_prose(label) == prose


def test_variants_keep_at_least_one_finding_and_are_subsets():
    rng = random.Random(0)
    sizes = set()
    for _ in range(200):
        varied = vary(CASE, rng, drop=0.5)
        assert 1 <= len(varied.observed) and set(varied.observed) <= set(CASE.observed)
        sizes.add(len(varied.observed))
    assert sizes == {1, 2, 3}
    assert vary(Case("1", "x"), rng).observed == ()


def test_the_prompt_is_the_recipe():
    system, user = diagnosis_messages("A note.")
    assert system["content"].startswith("You are a genetic counselor.") and system["role"] == "system"
    assert user["content"].startswith("A note.\n\n") and "exactly 10" in user["content"]
    assert "POTENTIAL_DISEASES:\n1. 'Disease1'" in user["content"]


def test_lists_round_trip():
    names = ["Cutis laxa, autosomal recessive, type IIB", "22q11.2 deletion", "3-M syndrome 1", "X (Y) [Z]"]
    assert format_list(names[:1]) == "POTENTIAL_DISEASES:\n1. Cutis laxa, autosomal recessive, type IIB"
    assert parse_list(format_list(names)) == names


@pytest.mark.parametrize(
    "answer",
    [
        "POTENTIAL_DISEASES:\n1. 'A b'\n2. \"C d\"",
        "Sure, here they are.\n\npotential_diseases:\n1) **A b**\n2) C d\n\nI hope this helps.\n3. not this",
        "1. A b\n2. C d",
        "- A b\n* C d",
        "POTENTIAL_DISEASES:\n\n1.  [A b]\n\n2. C d  ",
        "POTENTIAL_DISEASES:\n1.A b\n2.C d",
        "Stra\u00dfe\u00df\u00df\u00df\u00df. POTENTIAL_DISEASES:\n1. A b\n2. C d",  # upper() makes this text longer
    ],
)
def test_lists_are_found_among_what_models_write_around_them(answer):
    assert parse_list(answer) == ["A b", "C d"]


@pytest.mark.parametrize("answer", ["", "I do not know.", "POTENTIAL_DISEASES:", "POTENTIAL_DISEASES:\n1. \n2. ''"])
def test_no_list_is_an_empty_list(answer):
    assert [name for name in parse_list(answer) if name != "''"] == []


def test_term_files(tmp_path):
    path = tmp_path / "terms.tsv"
    path.write_text("hpo_id\tlabel\nHP:0000369\tLow-set ears\nHP:0000486\tStrabismus\n")
    assert read_term_ids(path) == {"HP:0000369", "HP:0000486"}
    path.write_text("nothing\n")
    for bad in (path, tmp_path / "missing"):
        with pytest.raises(InputError):
            read_term_ids(bad)

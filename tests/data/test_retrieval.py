"""Retrieval: descriptions by hand, BM25's order of chosen texts, a case never finds itself, invalid tables."""

import gzip

import pytest

from mint.data.cases import Case, Term, diagnosis_messages
from mint.data.prompts import Prompt
from mint.data.retrieval import (
    Passage,
    Retriever,
    describe_cases,
    is_description_folder,
    read_descriptions,
    write_description,
)
from mint.errors import InputError

TERMS = "id\tlabel\nHP:1\tPtosis\nHP:2\tSeizure\nHP:3\tShort stature\nHP:4\tAutosomal dominant inheritance\n"
NAMES = "disease_id\tname\nO:1\tFirst syndrome\nO:2\tSecond syndrome\n"
FEATURES = (
    "disease_id\thpo_id\tqualifier\tfrequency_value\taspect\n"
    "O:1\tHP:1\t\t0.2\tP\nO:1\tHP:2\t\t0.9\tP\nO:1\tHP:3\t\t\tP\nO:1\tHP:4\t\t\tI\n"
    "O:2\tHP:2\tNOT\t0.5\tP\nO:2\tHP:3\t\t0.5\tP\nO:3\tHP:3\t\t0.5\tP\nO:2\tHP:9\t\t0.5\tP\n"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "terms.tsv").write_text(TERMS)
    (tmp_path / "diseases.tsv").write_text(NAMES)
    (tmp_path / "disease_features.tsv.gz").write_bytes(gzip.compress(FEATURES.encode()))
    return tmp_path


def test_descriptions_of_a_table(folder):
    assert is_description_folder(folder) and not is_description_folder(folder.parent)
    assert read_descriptions(folder) == [
        Passage("O:1", "First syndrome. Very frequent: seizure. Occasional: ptosis. Also reported: short stature."),
        Passage("O:2", "Second syndrome. Frequent: short stature."),
    ]


def test_the_most_frequent_features_are_kept():
    features = [(i / 100, f"Sign {i:02d}") for i in range(100)]
    text = write_description("X", features)
    assert text.count("sign") == 40 and "sign 99" in text and "sign 60" in text and "sign 59" not in text
    assert write_description("X", []) == "X."


def test_the_passage_with_the_rare_word_comes_first():
    texts = ["seizure and ptosis", "seizure and fever", "seizure and rash", "ptosis", "glossoptosis, seizure"]
    retriever = Retriever([Passage(str(i), text) for i, text in enumerate(texts)])
    found = retriever.retrieve(["A girl with rash.", "Ptosis alone"], 2)
    assert found[0][0] == "seizure and rash" and found[1] == ["ptosis", "seizure and ptosis"]
    assert len(retriever.retrieve(["fever"], 99)[0]) == 5
    assert retriever.retrieve(["rash", "rash"], 1, ["2", "x"]) != [["seizure and rash"]] * 2
    assert retriever.retrieve(["rash"], 1, ["x"]) == [["seizure and rash"]]


def test_passages_stand_in_the_prompt():
    case = Case("a", "D", sex="male", observed=(Term("", "Ptosis"),))
    (passage,) = describe_cases([case])
    assert passage == Passage("a", "A male patient presents with ptosis. Diagnosis: D.")
    content = diagnosis_messages("NOTE", ["one", "two"])[1]["content"]
    assert content.startswith("NOTE\n\nPassages that may help:\n[1] one\n[2] two\n\nName exactly 10")
    assert "Passages" not in diagnosis_messages("NOTE")[1]["content"]
    other = Prompt("{passages} and {note}", "HEAD:")
    assert diagnosis_messages("NOTE", ["one"], prompt=other) == [{"role": "user", "content": "[1] one and NOTE"}]


def test_what_cannot_be_read(folder):
    for empty in ([], [Passage("a", "??")]):
        with pytest.raises(InputError, match="no passages"):
            Retriever(empty)
    with pytest.raises(InputError, match="at least one"):
        Retriever([Passage("a", "seizure")]).retrieve(["fever"], 0)
    assert Retriever([Passage("a", "seizure")]).retrieve(["??"], 3) == [["seizure"]]
    (folder / "terms.tsv").write_text("id\tname\n")
    with pytest.raises(InputError, match="terms.tsv lacks the columns label"):
        read_descriptions(folder)
    (folder / "terms.tsv").write_text("id\tlabel\nHP:1\n")
    with pytest.raises(InputError, match="terms.tsv:2: the row is too short"):
        read_descriptions(folder)
    (folder / "terms.tsv").write_text(TERMS)
    (folder / "disease_features.tsv.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="cannot be read"):
        read_descriptions(folder)
    (folder / "disease_features.tsv.gz").write_bytes(gzip.compress(FEATURES.encode())[:60])
    with pytest.raises(InputError, match="cannot be read"):
        read_descriptions(folder)

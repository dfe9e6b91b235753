"""One reader for all cohorts: what kind of cohort a path is, its split, facial findings, drawn portraits."""

import argparse
import json

import pytest
from PIL import Image

from mint.data.cases import Case, Term
from mint.errors import InputError
from mint.tasks.cohorts import add_cohort_options, add_genes, add_summaries, read_cohort


def options(*arguments):
    parser = argparse.ArgumentParser()
    add_cohort_options(parser)
    return parser.parse_args(["--cases", "x", *map(str, arguments)])


def packet(name, disease, *terms):
    return {
        "id": name,
        "subject": {"id": f"patient {name}"},
        "phenotypicFeatures": [{"type": {"id": term, "label": label}} for term, label in terms],
        "interpretations": [{"diagnosis": {"disease": {"id": "OMIM:1", "label": disease}}}],
    }


SPLITS = ("train", "val", "test")
PTOSIS, SEIZURE, STRANGE = ("HP:0000508", "Ptosis"), ("HP:0001250", "Seizure"), ("HP:0011245", "Strange ear")


@pytest.fixture
def packets(tmp_path):
    folder = tmp_path / "packets"
    folder.mkdir()
    rows = [("a/1", "A", PTOSIS, SEIZURE), ("b", "B", SEIZURE), ("c", "A", STRANGE, SEIZURE), ("d", "B", PTOSIS)]
    for place, (name, *rest) in enumerate(rows):
        (folder / f"{place}.json").write_text(json.dumps(packet(name, *rest)))
    (tmp_path / "face.tsv").write_text("id\tlabel\nHP:0000508\tPtosis\nHP:0011245\tStrange ear\n")
    return folder


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "table"
    folder.mkdir()
    lines = ["image_id,filename,disease,present_features,split"]
    for place in range(6):
        Image.new("RGB", (20, 20), (place, 0, 0)).save(folder / f"{place}.png")
        lines.append(
            f"i{place},{place}.png,{'AB'[place % 2]},HP:0000508 Ptosis;HP:0001250 Seizure,"
            + ("train" if place < 4 else "test")
        )
    (folder / "cohort.csv").write_text("\n".join(lines))
    return folder


def test_facial_findings_leave_the_note_and_are_drawn(packets, tmp_path, capsys):
    cases = read_cohort(str(packets), options("--face-terms", tmp_path / "face.tsv", "--portraits", tmp_path / "faces"))
    first = next(case for case in cases if case.id == "a/1")
    assert [t.label for t in first.observed] == ["Seizure"] and [t.label for t in first.facial] == ["Ptosis"]
    assert first.image == tmp_path / "faces" / "a_1.png"
    with Image.open(first.image) as image:
        assert image.size == (112, 112)
    assert next(case for case in cases if case.id == "b").image is None
    printed = capsys.readouterr().out
    assert "4 cases" in printed and "2 of 4 cases have a portrait" in printed
    assert "1 facial findings are not drawn: Strange ear (HP:0011245) x 1" in printed


def test_notes_alone_need_no_portraits(packets, tmp_path):
    flags = options("--face-terms", tmp_path / "face.tsv", "--portraits", tmp_path / "faces")
    cases = read_cohort(str(packets), flags, draw=False)
    assert all(case.image is None for case in cases) and not (tmp_path / "faces").exists()


def test_a_table_with_its_own_images_and_split(table, tmp_path, capsys):
    (tmp_path / "face.tsv").write_text("HP:0000508\n")
    cases = read_cohort(str(table), options("--split", "test", "--face-terms", tmp_path / "face.tsv"))
    assert [case.id for case in cases] == ["i4", "i5"] and all(case.image.is_file() for case in cases)
    assert all([t.id for t in case.facial] == ["HP:0000508"] for case in cases)
    assert len(read_cohort(str(table / "cohort.csv"), options("--split", "test"), "train")) == 4
    assert "2 cases of the test split" in capsys.readouterr().out
    kept = read_cohort(str(table), options("--face-terms", tmp_path / "face.tsv", "--portraits", tmp_path / "drawn"))
    assert all(case.image.parent == table for case in kept)  # a photograph is not drawn over


def test_what_cannot_be_read(packets, table, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.json").write_text(json.dumps(packet("a", "A", SEIZURE)))
    (tmp_path / "file").write_text("")
    face = tmp_path / "face.tsv"
    for path, arguments, message in (
        (tmp_path / "none", [], "does not exist"),
        (tmp_path / "one", ["--split", "test"], "the test split is empty"),
        (packets, ["--portraits", tmp_path / "p"], "no case has a facial finding that can be drawn"),
        (packets, ["--face-terms", face, "--portraits", tmp_path / "file"], "cannot be written"),
        (table, ["--hpo-terms", face], "must have the columns id and label"),
        (table, ["--hpo-terms", tmp_path / "none"], "none does not exist"),
    ):
        if "columns" in message:
            face.write_text("a\tb\n")
        with pytest.raises(InputError, match=message):
            read_cohort(str(path), options(*arguments))


def test_splits_in_separate_tables(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "7_aligned.jpg")
    for name, split in enumerate(("train", "val", "test")):
        row = f"{name},7_aligned.jpg,A,Ptosis"
        (tmp_path / f"gmdb_{split}_v1.csv").write_text(f"image_id,filename,disease,texts\n{row}\n")
    found = {split: [case.id for case in read_cohort(str(tmp_path), options("--split", split))] for split in SPLITS}
    assert found == {"train": ["0"], "val": ["1"], "test": ["2"]}
    assert [case.id for case in read_cohort(str(tmp_path), options("--split", "test"), "train")] == ["0"]


LINE = "Sex male Age 3 years 6 months Ethnicity European"
PTOSIS_TERM = (Term("", "Ptosis"),)


@pytest.mark.parametrize(
    "case, summary",
    [
        (Case("a", "Noonan syndrome", "OMIM:1"), "Of the first."),
        (Case("a", "noonan syndrome"), "Of the first."),
        (Case("a", "Second", excluded=PTOSIS_TERM, text=LINE), "Of the second."),
        (Case("a", "Second", text=f"{LINE} Ptosis"), ""),
        (Case("a", "Second", text="A note."), ""),
        (Case("a", "Second", observed=PTOSIS_TERM), ""),
        (Case("a", "Second", facial=PTOSIS_TERM), ""),
        (Case("a", "Third"), ""),
        (Case("a", "Fourth"), ""),
    ],
)
def test_a_summary_is_for_cases_without_findings(tmp_path, case, summary):
    path = tmp_path / "summaries.tsv"
    rows = ["OMIM:1\tNoonan syndrome\tOf the  first.", "\tSecond\tOf the second.", "\tsecond\tOf the second."]
    path.write_text("\n".join(["disease_id\tdisease\tsummary", *rows, "OMIM:3\tThird\tnan"]))
    assert [found.summary for found in add_summaries([case], str(path))] == [summary]


def test_summaries_are_counted_and_must_agree(tmp_path, capsys):
    path = tmp_path / "summaries.csv"
    path.write_text("disease,summary\nA,one\n")
    add_summaries([Case("a", "A"), Case("b", "B"), Case("c", "B", observed=PTOSIS_TERM)], str(path))
    assert capsys.readouterr().out == f"{path}: summaries for 1 of 2 cases without findings\n"
    path.write_text("disease,summary\nA,one\na,two\n")
    with pytest.raises(InputError, match="summaries.csv:3: a second summary of a"):
        add_summaries([], str(path))
    path.write_text("name,summary\nA,one\n")
    with pytest.raises(InputError, match="missing columns: disease_id or omim_id or disease"):
        add_summaries([], str(path))


def test_genes_of_a_file(tmp_path, capsys):
    path = tmp_path / "genes.tsv"
    path.write_text("id\tgenes\na\tELN; LIMK1\nx\tTP53\n")
    cases = add_genes([Case("a", "A", genes=("OLD",)), Case("b", "B", genes=("KEPT",))], str(path))
    assert [case.genes for case in cases] == [("ELN", "LIMK1"), ("KEPT",)]
    assert capsys.readouterr().out == f"{path}: genes for 1 of 2 cases\n"
    path.write_text("id\tgenes\na\tELN\na\tTP53\n")
    with pytest.raises(InputError, match="genes.tsv:3: id 'a' is also that of"):
        add_genes(cases, str(path))

"""Portraits with findings: every form of the table, and what each kind of bad row is told."""

import csv

import pytest
from PIL import Image

from mint.data.cases import Term, write_note
from mint.data.gmdb import parse_texts, read_gmdb
from mint.errors import FileProblems, InputError

LINE = "Sex male Age 3 years 6 months Ethnicity European Growth delay Ptosis"
ROW = {"image_id": "1", "filename": "1.png", "disease": "Noonan syndrome", "texts": LINE}


def write(folder, *rows, name="table.csv", image="1.png"):
    """A table of the given rows, which share the first one's columns, and one image."""
    if image:
        Image.new("RGB", (2, 2)).save(folder / image)
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0], delimiter="\t" if name.endswith(".tsv") else ",")
        table.writeheader()
        table.writerows(rows)
    return path


def write_lines(folder, *lines):
    Image.new("RGB", (2, 2)).save(folder / "1.png")
    path = folder / "table.csv"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def read_one(folder, **changes):
    [case], report = read_gmdb(write(folder, ROW | changes))
    return case, report


# -- forms ------------------------------------------------------------------------------------------------------


def test_a_row_with_text(tmp_path):
    case, report = read_one(tmp_path, patient_id="9", split="Test", disease_id="OMIM:163950")
    assert (case.id, case.disease, case.disease_id, case.subject, case.split) == (
        "1",
        "Noonan syndrome",
        "OMIM:163950",
        "9",
        "test",
    )
    assert (case.age_years, case.sex, case.observed, case.excluded) == (3.5, "male", (), ())
    assert write_note(case) == case.text == LINE and case.ethnicity == "European"
    assert read_one(tmp_path, ethnicity="African")[0].ethnicity == "African"
    assert read_one(tmp_path, ethnicity="[]", texts="Ptosis")[0].ethnicity is None
    assert case.image == tmp_path / "1.png" and case.image.is_file()
    assert str(report) == "1 cases"


def test_a_row_of_the_database(tmp_path):
    """Its own names, numbers written as fractions, tabs, and columns that are not used."""
    row = {
        "": "0",
        "image_id": "1",
        "patient_id": "2",
        "filename": "1.png",
        "disorder_names": "WILLIAMS-BEUREN SYNDROME",
        "present_features": "HP:0000293;HP:0000343",
        "absent_features": "HP:0001250",
        "age_year": "12.0",
        "age_month": "3.0",
        "gender": "female",
        "ethnicity": "['American - Native', 'European']",
        "gene_names": "['ELN', 'LIMK1']",
        "internal_syndrome_name": "WILLIAMS-BEUREN SYNDROME; WBS",
        "pmid": "nan",
    }
    labels = {"HP:0000293": "Full cheeks", "HP:0001250": "Seizure"}
    [case], report = read_gmdb(write(tmp_path, row, name="image_metadata.tsv"), labels=labels)
    assert (case.disease, case.subject, case.sex, case.age_years) == (
        "WILLIAMS-BEUREN SYNDROME; WBS",
        "2",
        "female",
        12.25,
    )
    assert case.observed == (Term("HP:0000293", "Full cheeks"), Term("HP:0000343", "HP:0000343"))
    assert case.excluded == (Term("HP:0001250", "Seizure"),) and case.text is None
    assert case.ethnicity == "American - Native European" and case.genes == ("ELN", "LIMK1")
    assert str(report) == "1 cases; 1 findings known by id alone (the id stands for the label); columns not used: pmid"


@pytest.mark.parametrize(
    "cell, terms",
    [
        ("HP:0001250 Seizure", [("HP:0001250", "Seizure")]),
        ("hp:0001250 ! Seizure | Ptosis", [("HP:0001250", "Seizure"), ("", "Ptosis")]),
        ("Seizure (HP:0001250);Sparse hair (scalp)", [("HP:0001250", "Seizure"), ("", "Sparse hair (scalp)")]),
        ("Intellectual disability, severe; ;Ptosis;Ptosis", [("", "Intellectual disability, severe"), ("", "Ptosis")]),
        ("nan", []),
    ],
)
def test_findings(tmp_path, cell, terms):
    case, _ = read_one(tmp_path, present_features=cell)
    assert [(term.id, term.label) for term in case.observed] == terms


@pytest.mark.parametrize(
    "text, parts",
    [
        (LINE, (3.5, "male", "European", "Growth delay Ptosis")),
        ("Sex female Age 0 years 3 months Ethnicity Asian Ptosis", (0.25, "female", "Asian", "Ptosis")),
        (
            "Sex male Age 8 years 0 months Ethnicity American - Latin/Hispanic obsolete  Sparse thin eyebrow",
            (8, "male", "American - Latin/Hispanic", "obsolete Sparse thin eyebrow"),
        ),
        ("Sex male Age 51 years 0 months Ethnicity East Asian", (51, "male", "East Asian", "")),
        ("Sex unknown Age <NA> years <NA> months Ethnicity unknown Ptosis", (None, None, None, "Ptosis")),
        ("Sex male Age 2 years <NA> months Ethnicity Mixed ancestry Ptosis", (2, "male", "Mixed ancestry", "Ptosis")),
        ("A boy with ptosis.", (None, None, None, "A boy with ptosis.")),
        ("", (None, None, None, "")),
    ],
)
def test_parts_of_a_text(text, parts):
    assert parse_texts(text) == parts


def test_what_is_left_out_is_counted(tmp_path):
    rows = [
        ROW | {"image_id": "1", "age": "3.5", "sex": "M", "present_features": "Ptosis", "absent_features": "Ptosis"},
        ROW | {"image_id": "2", "age": "5", "sex": "F"},
        ROW | {"image_id": "3", "age": "old", "sex": "diverse"},
        ROW | {"image_id": "4", "age": "300", "texts": "A boy with ptosis."},
        ROW | {"image_id": "5", "age": "", "texts": "*"},
    ]
    rows[0] |= {"note": ""}
    cases, report = read_gmdb(write(tmp_path, *rows))
    assert [case.age_years for case in cases] == [3.5, 5, 3.5, None, None]
    assert [case.sex for case in cases] == ["male", "female", "male", None, None]
    assert cases[0].observed == (Term("", "Ptosis"),) and cases[0].excluded == () and cases[4].text is None
    assert report.read == 5 and report.unused == ("note",)
    assert report.notes == {
        "findings both present and absent (kept as present)": 1,
        "whose text has another age or sex than the columns (the columns count)": 1,
        "ages that cannot be read (left out)": 2,
        "sexes other than male and female (left out)": 1,
        'with a text of their own form, not "Sex ... Age ..." (kept)': 1,
        "without text or findings (kept)": 1,
    }


def test_a_folder_with_one_table_and_images_elsewhere(tmp_path):
    faces = tmp_path / "faces"
    faces.mkdir()
    path = write(tmp_path, ROW, image="faces/1.png")
    [case], _ = read_gmdb(tmp_path, images=faces)
    assert case.image == faces / "1.png"
    (tmp_path / "second.tsv").write_bytes(path.read_bytes().replace(b",", b"\t"))
    with pytest.raises(
        InputError, match="one .csv or .tsv file of cases .found: second.tsv, table.csv.*the file's own"
    ):
        read_gmdb(tmp_path, images=faces)
    with pytest.raises(InputError, match="found: none"):
        read_gmdb(faces)


def test_byte_order_mark_blank_lines_and_quoted_lines_are_tolerated(tmp_path):
    path = write_lines(
        tmp_path,
        b"\xef\xbb\xbfImage_ID, filename,disease,texts\r",
        '1,1.png,"Noonan\nsyndrome",x\r',
        "",
        " , ,,",
        "2,,Marfan,x",
    )
    with pytest.raises(FileProblems) as caught:
        read_gmdb(path)
    assert caught.value.problems == [f"{path}:6: no filename, and no 2_aligned.jpg in {tmp_path}"]
    assert read_gmdb(path, missing_images="skip")[0][0].disease == "Noonan syndrome"


def test_a_missing_image_may_be_allowed(tmp_path):
    path = write(tmp_path, ROW, ROW | {"image_id": "2", "filename": "2.png"})
    with pytest.raises(FileProblems, match="table.csv:3: the image 2.png is not in"):
        read_gmdb(path)
    cases, report = read_gmdb(path, missing_images="skip")
    assert [case.image for case in cases] == [tmp_path / "1.png", None]
    assert str(report) == "2 cases; 1 without an image (kept)"


def test_aligned_crops_stand_in_for_files_that_are_not_there(tmp_path):
    rows = [ROW | {"image_id": name, "filename": file} for name, file in (("1", "1.png"), ("2", "/a/2.jpg"), ("3", ""))]
    for name in ("1_aligned.jpg", "2_aligned.jpg", "3_aligned.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    cases, report = read_gmdb(write(tmp_path, *rows))
    assert [case.image.name for case in cases] == ["1.png", "2_aligned.jpg", "3_aligned.png"]
    assert report.notes["with their aligned crop (ID_aligned.jpg) as the image"] == 1
    bare = [{name: value for name, value in row.items() if name != "filename"} for row in rows[1:]]
    cases, _ = read_gmdb(write(tmp_path, *bare, name="bare.csv"))
    assert [case.image.name for case in cases] == ["2_aligned.jpg", "3_aligned.png"]
    Image.new("RGB", (2, 2)).save(tmp_path / "3_aligned.jpeg")
    with pytest.raises(FileProblems, match="table.csv:4: 3_aligned.jpeg and 3_aligned.png are both in .* keep one"):
        read_gmdb(tmp_path / "table.csv")


# -- splits -----------------------------------------------------------------------------------------------------


def split_tables(folder, **tables):
    """Tables of ROW with the given ids, named by their keys."""
    for name, ids in tables.items():
        write(folder, *(ROW | {"image_id": identity} for identity in ids), name=f"{name}.csv")


def test_the_split_is_in_the_names_of_the_tables(tmp_path):
    split_tables(tmp_path, gmdb_train_v1=["1", "2"], gmdb_val_v1=["3"], gmdb_test_v1=["4"])
    cases, report = read_gmdb(tmp_path)
    assert {case.id: case.split for case in cases} == {"1": "train", "2": "train", "3": "val", "4": "test"}
    assert str(report) == "4 cases"
    assert [case.split for case in read_gmdb(tmp_path / "gmdb_test_v1.csv")[0]] == ["test"]
    write(tmp_path, ROW | {"image_id": "5", "split": "train"}, name="more_test.csv")
    assert read_gmdb(tmp_path / "more_test.csv")[0][0].split == "train"  # a column counts before the name
    split_tables(tmp_path, train_and_test=["6"])
    assert read_gmdb(tmp_path / "train_and_test.csv")[0][0].split == ""
    with pytest.raises(InputError, match="one file for each split with train, val or test in its name"):
        read_gmdb(tmp_path)


def test_problems_of_all_tables_are_reported_at_once(tmp_path):
    split_tables(tmp_path, train=["1", ""], test=["1", "2"], validation=[""])
    with pytest.raises(FileProblems) as caught:
        read_gmdb(tmp_path)
    assert caught.value.problems == [
        f"{tmp_path}/train.csv:3: no image_id",
        f"{tmp_path}/validation.csv:2: no image_id",
    ]
    split_tables(tmp_path, train=["1"], validation=["3"])
    with pytest.raises(FileProblems, match="train.csv: id '1' is also in test.csv"):
        read_gmdb(tmp_path)


def database(folder, **lists):
    """The Database's form: one table of everything, lists of ids and class numbers, a table of syndromes."""
    for name, ids in lists.items():
        lines = ["image_id,subject,label", *(f"{identity},{identity},0" for identity in ids)]
        (folder / f"gmdb_{name}_images_v1.1.0.csv").write_text("\n".join(lines))
    (folder / "gmdb_syndromes_v1.1.0.tsv").write_text("syndrome_id\tsyndrome_name\n0\tNoonan syndrome\n")
    return write(folder, *(ROW | {"image_id": str(i)} for i in range(1, 6)), name="image_metadata_v1.1.0.tsv")


def test_the_split_is_in_lists_of_images(tmp_path):
    database(tmp_path, train=[1, 2], val=[3], test=[4, 9])
    cases, report = read_gmdb(tmp_path)
    assert {case.id: case.split for case in cases} == {"1": "train", "2": "train", "3": "val", "4": "test"}
    assert str(report) == (
        "4 cases; 1 skipped: in no list of a split; 1 images of the splits' lists are not in image_metadata_v1.1.0.tsv "
        "(left out); 1 tables without a column image_id (passed over: gmdb_syndromes_v1.1.0.tsv)"
    )


@pytest.mark.parametrize(
    "lists, message",
    [
        ({"train": [1], "gallery": [1]}, "gmdb_gallery_images_v1.1.0.csv lists images without .* rename it or move it"),
        ({"train": [1, 2], "test": [3, 2]}, "gmdb_train_images_v1.1.0.csv:3: the image 2 is also listed as test"),
        ({"train": [""]}, "gmdb_train_images_v1.1.0.csv:2: no image_id"),
    ],
)
def test_lists_that_do_not_say_the_split(tmp_path, lists, message):
    database(tmp_path, **lists)
    with pytest.raises(InputError, match=message):
        read_gmdb(tmp_path)


def test_a_table_with_splits_and_lists_of_others(tmp_path):
    database(tmp_path, train=[1])
    write(tmp_path, ROW | {"split": "train"}, name="image_metadata_v1.1.0.tsv")
    with pytest.raises(InputError, match="and no column split; or give the file's own path"):
        read_gmdb(tmp_path)
    (tmp_path / "gmdb_train_images_v1.1.0.csv").unlink()
    assert read_gmdb(tmp_path)[0][0].split == "train"


# -- bad rows ---------------------------------------------------------------------------------------------------

BAD = {
    "no id": ({"image_id": ""}, "no image_id"),
    "no disease": ({"disease": "nan"}, "no disease"),
    "a class number": ({"disease": "12"}, "the disease is a number .12., not a name"),
    "split": ({"split": "1"}, "split '1' is not one of train, dev, val, test"),
    "commas": ({"present_features": "HP:0000293, HP:0000343"}, 'findings are separated by ";" or "|", not as in'),
    "short id": ({"present_features": "HP:293"}, "] is not an HPO id"),
    "control": ({"disease": "Noonan\x1b[2J"}, "disease holds control characters"),
    "missing image": ({"filename": "2.png"}, "the image 2.png is not in"),
    "folder": ({"filename": "sub"}, "the image sub is not in"),
    "up": ({"filename": "../outside.png"}, "the image ../outside.png lies outside"),
    "absolute": ({"filename": "/etc/hostname"}, "the image /etc/hostname lies outside"),
    "link": ({"filename": "link.png"}, "the image link.png lies outside"),
    "loop": ({"filename": "loop.png"}, "the image loop.png "),
    "long name": ({"filename": "x" * 5000}, "the image xxx"),
    "not an image": ({"filename": "text.png"}, "the image .*text.png cannot be read"),
    "cut short": ({"filename": "short.png"}, "the image .*short.png cannot be read"),
}


@pytest.fixture
def cohort(tmp_path):
    """A folder with images of every kind, beside one that no table may name."""
    folder = tmp_path / "cohort"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "text.png").write_text("not an image")
    (folder / "short.png").write_bytes((tmp_path / "outside.png").read_bytes()[:-20])
    return folder


@pytest.mark.parametrize("changes, problem", BAD.values(), ids=BAD)
def test_a_bad_row_is_named_with_what_is_wrong(cohort, changes, problem):
    path = write(cohort, ROW | {"split": "", "present_features": ""}, ROW | {"image_id": "2"} | changes)
    with pytest.raises(FileProblems, match=problem) as caught:
        read_gmdb(path)
    (only,) = caught.value.problems
    assert only.startswith(f"{path}:3: ")


@pytest.mark.parametrize("name", ["../outside.png", "../absent.png", "link.png", "text.png", "short.png"])
def test_only_a_missing_image_may_be_allowed(cohort, name):
    with pytest.raises(FileProblems, match=f"the image .*{name} (lies outside|cannot be read)"):
        read_gmdb(write(cohort, ROW | {"filename": name}), missing_images="skip")


def test_all_bad_rows_are_reported_at_once(cohort):
    rows = [
        ROW | {"image_id": f"a{i}", "split": "", "present_features": ""} | bad
        for i, (bad, _) in enumerate(BAD.values())
    ]
    rows += [{"image_id": "a1", "filename": "1.png", "disease": "Marfan"}, ROW | {"image_id": "a1"}]
    with pytest.raises(FileProblems) as caught:
        read_gmdb(write(cohort, *rows))
    assert len(caught.value.problems) == len(BAD) + 1
    assert f"has {len(BAD) + 1} problems" in str(caught.value)
    assert caught.value.problems[-1].endswith(f"id 'a1' is also that of table.csv:{len(BAD) + 2}")


def test_ragged_rows_and_open_quotes(tmp_path):
    header = "image_id,filename,disease,texts"
    path = write_lines(tmp_path, header, "1,1.png,Noonan", "2,1.png,Marfan,x,y", "3,1.png,Sotos,x")
    with pytest.raises(FileProblems) as caught:
        read_gmdb(path)
    assert caught.value.problems == [
        f"{path}:2: 3 fields, where the header has 4",
        f"{path}:3: 5 fields, where the header has 4",
    ]
    path = write_lines(tmp_path, header, "1,1.png,Noonan,x", '2,1.png,"Marfan,x', "3,1.png,Sotos,x")
    with pytest.raises(FileProblems, match="table.csv:3: .*; is a quote left open"):
        read_gmdb(path)


def test_fifty_problems_are_listed_and_the_rest_counted(tmp_path):
    with pytest.raises(FileProblems) as caught:
        read_gmdb(write_lines(tmp_path, "image_id,filename,disease,texts", *["x"] * 60))
    text = str(caught.value)
    assert ":51:" in text and ":52:" not in text and text.endswith("and 10 more")


@pytest.mark.parametrize(
    "lines, message",
    [
        ([], "table.csv is empty"),
        (["image_id,filename,disease,texts"], "holds no cases"),
        (["", "filename,texts"], "table.csv:2: missing columns: image_id; disease or .* .found: filename, texts"),
        (["image_id,filename,label"], "missing columns: texts or text or present_features"),
        (["image_id;filename;disease;texts"], "missing columns: image_id; disease or"),
        (["image_id,filename,disease,texts,Disease"], "table.csv:1: the column 'disease' is given twice"),
        (["image_id,filename,disease,texts", b"1,1.png,Beh\xe7et,x"], "table.csv:2: not UTF-8; save the table in that"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        read_gmdb(write_lines(tmp_path, *lines))


def test_paths_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="nowhere.csv does not exist"):
        read_gmdb(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="folder of images .*nowhere does not exist"):
        read_gmdb(write(tmp_path, ROW), images=tmp_path / "nowhere")


# -- the published sample ---------------------------------------------------------------------------------------


def test_the_published_sample(shared_data, tmp_path):
    """Three rows to be diagnosed: without a disease they are refused, with one they are cases."""
    sample = shared_data / "gestaltmml" / "GestaltMML_input.csv"
    if not sample.is_file():
        pytest.skip("GestaltMML's sample table is not present beside the project")
    with pytest.raises(InputError, match="missing columns: disease or "):
        read_gmdb(sample)
    with sample.open(encoding="utf-8", newline="") as file:
        rows = [row | {"disease": "Noonan syndrome"} for row in csv.DictReader(file)]
    cases, report = read_gmdb(write(tmp_path, *rows, image="461_aligned.jpg"), missing_images="skip")
    assert {case.ethnicity for case in cases} == {"European"}
    assert [(case.id, case.sex, case.age_years) for case in cases] == [
        ("461", "male", 3.5),
        ("477", "male", 8),
        ("479", "female", pytest.approx(1 + 8 / 12)),
    ]
    assert [case.image is not None for case in cases] == [True, False, False]
    assert parse_texts(cases[1].text).findings.startswith("obsolete Sparse thin eyebrow Sparse eyelashes")
    assert str(report) == "3 cases; 2 without an image (kept)"

"""What may identify a patient: what the scan finds, what it must not take for it, and that it hides what it finds."""

import csv
import gzip
import json
from datetime import datetime

import pytest

from mint import privacy
from mint.data.gmdb import read_gmdb
from mint.data.preferences import Preference
from mint.data.spans import Answer
from mint.data.template import ChatTemplate
from mint.errors import SHOW_TEXT, InputError
from mint.evaluation.report_labels import read_labels
from mint.prefs.claims import Truth
from mint.prefs.corrupt import record_mask
from mint.privacy import find_identifiers

FOUND = {
    "date": [
        "seen on 2021-03-05",
        "born 5.3.1987,",
        "(05/03/87)",
        "12/31/2020",
        "05.03.24 admitted",
        "on 5 March 2021.",
        "the 3rd of May 2019",
        "March 5, 2021",
        "Mar. 5th",
        "on 2021/3/5",
        "05-03-2021",
        "2021-03-05.",
    ],
    "phone number": [
        "call +49 228 287 51000",
        "0228/2875100",
        "(555) 123-4567",
        "555-123-4567",
        "0044 20 7946 0958",
        "Tel.: 28 75 100",
        "phone 5551234567",
    ],
    "e-mail address": ["write to jane.doe@clinic.example.org.", "a+b@x.de"],
    "record number": [
        "MRN: 00123456",
        "MRN 1234-567",
        "patient ID 88123",
        "Hospital No. A12345",
        "case number: 2021-1234",
        "SSN 123-45-6789",
        "medical record number 998877",
    ],
    "name after a title": ["Dr. Smith saw", "Mrs O'Neill", "by Prof. Dr. Müller", "Frau Özdemir", "Ms. Lee-Ray"],
}
HARMLESS = [
    "HP:0001250 Seizure (HP:0000252); HP:2021-03",
    "OMIM:154700, ORPHA:558, MONDO:0007947, PMID:20110120, PMID_34521234_patient_12",
    "A 34-year-old woman, aged 3 years and 2 months, P34Y2M; born at 38+4 weeks",
    "2.5 mg/kg, 120/80 mmHg, 10-12 cm, 3/5, 1.5-2.0, 98.6, 1:1000, 512 x 512",
    "NM_000138.5(FBN1):c.4786C>T p.(Arg1596Ter), chr15:48700503-48700510, rs1234567890",
    "POTENTIAL_DISEASES:\n1. Marfan syndrome\n2. Loeys-Dietz syndrome type 10",
    "It may 3 times recur; in March 12 of them; since 1998; version 3.11.2; 1.2.24",
    "case-00012 of case 12345; patient 3; file 17; record 20",
    "MS and Dr are abbreviations; the patient missed it; Mr. is a title",
    "runs/x@1/y.png images/0012_2287.png 01234567",
    "IQ 70 (65 to 75); 0.123 456 7890; 12 34 56 78 90",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_what_is_found(kind, text):
    assert kind in [found for found, _ in find_identifiers(text)]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_identifier(text):
    assert list(find_identifiers(text)) == []


def test_the_embedded_cohort_has_none():
    from mint.data.cases import diagnosis_messages, write_note
    from mint.synthetic.cohort import sample_cohort

    texts = [text for case in sample_cohort(50, 0) for text in (case.id, str(diagnosis_messages(write_note(case))))]
    assert not [found for text in texts for found in find_identifiers(text)]


def write(folder):
    records = [
        {"id": "a", "prompt": [{"role": "user", "content": "A girl, 3 years."}], "age": 20210305},
        {"id": "b", "prompt": [{"role": "user", "content": "Seen on\n2021-03-05 by Dr. Smith."}]},
    ]
    text = "".join(json.dumps(record) + "\n" for record in records) + "not JSON 555-123-4567\n"
    (folder / "pairs.jsonl").write_text(text)
    with gzip.open(folder / "pairs.jsonl.gz", "wt") as file:
        file.write(text)
    (folder / "cases.csv").write_text('disease,image_id,texts\nx,7,"two\nlines"\nx,8,mail a@b.org\n')
    (folder / "note.txt").write_text("First line\nMRN 123456\n")
    (folder / "clean.tsv").write_text("id\ttexts\n1\tHP:0001250\n")


def test_the_command(tmp_path, capsys):
    write(tmp_path)
    names = ("pairs.jsonl", "pairs.jsonl.gz", "cases.csv", "note.txt", "clean.tsv")
    files = [str(tmp_path / name) for name in names]
    assert privacy.main(["scan", *files]) == 1
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f"{files[0]}:2: date in record b",
        f"{files[0]}:2: name after a title in record b",
        f"{files[0]}:3: phone number",
        f"{files[1]}:2: date in record b",
        f"{files[1]}:2: name after a title in record b",
        f"{files[1]}:3: phone number",
        f"{files[2]}:4: e-mail address in record 8",
        f"{files[3]}:2: record number",
        "5 files: 8 possible identifiers",
    ]
    assert privacy.main(["scan", files[0], "--show-text"]) == 1
    assert f"{files[0]}:2: date in record b: '2021-03-05'" in capsys.readouterr().out
    assert privacy.main(["scan", files[4]]) == 0
    assert capsys.readouterr().out.startswith("1 file: no possible identifiers (names without a title")


def test_files_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "x.jsonl.gz").write_bytes(b"no gzip")
    assert privacy.main(["scan", f"{tmp_path}/none.txt"]) == 2 and "does not exist" in capsys.readouterr().err
    assert privacy.main(["scan", f"{tmp_path}/x.jsonl.gz"]) == 2 and "cannot be read" in capsys.readouterr().err


# -- messages ----------------------------------------------------------------------------------------------------

TEXT = "Jane Doe has a fever"


def drop_texts(folder):
    template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    ChatTemplate(template, [], {}, datetime.now(), "x").runs([{"role": "user", "content": TEXT}], False)


def table(folder, header, *cells):
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, cells])
    read_gmdb(folder, missing_images="skip")


def labels(folder):
    sides = {"prediction": [TEXT] + [0] * 13, "reference": [0] * 14}
    (folder / "labels.jsonl").write_text(json.dumps({"id": "a", "chexbert": sides}))
    read_labels(folder / "labels.jsonl", ["a"])


def boxes(folder):
    answer = Answer("x")
    record_mask(Preference("a", 1, "x", answer, answer, extra={"boxes": [[TEXT, 1, 2, 3]]}), (4, 4), folder)


COLUMNS = ("image_id", "disease", "present_features")
MESSAGES = {
    "template": drop_texts,
    "findings": lambda folder: table(folder, COLUMNS, "1", "x", f"HP:0000001 {TEXT} HP:0000002"),
    "finding": lambda folder: table(folder, COLUMNS, "1", "x", f"HP:1 {TEXT}"),
    "no header": lambda folder: table(folder, ("7", TEXT), "8", "y"),
    "labels": labels,
    "boxes": boxes,
    "side": lambda _: Truth.from_dict({"findings": [{"name": "x", "present": True, "side": TEXT}]}),
    "degree": lambda _: Truth.from_dict({"findings": [{"name": "x", "present": True, "degree": TEXT}]}),
    "count": lambda _: Truth.from_dict({"findings": [{"name": "x", "present": True, "count": TEXT}]}),
    "term": lambda _: Truth.from_dict({"terms": {"organ": TEXT}}),
    "about": lambda _: Truth.from_dict({"about": [TEXT]}),
}


@pytest.mark.parametrize("cause", MESSAGES.values(), ids=MESSAGES)
def test_errors_quote_no_record(cause, tmp_path, monkeypatch):
    with pytest.raises(InputError) as raised:
        cause(tmp_path)
    assert "Jane" not in str(raised.value)
    monkeypatch.setenv(SHOW_TEXT, "1")
    with pytest.raises(InputError) as raised:
        cause(tmp_path)
    assert TEXT in str(raised.value)

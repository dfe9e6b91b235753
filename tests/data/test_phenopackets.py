"""Phenopackets: every field optional, every string untrusted, archives read without unpacking."""

import io
import json
import tarfile

import pytest

from mint.data import phenopackets
from mint.data.phenopackets import read_phenopackets
from mint.errors import InputError


def packet(name="p1", **changes):
    content = {
        "id": name,
        "subject": {"id": "s", "sex": "FEMALE", "timeAtLastEncounter": {"age": {"iso8601duration": "P3Y6M"}}},
        "phenotypicFeatures": [
            {"type": {"id": "HP:1", "label": "Seizure"}},
            {"type": {"id": "HP:2", "label": "Ptosis"}, "excluded": True},
            {"type": {"id": "HP:1", "label": "Seizure"}},
        ],
        "interpretations": [{"diagnosis": {"disease": {"id": "OMIM:1", "label": "Disease one"}}}],
    }
    return content | changes


def write(folder, **files):
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / f"{name}.json").write_bytes(data)
    return folder


def test_a_case(tmp_path):
    [case], report = read_phenopackets(write(tmp_path, a=packet()))
    assert (case.id, case.disease, case.disease_id, case.sex, case.age_years) == (
        "p1",
        "Disease one",
        "OMIM:1",
        "female",
        3.5,
    )
    assert [t.label for t in case.observed] == ["Seizure"] and [t.label for t in case.excluded] == ["Ptosis"]
    assert str(report) == "1 cases"


def test_genes_of_interpretations(tmp_path):
    variant = {"variantInterpretation": {"variationDescriptor": {"geneContext": {"symbol": "ELN"}}}}
    found = [variant, {"gene": {"symbol": "LIMK1"}}, variant, {"gene": "x"}, 3]
    diagnosis = {"disease": {"id": "OMIM:1", "label": "Disease one"}, "genomicInterpretations": found}
    folder = write(tmp_path, a=packet(interpretations=[{"diagnosis": diagnosis}]), b=packet("p2"))
    assert [case.genes for case in read_phenopackets(folder)[0]] == [("ELN", "LIMK1"), ()]


def test_facial_terms_stand_apart(tmp_path):
    [case], report = read_phenopackets(write(tmp_path, a=packet()), facial_terms={"HP:1"})
    assert case.observed == () and [t.label for t in case.facial] == ["Seizure"]
    assert "1 without an observed term (kept)" in str(report)


@pytest.mark.parametrize(
    "changes, age",
    [
        ({"subject": {}}, None),
        ({"subject": 5}, None),
        ({"subject": {"timeAtLastEncounter": {"age": {"iso8601duration": "P"}}}}, None),
        ({"subject": {"timeAtLastEncounter": {"age": {"iso8601duration": "P2W"}}}}, 2 / 52.18),
        ({"subject": {"timeAtLastEncounter": {"ageRange": {"start": {"iso8601duration": "P10Y"}}}}}, 10),
        ({"subject": {"timeAtLastEncounter": {"age": {"iso8601duration": "P999Y"}}}}, None),
        ({"subject": {"timeAtLastEncounter": {"age": {"iso8601duration": f"P{'9' * 400}Y"}}}}, None),
        ({"subject": {"timeAtLastEncounter": {"age": {"iso8601duration": f"P{'9' * 5000}Y"}}}}, None),
        ({"subject": {"ageAtCollection": {"age": "P14Y"}}}, 14),
    ],
)
def test_ages(tmp_path, changes, age):
    [case], _ = read_phenopackets(write(tmp_path, a=packet(**changes)))
    assert case.age_years == (pytest.approx(age) if age is not None else None) and case.sex is None


@pytest.mark.parametrize("junk", [None, 5, "x", [1, None, {}], {"a": 1}, [{"type": {"id": 3, "label": ["x"]}}]])
@pytest.mark.parametrize("field", ["subject", "phenotypicFeatures", "interpretations", "diseases", "id"])
def test_junk_in_any_field_is_no_traceback(tmp_path, field, junk):
    cases, report = read_phenopackets(write(tmp_path, a=packet(**{field: junk}), good=packet("good")))
    assert report.read + sum(report.skipped.values()) == 2 and "good" in [case.id for case in cases]


@pytest.mark.parametrize("field", ["excluded", "negated"])
def test_an_absent_finding_is_never_read_as_present(tmp_path, field):
    """Version 1 says ``negated``; a word in place of true or false is counted, not guessed."""
    features = [
        {"type": {"id": "HP:1", "label": "Seizure"}, field: True},
        {"type": {"id": "HP:2", "label": "Ptosis"}, field: "true"},
        {"type": {"id": "HP:3", "label": "Short\u00a0stature"}, field: False},
        {"type": {"id": "HP:4"}},
    ]
    [case], report = read_phenopackets(write(tmp_path, a=packet(phenotypicFeatures=features)))
    assert [t.label for t in case.observed] == ["Short stature"] and [t.label for t in case.excluded] == ["Seizure"]
    assert report.notes == {
        "terms neither present nor absent (left out)": 1,
        "terms without a usable label (left out)": 1,
    }


def test_skipped_files_are_counted_with_their_reason(tmp_path):
    write(tmp_path, a=packet(), b=b"{", c=b"[]", d=b"\xff", e=packet("x", interpretations=[]), f=packet())
    cases, report = read_phenopackets(tmp_path)
    assert [case.id for case in cases] == ["p1"]
    assert report.skipped == {
        "invalid JSON": 1,
        "not a JSON object": 1,
        "not UTF-8": 1,
        "no disease": 1,
        "id seen before": 1,
    }


def test_the_disease_may_stand_in_the_list_of_diseases(tmp_path):
    diseases = [{"term": {"label": "No"}, "excluded": True}, {"term": {"id": "OMIM:2", "label": "Yes"}}]
    [case], _ = read_phenopackets(write(tmp_path, a=packet(interpretations=[], diseases=diseases)))
    assert (case.disease, case.disease_id) == ("Yes", "OMIM:2")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
def test_archives_are_read_safely_and_in_order(tmp_path, suffix):
    path = tmp_path / f"cases.{suffix}"
    mode = "w" if suffix == "tar" else f"w:{suffix.rpartition('.')[2]}"
    with tarfile.open(path, mode) as archive:
        for name in ("b/2.json", "a/1.json", "../evil.json", "/abs.json"):
            data = json.dumps(packet(name)).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("c/link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    cases, report = read_phenopackets(path)
    assert [case.id for case in cases] == ["a/1.json", "b/2.json"]
    assert report.skipped == {"a link, a device or a path outside the archive": 3}
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "many"
    folder.mkdir()
    write(folder, a=packet("a"), b=packet("b"))
    with tarfile.open(tmp_path / "many.tar", "w") as archive:
        archive.add(folder)
    monkeypatch.setattr(phenopackets, "TOTAL_LIMIT", (folder / "a.json").stat().st_size)
    with pytest.raises(InputError, match="bytes of phenopackets; split it"):
        read_phenopackets(tmp_path / "many.tar")


def test_bad_paths(tmp_path):
    (tmp_path / "bad.tar.xz").write_bytes(b"junk")
    (tmp_path / "cases.zip").write_bytes(b"PK")
    for name, message in (
        ("missing", "does not exist"),
        ("bad.tar.xz", "not a readable archive"),
        ("cases.zip", "neither a folder"),
        (".", "no phenopacket that can be used"),
    ):
        with pytest.raises(InputError, match=message):
            read_phenopackets(tmp_path / name)


def test_published_case_reports(shared_data):
    cases, report = read_phenopackets(shared_data / "phenopackets" / "dev.tar.xz")
    assert len(cases) == report.read == 1781 and not report.skipped
    assert sum(bool(case.observed) for case in cases) >= 1770

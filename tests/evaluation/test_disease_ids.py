"""Names and ids of diseases, Mondo's mapping, scores by id, answers of other systems by id, PhEval's files."""

import gzip
import json
from dataclasses import replace

import pytest

import evaluate
from mint.data.cases import Case
from mint.errors import InputError
from mint.evaluation import pheval
from mint.evaluation.disease_ids import DiseaseIds, read_id, read_mondo
from mint.evaluation.metrics import KnownDiseases
from mint.evaluation.predictions import read_predictions, read_rankings
from mint.tasks.base import score_answers
from mint.tasks.disease import Disease
from mint.tasks.disease_scores import pheval_case, score_diseases
from mint.tasks.ranked import TeacherLists

MARFAN = Case("a", "Marfan syndrome; MFS", "OMIM:154700")
NOONAN = Case("b", "Noonan syndrome 1", "163950")
NAMELESS = Case("c", "Alpha disease; Beta", "")
MONDO = """# curie_map: ...
subject_id\tpredicate_id\tobject_id\tsubject_label
MONDO:0007947\tskos:exactMatch\tOMIM:154700\tMarfan "syndrome
MONDO:0007947\tskos:exactMatch\tOrphanet:558\tMarfan syndrome
MONDO:0008104\tskos:broadMatch\tORPHA:648\tNoonan
OMIM:163950\thttp://www.w3.org/2004/02/skos/core#exactMatch\thttp://purl.obolibrary.org/obo/MONDO_0008104\tNoonan
"""


@pytest.fixture
def mondo(tmp_path):
    (tmp_path / "mondo.tsv").write_text(MONDO)
    return read_mondo(tmp_path / "mondo.tsv")


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("omim:154700", "OMIM:154700"),
        (" MIM:154700 ", "OMIM:154700"),
        ("154700", "OMIM:154700"),
        ("Orphanet:558", "ORPHA:558"),
        ("http://purl.obolibrary.org/obo/MONDO_0007947", "MONDO:0007947"),
        ("ICD10:Q87.4", "ICD10:Q87.4"),
        ("Noonan syndrome 1", None),
        ("SCA_1", None),
        ("Note: 4", None),
        ("15470", None),
    ],
)
def test_ids_have_one_spelling(text, wanted):
    assert read_id(text) == wanted


def test_a_mapping_keeps_exact_matches_only(mondo, tmp_path):
    wanted = {"OMIM:154700": {"MONDO:0007947"}, "ORPHA:558": {"MONDO:0007947"}, "OMIM:163950": {"MONDO:0008104"}}
    assert mondo == wanted
    (tmp_path / "mondo.tsv.gz").write_bytes(gzip.compress(MONDO.encode()))
    assert read_mondo(tmp_path / "mondo.tsv.gz") == wanted
    for content, message in (
        ("subject_id\tobject_id\n", "missing columns: predicate_id"),
        ("", "missing columns: subject_id, predicate_id, object_id"),
        (MONDO.replace("exactMatch", "closeMatch"), "has no row with the predicate skos:exactMatch"),
    ):
        (tmp_path / "bad.tsv").write_text(content)
        with pytest.raises(InputError, match=message):
            read_mondo(tmp_path / "bad.tsv")


def rank_of(listed, case, ids, given=None):
    record = score_diseases(listed, case, ids, KnownDiseases([]), ([], []), given)
    return round(1 / record["mrr"]) if record["found"] else 0


def test_the_rank_of_the_true_disease(mondo):
    cases = [MARFAN, NOONAN, NAMELESS]
    plain, mapped = DiseaseIds(cases), DiseaseIds(cases, mondo)
    for ids in (plain, mapped):
        for entry in ("MARFAN syndrome!", "mfs", "Marfan syndrome; MFS", "154700", "omim:154700"):
            assert rank_of(["x", entry], MARFAN, ids) == 2, entry
        assert rank_of(["Noonan syndrome 2", "OMIM:605275", "OMIM:163950"], NOONAN, ids) == 3  # the first is similar
        assert rank_of(["Alpha diseases", "beta"], NAMELESS, ids) == 2  # no id: the exact name
        assert rank_of([], MARFAN, ids) == rank_of(["", "  "], MARFAN, ids) == 0
    assert rank_of(["ORPHA:558"], MARFAN, plain) == 0 and rank_of(["ORPHA:558"], MARFAN, mapped) == 1
    assert rank_of(["MONDO:0007947"], MARFAN, mapped) == 1 and rank_of(["ORPHA:648"], NOONAN, mapped) == 0
    assert rank_of(["Marfan syndrome"], MARFAN, DiseaseIds()) == 1  # of a case that the cohort does not have


def test_two_names_of_one_id_are_one_disease():
    ids = DiseaseIds([Case("1", "Old name", "OMIM:100000"), Case("2", "New name", "OMIM:100000 ; OMIM:100001")])
    assert rank_of(["New name"], Case("3", "Old name", "OMIM:100000"), ids) == 1
    assert rank_of(["OMIM:100001"], Case("3", "Old name", "OMIM:100000"), ids) == 0


def test_equal_scores_give_the_worst_rank():
    ids = DiseaseIds([MARFAN, NOONAN])
    assert rank_of(["OMIM:154700", "OMIM:163950", "OMIM:1"], MARFAN, ids, [0.5, 0.5, 0.1]) == 2
    assert rank_of(["OMIM:154700", "OMIM:163950", "OMIM:1"], MARFAN, ids, [0.6, 0.5, 0.1]) == 1


def test_ids_of_the_cohort_are_shown_and_compared_by_name(mondo):
    """So coverage, avoidance and the paper's similarity apply to a ranker by ids."""
    ids = DiseaseIds([MARFAN, NOONAN], mondo)
    known, teacher = KnownDiseases([MARFAN.disease, NOONAN.disease]), ([MARFAN.disease, "Other"], [NOONAN.disease])
    record = score_diseases(["ORPHA:558", "163950", "OMIM:999999"], MARFAN, ids, known, teacher)
    assert record["listed"] == ["Marfan syndrome; MFS", "Noonan syndrome 1", "OMIM:999999"]
    assert record["matched"] == ["Marfan syndrome; MFS"] and record["top_1"] == record["top_1_id"] == 1
    assert (record["coverage"], record["coverage_listed"], record["avoidance"]) == (0.5, pytest.approx(1 / 3), 0)
    assert record["hallucination_free"] == pytest.approx(2 / 3) and record["hallucination_free_case"] == 1


def test_predictions_by_id(tmp_path):
    path = tmp_path / "p.jsonl"
    lines = [
        {"id": "a", "ids": ["OMIM:1", "OMIM:2", "OMIM:3"], "scores": [0.1, 3, 0.1]},
        {"id": "b", "ids": ["OMIM:4"]},
        {"id": "c", "listed": ["Name"], "scores": [-2.5]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_rankings(path, "abc")
    assert found["a"].answer == "POTENTIAL_DISEASES:\n1. OMIM:2\n2. OMIM:1\n3. OMIM:3"
    assert [found[name].scores for name in "abc"] == [(3, 0.1, 0.1), None, (-2.5,)]
    assert read_predictions(path, "cab")[0] == "POTENTIAL_DISEASES:\n1. Name"
    for bad in ('"scores": [1, 2]', '"scores": ["x"]', '"scores": [NaN]', '"scores": 3', '"listed": ["x"]'):
        path.write_text(f'{{"id": "a", "ids": ["OMIM:1"], {bad}}}\n')
        with pytest.raises(InputError, match="p.jsonl:1: "):
            read_rankings(path, "a")


@pytest.fixture
def cohort(tmp_path):
    """Cases of four diseases with ids as phenopackets."""
    (tmp_path / "cases").mkdir()
    for i in range(8):
        disease = {"id": f"OMIM:10000{i % 4}", "label": f"{'abcd'[i % 4] * 6} disease"}
        features = [{"type": {"id": f"HP:000000{i % 4}", "label": f"Sign {i % 4}"}}]
        case = {"id": f"c{i}", "diseases": [{"term": disease}], "phenotypicFeatures": features}
        (tmp_path / "cases" / f"c{i}.json").write_text(json.dumps(case))
    return tmp_path


def run(folder, out, *arguments):
    command = ["disease", "--cases", f"{folder}/cases", "--top-k", "2", "--bottom-q", "2", "--out", f"{folder}/{out}"]
    return evaluate.main([*command, *arguments])


def last_row(folder):
    return list(json.loads((folder / "metrics.json").read_text())["rows"].values())[-1]


def test_an_external_ranker_is_scored_and_read_back_from_pheval(cohort, capsys):
    """Each true disease ties with another for the first place: rank 2. The teacher's row has no ties."""
    lists = [{"id": f"c{i}", "ids": [f"OMIM:10000{(i + 1) % 4}", f"OMIM:10000{i % 4}"]} for i in range(8)]
    lines = [json.dumps({**line, "scores": [0.5, 0.5]}) for line in lists]
    (cohort / "ranker.jsonl").write_text("\n".join(lines))
    ranker = ("--predictions", f"{cohort}/ranker.jsonl", "--name", "ranker")
    assert run(cohort, "first", *ranker, "--pheval", "tsv") == 0
    first = last_row(cohort / "first")
    assert (first["top_1_id"], first["top_3_id"], first["mrr"], first["top_1"], first["top_10"]) == (0, 1, 0.5, 0, 1)
    rows = (cohort / "first" / pheval.FOLDER / "c1-pheval_disease_result.tsv").read_text()
    assert rows == (
        "rank\tscore\tdisease_name\tdisease_identifier\n"
        "2\t0.5\tcccccc disease\tOMIM:100002\n2\t0.5\tbbbbbb disease\tOMIM:100001\n"
    )
    assert run(cohort, "second", "--predictions", f"{cohort}/first", "--name", "read back") == 0
    assert last_row(cohort / "second") == first
    assert evaluate.main(["compare", f"{cohort}/first", f"{cohort}/second", "--out", f"{cohort}/both"]) == 0
    assert json.loads((cohort / "both" / "comparison.json").read_text())["systems"]["ranker"]["ranks"] == {"2": 8}
    capsys.readouterr()
    (cohort / "first" / pheval.FOLDER / "c1-pheval_disease_result.tsv").unlink()
    assert run(cohort, "third", "--predictions", f"{cohort}/first") == 2
    assert "no prediction for 1 cases: c1" in capsys.readouterr().err


def test_mondo_and_the_weight_of_car_are_flags(cohort, capsys):
    (cohort / "mondo.tsv").write_text(
        "subject_id\tpredicate_id\tobject_id\n"
        + "".join(
            f"MONDO:{i}\tskos:exactMatch\t{name}:{n}{i}\n"
            for i in range(4)
            for name, n in (("OMIM", 10000), ("ORPHA", 5))
        )
    )
    lines = [json.dumps({"id": f"c{i}", "ids": [f"ORPHA:5{i % 4}"]}) for i in range(8)]
    (cohort / "ranker.jsonl").write_text("\n".join(lines))
    ranker = ("--predictions", f"{cohort}/ranker.jsonl")
    assert run(cohort, "plain", *ranker) == 0 and last_row(cohort / "plain")["top_1_id"] == 0
    assert run(cohort, "mapped", *ranker, "--mondo", f"{cohort}/mondo.tsv", "--car-weight", "0.5") == 0
    row, records = last_row(cohort / "mapped"), (cohort / "mapped" / "predictions.jsonl").read_text().splitlines()
    assert row["top_1_id"] == row["hallucination_free"] == 1
    c, a, car = (json.loads(records[0])[name] for name in ("coverage", "avoidance", "car"))
    assert (c, a) == (0.5, 1) and car == pytest.approx(1.5 * 0.5 / 1.25)
    for arguments, message in ((("--car-weight", "0"), "--car-weight must be"), (("--mondo", "no"), "does not exist")):
        assert run(cohort, "bad", *ranker, *arguments) == 2 and message in capsys.readouterr().err


def row(name, score, hit):
    return pheval.Row(name, f"OMIM:{name}", f"MONDO:{name}", score, hit)


def test_a_hit_is_exported_by_the_id_of_the_case():
    cases = [replace(MARFAN, id="a"), replace(MARFAN, id="b", disease_id="OMIM:999999")]
    record = {
        "id": "b",
        "disease": MARFAN.disease,
        "disease_id": "OMIM:999999",
        "listed": [NOONAN.disease, MARFAN.disease],
    }
    exported = pheval_case(record | {"matched": [MARFAN.disease]}, DiseaseIds([*cases, NOONAN]))
    assert [(row.identity, row.hit) for row in exported.rows] == [("OMIM:163950", False), ("OMIM:999999", True)]


def test_parquet_has_the_columns_of_pheval(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    cases = [
        pheval.RankedCase("a/b", [row("1", 0.9, False), row("2", 0.2, True), row("3", 0.2, False)], row("2", 0, True)),
        pheval.RankedCase("c", [row("4", 1.0, False)], row("5", 0.0, True)),
    ]
    pheval.write_pheval(tmp_path, cases, "parquet")
    table = parquet.read_table(tmp_path / pheval.FOLDER / "a_b-disease_result.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {
        "rank": "int64",
        "score": "double",
        "disease_identifier": "string",
        "mondo_identifier": "string",
        "true_positive": "bool",
    }
    assert [(r["rank"], r["true_positive"]) for r in table.to_pylist()] == [(1, False), (3, True), (3, False)]
    missed = parquet.read_table(tmp_path / pheval.FOLDER / "c-disease_result.parquet").to_pylist()[1]
    assert (missed["rank"], missed["score"], missed["disease_identifier"]) == (0, 0.0, "OMIM:5")
    assert pheval.read_pheval(tmp_path, ["a/b", "c"])["c"] == (["OMIM:4"], [1.0])


def test_ids_that_are_alike_as_file_names_stay_apart(tmp_path):
    ids = ["a/b", "a_b", "c/d", "x" * 300, "x" * 301, "../up"]
    cases = [pheval.RankedCase(name, [row(str(i), 1.0, False)], row("9", 0, True)) for i, name in enumerate(ids)]
    pheval.write_pheval(tmp_path / "results", cases, "tsv")
    files = sorted(path.name for path in tmp_path.rglob("*.tsv"))
    assert (
        len(files) == len(ids) and "a_b-pheval_disease_result.tsv" in files and "c_d-pheval_disease_result.tsv" in files
    )
    found = pheval.read_pheval(tmp_path / "results", ids)
    assert [found[name][0] for name in ids] == [[f"OMIM:{i}"] for i in range(len(ids))]


def test_what_is_wrong_with_a_folder_of_pheval(tmp_path, monkeypatch):
    file = tmp_path / "x-pheval_disease_result.tsv"
    with pytest.raises(InputError, match="holds no PhEval results"):
        pheval.read_pheval(tmp_path, ["x"])
    file.write_text("rank\tscore\n1\t2\n")
    with pytest.raises(InputError, match="missing column: disease_identifier"):
        pheval.read_pheval(tmp_path, ["x"])
    with pytest.raises(InputError, match="no case has the id 'x'"):
        pheval.read_pheval(tmp_path, ["y"])
    file.write_text("rank\tdisease_identifier\nfirst\tOMIM:1\n")
    with pytest.raises(InputError, match="cannot be read"):
        pheval.read_pheval(tmp_path, ["x"])
    with pytest.raises(InputError, match="would share a file"):
        pheval.file_stems(["a_b", "a_b"])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match="needs pyarrow"):
        pheval.check_pheval("parquet")


def test_the_teachers_row_has_no_scores_of_the_evaluated_system():
    """The scores of a file belong to its answer, not to another list of the same case."""
    task = Disease([MARFAN.disease], [MARFAN, NOONAN])
    task.refer_to("teacher", [MARFAN], TeacherLists([[MARFAN.disease, NOONAN.disease]], [["x"]]))
    task._given = {("a", "OMIM:154700", "OMIM:163950"): (0.5, 0.5)}
    for answer, rank in ((task.format(["OMIM:154700", "OMIM:163950"]), 2), (task.teacher_answers([MARFAN])[0], 1)):
        (record,) = score_answers(task, "x", [MARFAN], [answer]).records
        assert record["mrr"] == 1 / rank and record["disease_id"] == "OMIM:154700"

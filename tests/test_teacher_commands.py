"""The multimodal commands as a user runs them: cohort folder, teacher, pairs, scores, other models' lists."""

import json

import pytest

import evaluate
import generate_prefs
from mint.data.cases import parse_list
from mint.data.preferences import read_preferences
from mint.demo import __main__ as demo
from mint.tasks import cohorts
from mint.tasks import disease as disease_task
from mint.teachers.findings_teacher import READING


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A cohort folder, a teacher of its train split with its pairs, and a blank model."""
    folder = tmp_path_factory.mktemp("teacher")
    assert demo.main(["cohort", "--out", f"{folder}/cohort", "--train", "200", "--test", "12"]) == 0
    command = f"mml --cases {folder}/cohort --split train --fit {folder}/teacher --teacher-epochs 1".split()
    assert generate_prefs.main([*command, "--out", f"{folder}/pairs.jsonl", "--label-first"]) == 0
    command = f"base --pairs {folder}/pairs.jsonl --out {folder}/model --shape demo --vocabulary 900"
    assert demo.main(command.split()) == 0
    return folder


def disease(setting, out, *arguments):
    command = ["disease", "--cases", f"{setting}/cohort", "--split", "test", "--teacher-cases", f"{setting}/cohort"]
    assert evaluate.main([*command, "--out", str(out), *arguments]) == 0
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    records = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return rows, records


def test_the_teacher_and_its_pairs(setting):
    pairs = read_preferences(setting / "pairs.jsonl")
    assert len(pairs) == 200
    records = [json.loads(line) for line in (setting / "pairs.jsonl").read_text().splitlines()]
    assert records[0]["teacher"]["ranker"] == "fusion" and records[0]["teacher"]["settings"]["label_first"]
    assert all(record["chosen"].splitlines()[1] == f"1. {record['disease']}" for record in records)
    report = json.loads((setting / "pairs.jsonl.report.json").read_text())
    assert report["cohort"]["cases"] == report["cohort"]["with_image"] == 200 and report["pairs"]["notes"] == 200
    assert report["settings"]["split"] == "train"


def test_each_view_of_the_teacher_is_scored(setting, tmp_path):
    lists = {}
    for view in ("both", "image", "text"):
        rows, records = disease(
            setting, tmp_path / view, "--teacher", f"{setting}/teacher", "--view", view, "--ranker-only"
        )
        names = ["teacher (fusion)"] + [f"teacher (fusion, {view} only)"] * (view != "both")
        assert list(rows) == names and rows[names[0]]["coverage"] == 1
        lists[view] = [record["listed"] for record in records]
        assert all(
            record["portrait"].endswith(".png") and "note" not in record and "disease_count" in record
            for record in records
        )
    assert len({json.dumps(found) for found in lists.values()}) == 3


def test_pairs_of_one_view(setting, tmp_path):
    """The chosen lists are those that the evaluation gives the same view."""
    for view in ("image", "text"):
        command = f"disease --cases {setting}/cohort --split test --teacher {setting}/teacher --view {view}"
        assert generate_prefs.main([*command.split(), "--out", f"{tmp_path}/{view}.jsonl"]) == 0
        _, scored = disease(setting, tmp_path / view, *command.split()[5:], "--teacher-only")
        pairs = [json.loads(line) for line in (tmp_path / f"{view}.jsonl").read_text().splitlines()]
        assert [parse_list(pair["chosen"]) for pair in pairs] == [record["listed"] for record in scored]
        assert pairs[0]["teacher"]["ranker"] == f"fusion, {view} only"


def test_a_face_reader_becomes_a_teacher_of_diagnosed_patients(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(READING, "epochs", 2)
    reader, cohort = tmp_path / "reader", f"{setting}/cohort"
    assert demo.main(["reader", "--out", str(reader), "--faces", "40"]) == 0
    fitted = f"disease --cases {cohort} --fit-cases {cohort} --fit {tmp_path}/teacher --base {reader}"
    variants = "--variants 3 --drop-terms 0.5 --rank-by case"
    assert generate_prefs.main([*fitted.split(), *variants.split(), "--out", f"{tmp_path}/pairs.jsonl"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows[0]["teacher"]["ranker"] == "findings"
    lists = {}
    for row in rows:
        lists.setdefault(row["id"].partition("#")[0], set()).add(row["chosen"])
    assert all(len(found) == 1 for found in lists.values())  # one ranking for all notes of a case
    again = f"disease --cases {cohort} --teacher {tmp_path}/teacher --out {tmp_path}/again.jsonl"
    assert generate_prefs.main(again.split()) == 0
    same = [json.loads(line)["chosen"] for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert same == [row["chosen"] for row in rows if "#" not in row["id"]]
    capsys.readouterr()
    assert (
        generate_prefs.main(
            [*fitted.replace(f"{tmp_path}/teacher", f"{tmp_path}/other").split(), "--teacher-epochs", "2"]
        )
        == 2
    )
    assert "is a face reader: no --folds" in capsys.readouterr().err


def test_decoding_within_the_known_names(setting, tmp_path):
    model = ("--model", f"{setting}/model", "--name", "student", "--limit", "3")
    for decode in ("constrained", "rank"):
        rows, records = disease(setting, tmp_path / decode, *model, "--decode", decode)
        assert rows["student"]["hallucination_free"] == 1 and rows["student"]["without_list"] == 0
        assert all(len(set(record["listed"])) == 10 for record in records)


def test_retrieved_passages_and_other_models_lists(setting, tmp_path):
    model = ("--model", f"{setting}/model", "--max-new-tokens", "5", "--limit", "3")
    rows, _ = disease(setting, tmp_path / "rag", *model, "--retrieve", f"{setting}/cohort", "--passages", "2")
    assert list(rows)[-1].endswith("model + retrieval")
    _, records = disease(setting, tmp_path / "first", "--ranker-only", "--limit", "4")
    lines = [json.dumps({"id": record["id"], "listed": [record["disease"]]}) for record in records]
    (tmp_path / "theirs.jsonl").write_text("\n".join(lines))
    rows, _ = disease(
        setting, tmp_path / "theirs", "--predictions", f"{tmp_path}/theirs.jsonl", "--name", "hosted", "--limit", "4"
    )
    assert rows["hosted"]["top_1"] == 1
    command = ["compare", str(tmp_path / "first"), str(tmp_path / "theirs"), "--out", str(tmp_path / "compared")]
    command += ["--images", f"{setting}/cohort"]
    assert evaluate.main(command) == 0 and "data:image/png" in (tmp_path / "compared" / "comparison.html").read_text()


def test_cross_fitting_with_drawn_faces(setting, tmp_path, capsys):
    """The cohort has images; the drawn faces that the teachers start from need only its facial findings."""
    command = [
        "mml",
        "--cases",
        f"{setting}/cohort",
        "--fit",
        f"{tmp_path}/teacher",
        "--teacher-epochs",
        "1",
        "--folds",
        "2",
    ]
    command += ["--faces", "100", "--out", f"{tmp_path}/pairs.jsonl", "--split", "train"]
    assert generate_prefs.main(command) == 0
    printed = capsys.readouterr()
    assert " diseases saved; rank with it by --teacher" in printed.out
    assert "200 pairs; the true disease is first in" in printed.out
    for fold in (1, 2):
        assert f"teacher {fold}/2: epoch 1/1, loss " in printed.err
        assert f"teacher {fold}/2: kept the weights of epoch 1/1, loss " in printed.out
    assert json.loads((tmp_path / "teacher" / "folds.json").read_text())["folds"] == 2
    again = ["mml", "--cases", f"{setting}/cohort", "--split", "train", "--teacher", f"{tmp_path}/teacher"]
    assert generate_prefs.main([*again, "--out", f"{tmp_path}/again.jsonl"]) == 0
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "pairs.jsonl").read_bytes()


def write_prompt(folder, user):
    path = folder / "prompt.toml"
    path.write_text(f'system = "Be brief."\nuser = """{user}"""\nheader = "LIKELY:"\n')
    return str(path)


def test_pairs_and_scores_with_another_prompt(setting, tmp_path, capsys):
    """The wording, the candidate genes and the header reach the pairs, what is decoded, and what is read of it."""
    cases = [row.split(",")[0] for row in (setting / "cohort" / "cohort.csv").read_text().splitlines()[1:]]
    genes, prompt = tmp_path / "genes.tsv", write_prompt(tmp_path, "{note} Genes: {genes}. {{note}}")
    genes.write_text("\n".join(["id\tgenes", *(f"{case}\tG{i};H{i}" for i, case in enumerate(cases))]))
    flags = ["--cases", f"{setting}/cohort", "--prompt", prompt]
    assert generate_prefs.main(["disease", *flags, "--out", f"{tmp_path}/x.jsonl"]) == 2
    assert "212 of 212 cases have no value for {genes}" in capsys.readouterr().err
    command = ["disease", *flags, "--genes", str(genes), "--split", "train", "--out", f"{tmp_path}/pairs.jsonl"]
    assert generate_prefs.main(command) == 0
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    plain = [json.loads(line) for line in (setting / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == len(plain) == 200
    for i, (pair, before) in enumerate(zip(pairs, plain, strict=True)):
        note = before["prompt"][1]["content"].split("\n\n")[0]
        assert pair["prompt"][0] == {"role": "system", "content": "Be brief."}
        assert pair["prompt"][1]["content"] == f"{note} Genes: G{i}, H{i}. {{note}}"
        assert pair["chosen"].startswith("LIKELY:\n1. ") and pair["rejected"].startswith("LIKELY:\n1. ")
    more = (
        "--model",
        f"{setting}/model",
        "--name",
        "student",
        "--limit",
        "2",
        "--prompt",
        prompt,
        "--genes",
        str(genes),
    )
    for decode in ("constrained", "rank"):
        rows, records = disease(setting, tmp_path / decode, *more, "--decode", decode)
        assert all(record["answer"].startswith("LIKELY:\n1. ") for record in records)
        assert rows["student"]["hallucination_free"] == 1 and all(len(record["listed"]) == 10 for record in records)


def test_a_prompt_says_where_passages_stand(setting, tmp_path, capsys):
    command = ["disease", "--cases", f"{setting}/cohort", "--split", "test", "--model", f"{setting}/model"]
    for user, more in (("{note}", ["--retrieve", f"{setting}/cohort"]), ("{note} {passages}", [])):
        flags = ["--prompt", write_prompt(tmp_path, user), *more, "--out", f"{tmp_path}/scores"]
        assert evaluate.main([*command, *flags]) == 2
        assert "{passages} and --retrieve go together" in capsys.readouterr().err


def test_summaries_reach_the_teacher_and_not_the_student(setting, tmp_path, capsys):
    """Patients without findings: the teacher ranks by the summary, the note says nothing of it."""
    rows = (setting / "cohort" / "cohort.csv").read_text().splitlines()
    names = rows[0].split(",")
    (tmp_path / "bare").mkdir()
    diseases = [row.split(",")[names.index("disease")] for row in rows[1:4]]
    lines = [f"{i},{name},Sex male Age 3 years 6 months Ethnicity European" for i, name in enumerate(diseases)]
    (tmp_path / "bare" / "cases.csv").write_text("\n".join(["image_id,disease,texts", *lines]))
    known = json.loads((setting / "pairs.jsonl").read_text().splitlines()[0])["prompt"][1]["content"].split(". ")[0]
    (tmp_path / "summaries.csv").write_text("disease,summary\n" + "\n".join(f'{name},"{known}"' for name in diseases))
    records = {}
    for name, more in (("without", []), ("with", ["--summaries", f"{tmp_path}/summaries.csv"])):
        command = [
            "disease",
            "--cases",
            f"{tmp_path}/bare",
            "--missing-images",
            "skip",
            "--teacher",
            f"{setting}/teacher",
        ]
        assert generate_prefs.main([*command, *more, "--out", f"{tmp_path}/{name}.jsonl"]) == 0
        records[name] = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    assert "summaries for 3 of 3 cases without findings" in capsys.readouterr().out
    for bare, told in zip(*records.values(), strict=True):
        assert bare["prompt"] == told["prompt"] and bare["teacher"]["chosen_scores"] != told["teacher"]["chosen_scores"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--teacher", "missing", "--out", "x.jsonl"], "missing is neither a directory nor a hub id"),
        (["--teacher", "{cohort}", "--out", "x.jsonl"], "cohort is not a model directory"),
        (["--fit", "t", "--base", "missing"], "missing is neither a directory nor a hub id"),
        (["--fit", "{teacher}"], "holds a teacher already"),
        (["--fit", "{torn}"], "holds folds of a cross-fit that did not finish"),
        (["--out", "{pairs}"], "exists already"),
        (["--fit-cases", "missing", "--out", "x.jsonl"], "missing does not exist"),
        (["--prompt", "missing", "--out", "x.jsonl"], "--prompt missing does not exist"),
    ],
)
def test_paths_are_checked_before_cases_are_read(setting, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "torn" / "fold-1").mkdir(parents=True)
    for module in (cohorts, disease_task):
        monkeypatch.setattr(module, "read_cohort", lambda *_: pytest.fail("read before the paths were checked"))
    names = {"teacher": "teacher", "cohort": "cohort", "pairs": "pairs.jsonl"}
    places = {name: setting / file for name, file in names.items()} | {"torn": tmp_path / "torn"}
    command = ["mml", "--cases", f"{setting}/cohort", *(a.format(**places) for a in arguments)]
    assert generate_prefs.main(command) == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--folds", "3", "--out", "x.jsonl"], "--folds goes with --fit"),
        ([], "nothing to do"),
        (["--fit", "{teacher}", "--teacher-epochs", "1"], "holds a teacher already"),
        (["--fit", "t", "--faces", "100", "--base", "{teacher}"], "--faces goes with --fit, and not with --base"),
        (["--faces", "100", "--out", "x.jsonl"], "--faces goes with --fit, and not with --base"),
        (["--fit", "t", "--faces", "99"], "at least 100 faces"),
        (["--out", "{pairs}"], "pairs.jsonl exists already: delete it, or give another --out"),
        (["--fit", "t", "--folds", "2", "--fit-cases", "{cohort}"], "does not go with --fit-cases"),
        (["--summaries", "{pairs}", "--out", "x.jsonl"], "--summaries goes with --fit or --teacher"),
        (["--summaries", "none.tsv", "--fit", "t"], "--summaries none.tsv does not exist"),
        (["--genes", "{pairs}", "--out", "x.jsonl"], "--genes goes with a --prompt that has {genes}"),
        (["--prompt", "{pairs}", "--out", "x.jsonl"], "pairs.jsonl cannot be read"),
        (["--teacher", "{cohort}", "--out", "x.jsonl"], "cohort"),
    ],
)
def test_mistakes_give_one_message(setting, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    places = {"teacher": setting / "teacher", "cohort": setting / "cohort", "pairs": setting / "pairs.jsonl"}
    command = ["mml", "--cases", f"{setting}/cohort", *(a.format(**places) for a in arguments)]
    assert generate_prefs.main(command) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and not list(tmp_path.iterdir())

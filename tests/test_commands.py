"""generate_prefs.py, evaluate.py and python -m mint.demo, as a user runs them on a small cohort."""

import json
import os
import shutil
import signal
from contextlib import suppress

import pytest

import evaluate
import generate_prefs
from mint.data.cases import RETRIEVED, parse_list
from mint.data.phenopackets import read_phenopackets
from mint.data.preferences import read_preferences
from mint.data.retrieval import describe_cases
from mint.demo import __main__ as demo
from mint.evaluation import decoding
from mint.evaluation.answers import Answers
from mint.models import load_model
from mint.models.lora import add_lora, save_adapter
from mint.synthetic.cohort import sample_cohort


def phenopacket(case):
    terms = [(term, False) for term in case.observed] + [(term, True) for term in case.excluded]
    return {
        "id": case.id,
        "subject": {"sex": (case.sex or "unknown").upper()},
        "phenotypicFeatures": [{"type": {"id": t.id, "label": t.label}, "excluded": e} for t, e in terms],
        "interpretations": [{"diagnosis": {"disease": {"id": case.disease_id, "label": case.disease}}}],
    }


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Folders of cases, pairs made from them, and a blank model for their notes."""
    folder = tmp_path_factory.mktemp("commands")
    for name, count, seed in (("train", 300, 1), ("dev", 12, 2)):
        (folder / name).mkdir()
        for case in sample_cohort(count, seed=seed):
            (folder / name / f"{case.id}.json").write_text(json.dumps(phenopacket(case)))
    arguments = ["mml", "--cases", f"{folder}/train", "--ranker", "naive-bayes", "--out", f"{folder}/pairs.jsonl"]
    assert generate_prefs.main(arguments) == 0
    command = f"base --pairs {folder}/pairs.jsonl --out {folder}/model --shape demo --vocabulary 900"
    assert demo.main(command.split()) == 0
    return folder


def test_pairs_with_passages_of_other_cases(setting, tmp_path):
    command = f"disease --cases {setting}/dev --fit-cases {setting}/train --retrieve {setting}/dev --passages 2"
    assert generate_prefs.main([*command.split(), "--variants", "2", "--out", f"{tmp_path}/pairs.jsonl"]) == 0
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    own = {one.id: one.text for one in describe_cases(read_phenopackets(setting / "dev")[0])}
    assert len(pairs) == 24 and len(set(own.values())) == 12
    for pair in pairs:
        header, *passages = pair.prompt[1]["content"].split("\n\n")[1].splitlines()
        texts = [line.split(" ", 1)[1] for line in passages]
        assert header == RETRIEVED and len(texts) == 2 and set(texts) <= set(own.values())
        assert own[pair.id.split("#")[0]] not in texts
    with pytest.raises(SystemExit, match="2"):
        generate_prefs.main([*command.split()[:-1], "0", "--out", f"{tmp_path}/none.jsonl"])


def test_neighbours_rank_pairs_and_are_scored(setting, tmp_path, capsys):
    command = ["disease", "--cases", f"{setting}/train", "--ranker", "neighbours", "--out", f"{tmp_path}/pairs.jsonl"]
    assert generate_prefs.main(command) == 0
    record = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])
    assert record["teacher"]["ranker"] == "neighbours"
    command = ["disease", "--cases", f"{setting}/dev", "--teacher-cases", f"{setting}/train", "--teacher-only"]
    assert evaluate.main([*command, "--ranker", "neighbours", "--out", f"{tmp_path}/scores"]) == 0
    rows = json.loads((tmp_path / "scores" / "metrics.json").read_text())["rows"]
    assert list(rows) == ["teacher (neighbours)"] and rows["teacher (neighbours)"]["coverage"] == 1
    with pytest.raises(SystemExit):
        evaluate.main([*command, "--ranker", "neighbours", "--teacher", "x"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_pairs_of_the_recipe(setting, capsys):
    pairs = read_preferences(setting / "pairs.jsonl")
    assert len(pairs) == 300
    for pair in pairs:
        assert [m["role"] for m in pair.prompt] == ["system", "user"]
        chosen, rejected = (
            [line.split(". ", 1)[1] for line in t.splitlines()[1:]] for t in (pair.chosen.text, pair.rejected.text)
        )
        assert len(chosen) == 10 and len(rejected) == 15 and not set(chosen) & set(rejected)
    held_out = setting / "dev.jsonl"
    command = ["mml", "--cases", f"{setting}/dev", "--fit-cases", f"{setting}/train", "--out", str(held_out)]
    assert generate_prefs.main(command) == 0
    assert "12 pairs; the true disease is first in" in capsys.readouterr().out


def test_evaluation_prints_and_saves(setting, tmp_path, capsys):
    model = add_lora(load_model(setting / "model"), 2, 2)
    save_adapter(model, tmp_path / "adapter")
    out = tmp_path / "scores"
    command = [
        "disease",
        "--model",
        f"{setting}/model",
        "--adapter",
        f"{tmp_path}/adapter",
        "--cases",
        f"{setting}/dev",
    ]
    command += ["--teacher-cases", f"{setting}/train", "--max-new-tokens", "12", "--out", str(out), "--limit", "8"]
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    assert "top-10" in printed and "CAR" in printed and "8 cases" in printed
    saved = json.loads((out / "metrics.json").read_text())["rows"]
    assert saved["teacher (naive Bayes)"]["coverage"] == 1 and len(saved) == 2
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 8 and {"id", "disease", "answer", "listed", "top_1", "car"} <= set(predictions[0])
    *_, summary, saved_in = printed.splitlines()
    assert summary.startswith("8 cases, ") and "answers without a list: top-1 " in summary
    assert saved_in == f"saved in {out}: metrics.json, predictions.jsonl"
    assert evaluate.main(command) == 2
    assert "holds an evaluation already: add --resume" in capsys.readouterr().err
    assert json.loads((out / "metrics.json").read_text())["rows"] == saved


@pytest.mark.parametrize("decode", ["sample", "rank"])
def test_an_interrupted_evaluation_is_resumed(setting, tmp_path, monkeypatch, capsys, decode):
    """SIGTERM after the second of four batches; the answers are then those of a run without interruption."""
    command = [
        "disease",
        "--model",
        f"{setting}/model",
        "--cases",
        f"{setting}/dev",
        "--teacher-cases",
        f"{setting}/train",
    ]
    command += ["--max-new-tokens", "6", "--limit", "4", "--batch-size", "1", "--decode", decode, "--seed", "5"]
    assert evaluate.main([*command, "--out", f"{tmp_path}/whole"]) == 0
    whole = (tmp_path / "whole" / "predictions.jsonl").read_text()
    save, batches = Answers.save, []

    def save_and_stop(self, answers):
        save(self, answers)
        batches.append(answers)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Answers, "save", save_and_stop)
    stopped = [*command, "--out", f"{tmp_path}/stopped"]
    capsys.readouterr()
    assert evaluate.main(stopped) == 143
    message = capsys.readouterr().err
    assert (
        "2 of 4 finished" in message and "--resume" in message and not (tmp_path / "stopped" / "metrics.json").exists()
    )
    assert evaluate.main(stopped) == 2 and "holds an evaluation already" in capsys.readouterr().err
    for other, words in ((["--seed", "6"], "seed: 5 -> 6"), (["--limit", "3"], "limit: 4 -> 3")):
        assert evaluate.main([*stopped, "--resume", *other]) == 2 and words in capsys.readouterr().err
    assert evaluate.main([*stopped, "--resume", "--batch-size", "2"]) == 0
    assert sorted(place for batch in batches for place in batch) == [0, 1, 2, 3]
    assert (tmp_path / "stopped" / "predictions.jsonl").read_text() == whole
    monkeypatch.setattr(
        decoding, "load_language_model", None
    )  # a finished evaluation is scored again without the model
    assert (
        evaluate.main([*stopped, "--resume"]) == 0 and (tmp_path / "stopped" / "predictions.jsonl").read_text() == whole
    )


def test_the_default_folder_is_named_after_the_evaluation(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["disease", "--ranker-only", "--cases", f"{setting}/train", "--limit", "2"]
    assert evaluate.main(command) == 0 and evaluate.main(command) == 2
    assert (tmp_path / "runs" / "eval" / "disease-teacher-naive-bayes-both" / "metrics.json").is_file()
    assert "runs/eval/disease-teacher-naive-bayes-both holds an evaluation already" in capsys.readouterr().err


def test_the_teacher_is_scored_without_a_model(setting, tmp_path, capsys):
    command = ["disease", "--ranker-only", "--cases", f"{setting}/train", "--limit", "5", "--out", str(tmp_path)]
    assert evaluate.main(command) == 0
    assert "teacher (naive Bayes)" in capsys.readouterr().out
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert list(rows) == ["teacher (naive Bayes)"] and rows["teacher (naive Bayes)"]["cases"] == 5
    predictions = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert all(row["listed"] == parse_list(row["answer"]) and len(row["listed"]) == 10 for row in predictions)


@pytest.mark.parametrize(
    "command, message",
    [
        ((evaluate, "disease", "--ranker-only", "--cases", "{train}", "--limit", "0"), "must be at least 1"),
        ((evaluate, "disease", "--ranker-only", "--cases", "{train}", "--limit", "-1"), "must be at least 1"),
        ((evaluate, "disease", "--ranker-only", "--cases", "{train}", "--bottom-q", "0"), "must be at least 1"),
        ((evaluate, "disease", "--ranker-only", "--cases", "{cases}"), "give --teacher-cases with more"),
        ((evaluate, "disease", "--ranker-only", "--cases", "{train}", "--view", "text"), "--view goes with --teacher"),
        ((evaluate, "disease", "--ranker-only", "--cases", "{train}", "--adapter", "x"), "--adapter goes with --model"),
        ((evaluate, "disease", "--predictions", "none", "--cases", "{train}"), "--predictions none does not exist"),
        ((evaluate, "disease", "--model", "{model}", "--cases", "{train}", "--retrieve", "no"), "no does not exist"),
        ((evaluate, "disease", "--ranker-only", "--cases", "{train}", "--teacher", "no"), "no is neither a directory"),
        ((generate_prefs, "mml", "--cases", "missing", "--out", "x.jsonl"), "missing does not exist"),
        (
            (generate_prefs, "mml", "--cases", "{cases}", "--out", "x.jsonl", "--top-k", "90"),
            "overlap; lower one of them",
        ),
        ((generate_prefs, "mml", "--cases", "{cases}", "--out", "x.jsonl", "--face-terms", "no"), "no does not exist"),
        ((evaluate, "disease", "--model", "missing", "--cases", "{train}"), "neither a directory nor a hub id"),
        ((evaluate, "disease", "--model", "{model}", "--adapter", "no", "--cases", "{train}"), "holds no adapter"),
        ((evaluate, "disease", "--ranker-only", "--cases", "{train}", "--resume"), "--resume goes with --model"),
        ((demo, "base", "--pairs", "missing.jsonl", "--out", "x"), "missing.jsonl does not exist"),
    ],
)
def test_mistakes_give_one_message_and_a_non_zero_exit(setting, tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    module, *arguments = command
    arguments = [a.format(cases=setting / "dev", train=setting / "train", model=setting / "model") for a in arguments]
    with suppress(SystemExit):  # of a flag that cannot be parsed
        assert module.main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and not list(tmp_path.iterdir())


def test_the_models_generation_config_counts_among_the_settings(setting, tmp_path, capsys):
    """A resume with another generation_config.json would mix two ways of decoding: it is refused."""
    model = tmp_path / "model"
    shutil.copytree(setting / "model", model)
    file = model / "generation_config.json"
    content = json.loads(file.read_text()) | {"do_sample": True, "temperature": 0.9, "max_new_tokens": 5}
    file.write_text(json.dumps(content))
    command = ["disease", "--model", str(model), "--cases", f"{setting}/dev", "--teacher-cases", f"{setting}/train"]
    command += ["--generation-config", "--out", f"{tmp_path}/scores", "--limit", "2"]
    assert evaluate.main(command) == 0
    saved = json.loads((tmp_path / "scores" / "metrics.json").read_text())["settings"]
    assert (saved["decode"], saved["temperature"], saved["max_new_tokens"]) == ("sample", 0.9, 5)
    assert evaluate.main([*command, "--resume"]) == 0
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["settings"]["temperature"] == 0.9
    file.write_text(json.dumps(content | {"temperature": 0.5}))
    capsys.readouterr()
    assert evaluate.main([*command, "--resume"]) == 2
    assert "temperature: 0.9 -> 0.5" in capsys.readouterr().err

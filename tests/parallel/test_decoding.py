"""evaluate.py and generate_prefs.py in two processes write the files of one."""

import json
from pathlib import Path

import pytest

import evaluate
import generate_prefs
from mint import parallel
from mint.data.preferences import write_jsonl
from mint.demo.tiny_model import write_base
from mint.evaluation.answers import Answers
from mint.synthetic.cohort import sample_cohort
from tests.parallel.launch import launch
from tests.test_commands import phenopacket


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Cases, and a small model with random weights."""
    folder = tmp_path_factory.mktemp("decoding")
    (folder / "cases").mkdir()
    texts = []
    for one in sample_cohort(9, seed=1):
        texts.append(json.dumps(phenopacket(one)))
        (folder / "cases" / f"{one.id}.json").write_text(texts[-1])
    write_base(folder / "model", texts, "demo", 400)
    return folder


def evaluation(folder, out, *more):
    command = f"disease --model {folder}/model --cases {folder}/cases --device cpu --max-new-tokens 6 --batch-size 2"
    return [*command.split(), *"--top-k 3 --bottom-q 3 --decode sample --out".split(), str(out), *more]


def content(folder):
    """The files of an evaluation; paths, which differ, are left out of the settings."""
    texts = {path.name: path.read_text().replace(folder.name, "") for path in Path(folder).iterdir()}
    lines = sorted(texts.pop("answers.jsonl").splitlines())
    return texts, lines


def test_an_evaluation_in_two_processes(setting, tmp_path):
    alone, both = tmp_path / "in-one-process", tmp_path / "in-two-processes"
    assert evaluate.main(evaluation(setting, alone, "--decode", "rank")) == 0
    ended = launch(2, tmp_path / "output", evaluate.main, evaluation(setting, both, "--decode", "rank"))
    assert ended.statuses == [0, 0], ended.printed
    assert content(both) == content(alone)
    assert ended.outputs[1] == "" and ended.printed.count("9 cases, ") == 1


def test_an_interrupted_evaluation_continues_in_one_process(setting, tmp_path, monkeypatch):
    save = Answers.save

    def save_once(self, answers):
        if self.known and parallel.rank():
            raise KeyboardInterrupt
        save(self, answers)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Answers, "save", save_once)
        ended = launch(2, tmp_path / "output", evaluate.main, evaluation(setting, out))
    assert ended.statuses[1] == 130 and ended.printed.count("of 9 finished (kept in ") == 1, ended.printed
    kept = [json.loads(line) for file in out.glob("answers.jsonl*") for line in file.read_text().splitlines()]
    assert len(list(out.glob("answers.jsonl*"))) == 2 and 2 < len(kept) < 9
    monkeypatch.setattr(Answers, "save", lambda self, answers: decoded.append(answers) or save(self, answers))
    decoded = []
    assert evaluate.main(evaluation(setting, out, "--resume")) == 0
    assert sum(map(len, decoded[1:])) == 9 - len(kept)  # the first moves what the other process had
    assert evaluate.main(evaluation(setting, tmp_path / "alone")) == 0
    assert content(out)[0].pop("predictions.jsonl") == content(tmp_path / "alone")[0].pop("predictions.jsonl")


def test_lists_of_the_policy_in_two_processes(setting, tmp_path):
    def pairs(out):
        command = f"disease --cases {setting}/cases --top-k 3 --bottom-q 3 --device cpu --out {out}/pairs.jsonl"
        policy = f"--reject policy --policy {setting}/model --policy-tokens 6 --policy-samples 2 --policy-batch 3"
        return [*command.split(), *policy.split()]

    assert generate_prefs.main(pairs(tmp_path / "alone")) == 0
    ended = launch(2, tmp_path / "output", generate_prefs.main, pairs(tmp_path / "both"))
    assert ended.statuses == [0, 0], ended.printed
    alone, both = ((tmp_path / name / "pairs.jsonl").read_bytes() for name in ("alone", "both"))
    assert both == alone and ended.outputs[1] == ""


def test_what_is_not_shared_is_refused_once(setting, tmp_path):
    write_jsonl(tmp_path / "given.jsonl", [])
    cases = f"disease --cases {setting}/cases".split()
    for main, arguments, message in (
        (evaluate.main, ["--predictions", f"{tmp_path}/given.jsonl"], "only decoding is shared by processes"),
        (generate_prefs.main, ["--out", f"{tmp_path}/pairs.jsonl"], "processes share the answers of --policy alone"),
    ):
        ended = launch(2, tmp_path / "output", main, [*cases, *arguments])
        assert ended.statuses == [2, 2] and ended.printed.count("error: ") == 1
        assert message in ended.printed

"""On-policy rejected lists: their scores and edits by hand, the records, and the commands with a small policy."""

import json
import math
import re

import pytest

import generate_prefs
import train
from mint.data.cases import Case, Term, format_list, parse_list
from mint.data.preferences import read_preferences, write_jsonl
from mint.demo.tiny_model import write_base
from mint.errors import InputError
from mint.prefs.pairs import PairReport, PairSettings, make_pairs
from mint.prefs.policy_lists import agreement, edit_list
from mint.synthetic.cohort import sample_cohort
from mint.tasks.disease import Disease
from mint.teachers.naive_bayes import NaiveBayesTeacher
from mint.teachers.ranking import rank
from tests.test_commands import phenopacket

RANKING = ["A", "B", "C", "D", "E"]


@pytest.mark.parametrize(
    "listed, expected",
    [
        (["A", "B"], 1.0),  # (1/1 + 1/2 * 1/2) / (1 + 1/4)
        (["B", "A"], 0.8),  # (1/2 + 1/2) / 1.25
        (["a.", "b"], 1.0),
        (["A"], 0.8),
        (["A", "A"], 0.8),
        (["A", "?"], 0.8),
        (["?", "E", "A"], 0.08),  # 1/2 * 1/5 / 1.25; only two places count
        (["?", "?"], 0.0),
        ([], 0.0),
    ],
)
def test_agreement_by_hand(listed, expected):
    assert agreement(listed, RANKING, 2) == pytest.approx(expected)


@pytest.mark.parametrize(
    "own, edited, changed",
    [
        (["C", "X", "A"], ["C", "B", "A"], [False, True, False]),
        (["X", "c", "Y"], ["A", "c", "B"], [True, False, True]),
        (["A", "A", "Z"], ["A", "B", "C"], [False, True, True]),
        (["X"], ["A"], [True]),
        (["X", "Y", "Z", "B", "A"], ["A", "B", "C"], [True] * 5),
        (["C", "B", "A"], ["C", "B", "A"], [False] * 3),
        ([], [], []),
    ],
)
def test_edits_by_hand(own, edited, changed):
    assert edit_list(own, ["A", "B", "C"]) == (edited, changed)


def case(name, disease, *labels):
    return Case(name, disease, observed=tuple(Term(label, label) for label in labels))


COHORT = [case(str(i), chr(65 + i), f"x{i}", *(["y"] * (i % 3 == 0))) for i in range(8)]


class Said:
    """A policy with prepared answers to the notes, in order."""

    def __init__(self, *answers):
        self.texts = answers

    def answers(self, prompts, files):
        assert len(prompts) == len(files) == len(self.texts)
        return list(self.texts)


def pairs_of(*answers, **settings):
    report = PairReport()
    settings = PairSettings(**{"top_k": 3, "bottom_q": 2} | settings)
    cases = COHORT[: len(answers)]
    policy = Said(*answers)
    rows = list(make_pairs(Disease(), cases, NaiveBayesTeacher(COHORT), settings, report, True, policy=policy))
    return rows, report


def rankings(count):
    return [[name for name, _ in ranking] for ranking in rank(NaiveBayesTeacher(COHORT), COHORT[:count])]


def test_the_worst_sample_is_rejected_for_the_teachers_list():
    (best,) = rankings(1)
    good, bad, worse = format_list(best[:3]), format_list([best[1], best[0]]), format_list(["?", best[0]])
    (row,), report = pairs_of([good, bad, worse, "", good], reject="policy")
    assert row["chosen"] == good and row["rejected"] == worse
    whole = 1 + 1 / 4 + 1 / 9
    assert row["teacher"]["list_scores"] == pytest.approx([1, 1 / whole, 0.5 / whole, 0, 1], abs=1e-4)
    assert row["teacher"]["rejected_scores"][0] is None and row["teacher"]["rejected_scores"][1] is not None
    assert report.pairs == report.notes == report.bottom == 1  # the truth, best[0], is in the rejected list


def test_answers_that_give_no_pair_are_counted():
    names = rankings(4)
    same = "So:\n" + format_list([name.lower() for name in names[1][:3]])
    rows, report = pairs_of(["no list"], [same], [""], [format_list(["?"])], reject="policy")
    assert [(row["id"], row["rejected"]) for row in rows] == [("0", "no list"), ("3", format_list(["?"]))]
    assert (report.notes, report.pairs, report.same, report.without_list) == (4, 2, 1, 1)
    text = "2 pairs of 4 notes; .*; 1 left out, where the policy's list equals the chosen one; 1 left out, where the"
    assert re.search(text, str(report))
    rows, report = pairs_of(["no list"], [same], [""], [format_list(["?"])], reject="edit")
    assert [row["id"] for row in rows] == ["3"] and (report.same, report.without_list) == (1, 2)


def test_the_own_list_is_edited_with_spans(tmp_path):
    (best,) = rankings(1)
    own = f"Well:\nPOTENTIAL_DISEASES:\n1. '{best[1]}'\n2. Made up\n3. {best[7]}\nThat is all."
    rows, _ = pairs_of([own], reject="edit")
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    (pair,) = read_preferences(tmp_path / "pairs.jsonl")
    for answer, names in ((pair.chosen, [best[1], best[0], best[2]]), (pair.rejected, [best[1], "Made up", best[7]])):
        assert answer.text == format_list(names)
        assert [answer.text[start:stop] for start, stop in answer.spans] == names[1:]
    assert pair.extra["teacher"]["list_scores"][0] < pair.extra["teacher"]["list_scores"][1]


def test_random_names_come_from_those_not_chosen():
    teacher, settings = NaiveBayesTeacher(COHORT), PairSettings(3, 2, reject="random", rejected_samples=20)
    rows = list(make_pairs(Disease(), COHORT, teacher, settings, PairReport(), True))
    for i, names in enumerate(rankings(8)):
        lists = [parse_list(row["rejected"]) for row in rows[20 * i : 20 * i + 20]]
        assert {name for one in lists for name in one} == set(names[3:])
        assert all(len(set(one)) == 2 and one == sorted(one, key=names.index) for one in lists)
    assert list(make_pairs(Disease(), COHORT, teacher, settings, PairReport(), True)) == rows


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"reject": "policy", "rejected_samples": 2}, "no --rejected-samples"),
        ({"reject": "edit", "answer": "disease"}, "does not go with --answer disease"),
        ({"reject": "edit", "top_k": 9}, "the top 9 and bottom 0 of 8 diseases overlap"),
        ({"reject": "random", "top_k": 7}, "the top 7 and bottom 2 of 8 diseases overlap"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(InputError, match=message):
        PairSettings(**{"top_k": 3, "bottom_q": 2} | settings).check(8)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Cases, and a small model that has learned to write one of two lists."""
    folder = tmp_path_factory.mktemp("policy")
    (folder / "cases").mkdir()
    for one in sample_cohort(14, seed=1):
        (folder / "cases" / f"{one.id}.json").write_text(json.dumps(phenopacket(one)))
    generate(folder, "pairs.jsonl")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    write_jsonl(folder / "lessons.jsonl", [row | {"chosen": rows[i % 2]["chosen"]} for i, row in enumerate(rows)])
    write_base(folder / "blank", map(str, rows), "demo", 600)
    options = "--loss sft --full --steps 25 --batch-size 4 --lr 4e-3 --device cpu".split()
    train.main([*options, *f"--model {folder}/blank --data {folder}/lessons.jsonl --out {folder}/sft".split()])
    return folder


def generate(folder, out, *more, code=0):
    command = f"disease --cases {folder}/cases --top-k 3 --bottom-q 3 --device cpu --out {folder}/{out}".split()
    assert generate_prefs.main([*command, *more]) == code
    return folder / out


def test_pairs_of_a_model(setting, capsys):
    """Sampled answers are repeatable; the edited lists train with a span loss."""
    policy = ["--policy", f"{setting}/sft/model", "--policy-tokens", "56", "--policy-batch", "56"]
    first = generate(setting, "policy.jsonl", "--reject", "policy", *policy)
    again = generate(setting, "again.jsonl", "--reject", "policy", *policy, "--policy-batch", "20")
    assert first.read_bytes() == again.read_bytes()
    other = generate(setting, "other.jsonl", "--reject", "policy", *policy, "--seed", "1")
    assert first.read_bytes() != other.read_bytes()
    report = json.loads((setting / "policy.jsonl.report.json").read_text())["pairs"]
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert report["pairs"] == len(rows) == 14 - report["same"] - report["without_list"]
    assert all(len(row["teacher"]["list_scores"]) == 4 for row in rows)
    assert sum(bool(parse_list(row["rejected"])) for row in rows) > 10
    edited = generate(setting, "edited.jsonl", "--reject", "edit", *policy)
    pairs = read_preferences(edited)
    assert len(pairs) > 6 and all(pair.chosen.spans and pair.rejected.spans for pair in pairs)
    assert "pairs" in capsys.readouterr().out
    command = f"--loss fire --gamma 0 --model {setting}/sft/model --data {edited} --steps 1 --batch-size 4 --device cpu"
    assert train.main([*command.split(), "--out", f"{setting}/fire"]) == 0
    row = json.loads((setting / "fire" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-4)  # a fresh adapter is the reference


@pytest.mark.parametrize(
    "more, message",
    [
        (["--reject", "policy"], "--reject policy and --reject edit need --policy"),
        (["--policy", "{setting}/sft/model"], "which goes with these two alone"),
        (["--policy-adapter", "{setting}"], "--policy-adapter goes with --policy"),
        (
            ["--reject", "edit", "--policy", "{setting}/blank", "--policy-adapter", "{setting}"],
            "--policy-adapter {setting} holds no adapter",
        ),
        (["--reject", "edit", "--policy", "{setting}"], "--policy: {setting} is not a model directory"),
        (["--reject", "policy", "--policy", "{setting}/blank", "--policy-samples", "0"], "must be at least 1"),
        (["--reject", "edit", "--policy", "{setting}/blank", "--policy-tokens", "4"], "no note gave a pair: 0 pairs"),
        (["--view", "text"], "--view goes with --teacher or --fit"),
    ],
)
def test_mistakes_give_one_message(setting, capsys, more, message):
    out = generate(setting, "none.jsonl", *(part.format(setting=setting) for part in more), code=2)
    assert message.format(setting=setting) in capsys.readouterr().err and not out.exists()


def test_an_edit_with_names_that_differ_in_case_alone():
    assert edit_list(["a", "b"], ["A", "a.", "c"]) == (["a", "c"], [False, True])

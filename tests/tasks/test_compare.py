"""Comparison of saved evaluations: tables by hand, seeds of one system, runs that do not fit together, the page."""

import json
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import evaluate
from mint.data.cases import Case, Term
from mint.errors import InputError
from mint.tasks.base import save_results, score_answers
from mint.tasks.compare import load_systems, paired_tests
from mint.tasks.disease import Disease
from mint.tasks.ranked import TeacherLists

NAMES = ["Alpha disease", "Beta palsy", "Gamma dystrophy", "Delta <script> anaemia", "Kappa fever"]
TRUTHS = [0, 1, 2, 3, 0, 1, 2, 3]


def save(folder, name, firsts, cases=None, training=True):
    """A run whose first names are ``firsts``, followed by all others."""
    folder.mkdir(parents=True, exist_ok=True)
    portrait = folder / "face.png"
    Image.new("RGB", (4, 4)).save(portrait)
    cases = cases or [
        Case(f"c{i}", NAMES[t], observed=(Term("", "Ptosis & <b>more</b>"),), image=portrait)
        for i, t in enumerate(TRUTHS)
    ]
    lists = [[NAMES[f], *(n for n in NAMES if n != NAMES[f])][:3] if f is not None else [] for f in firsts]
    seen = [Case(f"t{i}", NAMES[0]) for i in range(12)] + [Case("t", NAMES[1])] if training else []
    task = Disease(NAMES, seen)
    task.refer_to("teacher", cases, TeacherLists([NAMES[:2]] * len(cases), [NAMES[-1:]] * len(cases)))
    results = [
        score_answers(task, system, cases, [task.format(listed) for listed in lists], folder)
        for system in ("teacher", name)
    ]
    save_results(task, folder, results, {})
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    return {
        "good": save(tmp_path / "good", "good", TRUTHS),
        "half": save(tmp_path / "half", "half", [0, 1, 2, 3, 4, 4, 4, None]),
        "other": save(tmp_path / "other", "half", [0, 1, 2, 3, 4, 4, 2, None]),
    }


def change_records(folder, **fields):
    file = Path(folder) / "predictions.jsonl"
    records = [json.loads(line) | fields for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_page_holds_images_of_the_runs_and_of_the_folders_named_alone(runs, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.new("RGB", (4, 4)).save(secret / "face.png")
    (tmp_path / "good" / "link.png").symlink_to(secret / "face.png")
    command = ["compare", runs["good"], "--out", f"{tmp_path}/out"]
    for name, shown in (("face.png", 8), ("../secret/face.png", 0), (f"{secret}/face.png", 0), ("link.png", 0)):
        change_records(runs["good"], portrait=name)
        assert evaluate.main(command) == 0
        assert (tmp_path / "out" / "comparison.html").read_text().count("data:image/png") == shown, name
    change_records(runs["good"], portrait="../secret/face.png")
    assert evaluate.main([*command, "--images", str(secret)]) == 0
    assert (tmp_path / "out" / "comparison.html").read_text().count("data:image/png") == 8


@pytest.mark.parametrize(
    "fields",
    [
        {"id": ["c"]}, {"id": True}, {"listed": "Alpha"}, {"listed": [1]}, {"teacher": {"a": 1}}, {"teacher": False},
        {"disease": 3}, {"portrait": 3}, {"images": "x"}, {"top_1": "high"}, {"top_1": [1]}, {"disease_count": "many"},
        {"subject": 1}, {"scores": ["a"]}, {"scores": [1.0]},
    ],
)  # fmt: skip
def test_records_of_a_wrong_type_are_refused_where_they_are_read(runs, fields):
    change_records(runs["good"], **fields)
    with pytest.raises(InputError, match="holds no evaluation that can be read"):
        load_systems([runs["good"]])


def test_the_tables_by_hand(runs):
    good, half = load_systems([runs["good"], runs["half"]])
    assert [(s.name, str(s.folder)) for s in (good, half)] == [("good", runs["good"]), ("half", runs["half"])]
    assert good.estimates["top_1"].value == 1 and half.estimates["top_1"].value == 0.5
    # Kappa first, then Alpha, Beta: Alpha is second, Beta third, Gamma not among three, and one empty list
    assert half.ranks() == {1: 4, 2: 1, 3: 1, 0: 2}
    assert half.confusions() == [(NAMES[0], NAMES[4], 1), (NAMES[1], NAMES[4], 1), (NAMES[2], NAMES[4], 1)]
    assert half.by_commonness() == [("none", 4, 0.5, 0.5), ("1", 2, 0.5, 1.0), ("10-29", 2, 0.5, 1.0)]
    tests = {row["metric"]: row for row in paired_tests([good, half])}
    assert tests["top_1"]["value"] == 0.5 and tests["top_1"]["p"] == pytest.approx(2 / 16, abs=0.02)


def test_a_similar_name_of_another_disease_is_no_hit(tmp_path):
    """The paper's rule accepts it; place, confusions, commonness and marks go by the id."""
    case = Case("c", "Spastic paraplegia 4, autosomal dominant", "OMIM:182601")
    other = "Spastic paraplegia 8, autosomal dominant"
    task = Disease([case.disease], [Case("t", other, "OMIM:603563")])
    task.refer_to("teacher", [case], TeacherLists([[case.disease]], [["Z"]]))
    result = score_answers(task, "model", [case], [task.format([other, case.disease])])
    save_results(task, tmp_path / "run", [result], {})
    (system,) = load_systems([str(tmp_path / "run")])
    values = {name: e.value for name, e in system.estimates.items()}
    assert (values["top_1"], values["top_1_id"], values["top_3_id"], values["mrr"]) == (1, 0, 1, 0.5)
    assert system.ranks() == {2: 1} and system.confusions() == [(case.disease, other, 1)]
    assert system.by_commonness() == [("none", 1, 0.0, 1.0)] and system.teacher_ranks() == {1: 1}


def test_an_evaluation_that_was_saved_without_ids(runs, tmp_path):
    """Its own scores are compared; places go by the exact name."""
    path = tmp_path / "half" / "predictions.jsonl"
    new = {"matched", "mrr", "found", "coverage_listed", "car_listed", "hallucination_free_case"}
    new |= {"top_1_id", "top_3_id", "top_10_id"}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    old = [{key: value for key, value in record.items() if key not in new} for record in records]
    path.write_text("".join(json.dumps(record) + "\n" for record in old))
    good, half = load_systems([runs["good"], runs["half"]])
    assert "top_1_id" not in half.estimates and half.ranks() == {1: 4, 2: 1, 3: 1, 0: 2}
    assert {row["metric"] for row in paired_tests([good, half])} == {"top_1", "top_10", "car"}


def test_seeds_of_one_system_are_averaged(runs):
    (system,) = load_systems([f"both={runs['half']},{runs['other']}"])
    assert system.name == "both" and system.scores("top_1").mean(1).tolist() == [0.5, 0.625]
    assert system.estimates["top_1"].value == pytest.approx(0.5625) and system.ranks().total() == 16


def test_the_command_writes_four_files(runs, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["compare", f"perfect={runs['good']}", runs["half"], "--out", str(out), "--case-pages", "3"]
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    assert "| perfect | 1 | 100.0 (67.6-100.0) |" in printed  # Wilson: 8 / (8 + 1.96^2)
    assert "+50.0" in printed
    assert {path.name for path in out.iterdir()} == {f"comparison.{s}" for s in ("md", "csv", "json", "html")}
    record = json.loads((out / "comparison.json").read_text())
    assert record["systems"]["half"]["ranks"] == {"0": 2, "1": 4, "2": 1, "3": 1}
    assert "half,1,8,top_1,0.5," in (out / "comparison.csv").read_text()


class Page(HTMLParser):
    """Checks that tags nest, and collects what could reach out to a network."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.scripts, self.images = [], [], 0, []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ("meta", "br", "img", "input"):
            self.open.append(tag)
        self.links += [attrs[k] for k in ("href", "src") if k in attrs]
        self.scripts += tag == "script"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(runs, tmp_path):
    out = tmp_path / "out"
    assert evaluate.main(["compare", runs["good"], runs["half"], "--out", str(out), "--case-pages", "8"]) == 0
    text = (out / "comparison.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.open and not page.scripts and len(page.links) == 8
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "&lt;script&gt;" in text and "<b>more" not in text
    assert len(re.findall('<li class="hit">', text)) >= 8


def test_what_the_page_tells(runs, tmp_path):
    """Settings, explained columns, curves, cases to filter, and differences with the sign of the chosen baseline."""
    for name in ("good", "half"):
        file = tmp_path / name / "metrics.json"
        metrics = json.loads(file.read_text())
        metrics["settings"] = {"cases": "COHORT<i>", "split": "test", "adapter": f"{name}/adapter"}
        file.write_text(json.dumps(metrics))
    command = ["compare", runs["good"], runs["half"], "--out", f"{tmp_path}/out"]
    assert evaluate.main(command) == 0
    text = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "Comparison of 2 systems: diseases</h1>" in text and "8 cases of COHORT&lt;i&gt;, split test." in text
    assert "<td>good/adapter</td><td>half/adapter</td>" in text and "Fewer than 30 cases" in text
    assert 'class="chip s0">A</span><span>good (baseline)' in text and ">teacher</th>" in text  # a reference row
    assert "<title>half, 2: 62.5 %</title>" in text and "<title>half, 3: 75.0 %</title>" in text  # 4, 5, 6 of 8
    assert all(score.meaning and escape(score.meaning) in text for score in Disease.columns.values())
    assert '<details class="plain">' in text and text.count("<details><summary><span><span") == 4  # differ on four
    assert "Differences to good" in text and "top-1, half: -50.0 (" in text and "top-1 (0.8), half: -50.0 (" in text
    assert text.index(">top-1</th>") < text.index(">MRR</th>") < text.index(">top-1 (0.8)</th>")
    assert text.index("All scores</summary>") < text.index(">found</th>")  # in the second table alone
    other = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert evaluate.main([*command, "--baseline", "half"]) == 0
    text = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "Differences to half" in text and "top-1, good: +50.0 (" in text
    same = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert same.pop("baseline") == "half" and other.pop("baseline") == "good" and same == other
    assert evaluate.main([*command, "--baseline", "best"]) == 2
    assert evaluate.main([*command, "--case-pages", "4"]) == 0  # of four, one is a case without a difference
    text = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "4 of 8, those" in text and text.count('<details class="plain">') == 1


def test_what_does_not_fit_together(runs, tmp_path):
    few = [Case(f"c{i}", NAMES[t]) for i, t in enumerate(TRUTHS[:4])]
    fewer = save(tmp_path / "fewer", "fewer", TRUTHS[:4], few)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.json").write_text('{"rows": {"a": {}}}')
    (tmp_path / "broken" / "predictions.jsonl").write_text('{"id": "a"}\n')
    for arguments, message in (
        ([runs["good"], fewer], "other cases"),
        ([runs["good"], runs["good"]], "two systems are called .*good'"),
        ([str(tmp_path)], "holds no evaluation"),
        ([str(tmp_path / "broken")], "holds no evaluation"),
        (["name="], "names no run"),
    ):
        with pytest.raises(InputError, match=message):
            load_systems(arguments)


def test_systems_of_one_name_are_called_by_their_folders(runs, tmp_path):
    elsewhere = save(tmp_path / "more" / "half", "half", [0] * 8)
    names = {
        (runs["half"], runs["other"], runs["good"]): ["half", "other", "good"],
        (f"half={runs['good']}", runs["half"]): ["half", runs["half"]],
        (runs["half"], elsewhere): [runs["half"], elsewhere],
    }
    for arguments, wanted in names.items():
        assert [system.name for system in load_systems(arguments)] == wanted
    with pytest.raises(InputError, match="two systems are called 'a'"):
        load_systems([f"a={runs['half']}", f"a={runs['good']}"])


def test_a_comparison_of_other_evaluations_stays(runs, tmp_path, capsys):
    command = ["compare", "--out", f"{tmp_path}/out", runs["good"]]
    assert evaluate.main(command) == 0 and evaluate.main(command) == 0
    assert evaluate.main([*command, runs["half"]]) == 2
    assert "holds a comparison of other evaluations" in capsys.readouterr().err


def test_without_training_cases_nothing_is_said_of_commonness(runs, tmp_path):
    plain = save(tmp_path / "plain", "plain", TRUTHS, training=False)
    out = tmp_path / "out"
    assert evaluate.main(["compare", plain, "--out", str(out)]) == 0
    assert "how common" not in (out / "comparison.html").read_text(encoding="utf-8")
    assert json.loads((out / "comparison.json").read_text())["systems"]["plain"]["by_training_cases"] is None


def test_other_upstream_lists_are_pointed_out(runs, tmp_path, capsys):
    path = tmp_path / "other" / "predictions.jsonl"
    path.write_text(path.read_text().replace(f'"teacher": ["{NAMES[0]}"', f'"teacher": ["{NAMES[2]}"'))
    out = tmp_path / "out"
    assert evaluate.main(["compare", runs["good"], f"x={runs['other']}", "--out", str(out)]) == 0
    assert "cannot be compared here" in capsys.readouterr().out
    assert "cannot be compared here" in (out / "comparison.html").read_text(encoding="utf-8")
    assert evaluate.main(["compare", runs["good"], runs["half"], "--out", f"{out}-2"]) == 0
    assert "cannot be compared here" not in capsys.readouterr().out

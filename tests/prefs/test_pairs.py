"""The naive-Bayes ranking by hand, and the records made from rankings."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mint.data.cases import Case, Term, parse_list, read_term_ids
from mint.data.phenopackets import read_phenopackets
from mint.data.preferences import read_preferences, write_jsonl
from mint.errors import InputError
from mint.prefs.pairs import PairReport, PairSettings, make_pairs
from mint.tasks.disease import Disease
from mint.teachers.naive_bayes import PRIOR_CASES, STRENGTH, NaiveBayesTeacher
from mint.teachers.ranking import CHUNK, rank


def case(name, disease, *labels):
    return Case(name, disease, observed=tuple(Term(label, label) for label in labels))


COHORT = [case("1", "A", "x", "y"), case("2", "A", "x"), case("3", "B", "y"), case("4", "C", "z")]


def by_hand(counts, cases, total=4):
    """log prior + sum of log p over the given (count in disease, count in cohort)."""
    score = math.log((cases + PRIOR_CASES) / (total + 3 * PRIOR_CASES))
    for count, overall in counts:
        share = (overall + 0.5) / (total + 1)
        score += math.log((count + STRENGTH * share) / (cases + STRENGTH))
    return score


def test_scores_by_hand():
    teacher = NaiveBayesTeacher(COHORT)
    expected = [by_hand([(2, 2), (1, 2)], 2), by_hand([(0, 2), (1, 2)], 1), by_hand([(0, 2), (0, 2)], 1)]
    asked = [case("q", "?", "x", "y", "unknown", "x"), case("r", "?", "z")]
    np.testing.assert_allclose(teacher.scores(asked)[0], expected)
    first, second = rank(teacher, asked)
    assert [name for name, _ in first] == ["A", "B", "C"] and second[0][0] == "C"
    np.testing.assert_allclose([score for _, score in first], expected)


def test_a_training_case_is_ranked_without_itself():
    teacher, own = NaiveBayesTeacher(COHORT), COHORT[0]
    score = teacher.scores([own], [own])[0, 0]
    assert score == pytest.approx(by_hand([(1, 2), (0, 2)], 1))
    assert next(rank(teacher, COHORT[3:], COHORT[3:]))[0][0] != "C"  # the only case of its disease is left out


def test_one_disease_cannot_be_ranked():
    with pytest.raises(InputError, match="at least two diseases"):
        NaiveBayesTeacher(COHORT[:2])


def records(cases=COHORT, held_out=False, **settings):
    report = PairReport()
    settings = PairSettings(**{"top_k": 2, "bottom_q": 1} | settings)
    return list(make_pairs(Disease(), cases, NaiveBayesTeacher(COHORT), settings, report, held_out)), report


def test_top_is_chosen_and_bottom_rejected_in_rank_order():
    rows, report = records(held_out=True)
    ranking = [name for name, _ in next(rank(NaiveBayesTeacher(COHORT), COHORT))]
    assert parse_list(rows[0]["chosen"]) == ranking[:2] and parse_list(rows[0]["rejected"]) == ranking[-1:]
    assert rows[0]["teacher"]["truth_rank"] == 1 and rows[0]["id"] == "1"
    assert (report.notes, report.known, report.first) == (4, 4, 3)  # of A and B, both with a y, A is the commoner
    assert "in the chosen list in 100.0 %" in str(report)


def test_label_first_and_disease_only():
    rows, _ = records(label_first=True)
    assert all(parse_list(row["chosen"])[0] == row["disease"] for row in rows)
    assert all(len(set(parse_list(row["chosen"]))) == 2 for row in rows)
    rows, _ = records(answer="disease")
    assert all(parse_list(row["chosen"]) == [row["disease"]] for row in rows)


@pytest.mark.parametrize(
    "settings", [{"label_first": True}, {"answer": "disease"}, {"label_first": True, "answer": "disease"}]
)
def test_the_truth_is_chosen_and_never_rejected(settings):
    """Two of these cases are the only ones of their disease, which then ranks last."""
    cohort = [*COHORT, case("5", "D", "w"), case("6", "D", "w")]
    pairs = make_pairs(
        Disease(), cohort, NaiveBayesTeacher(cohort), PairSettings(top_k=2, bottom_q=2, **settings), PairReport(), False
    )
    for row in pairs:
        chosen, rejected = parse_list(row["chosen"]), parse_list(row["rejected"])
        assert chosen[0] == row["disease"] and len(chosen) == (1 if "answer" in settings else 2)
        assert len(rejected) == 2 and not set(chosen) & set(rejected)


def test_variants_are_numbered_and_repeat_by_seed():
    rows, report = records(variants=3, drop_terms=0.5)
    assert [row["id"] for row in rows[:4]] == ["1", "1#1", "1#2", "2"] and report.notes == 12
    assert rows == records(variants=3, drop_terms=0.5)[0]
    assert rows != records(variants=3, drop_terms=0.5, seed=1)[0]


def test_the_file_is_a_preference_file(tmp_path):
    rows, _ = records(held_out=True)
    write_jsonl(tmp_path / "p.jsonl", rows)
    read = read_preferences(tmp_path / "p.jsonl")
    assert [r.chosen.text for r in read] == [row["chosen"] for row in rows] and read[0].extra["disease"] == "A"


def test_more_notes_than_are_ranked_at_once():
    """Chunks change nothing: the records of many notes are those of each alone."""
    many = [replace(COHORT[i % 4], id=str(i)) for i in range(CHUNK + 5)]
    rows, report = records(many, held_out=True)
    assert [row["id"] for row in rows] == [case.id for case in many] and report.notes == report.pairs == CHUNK + 5
    alone = [records([entry], held_out=True)[0][0]["chosen"] for entry in COHORT]
    assert [row["chosen"] for row in rows] == [alone[i % 4] for i in range(CHUNK + 5)]


def test_several_rejected_lists():
    """The first is the bottom of the ranking, the others come from its lower half; all in rank order, none chosen."""
    cohort = [case(str(i), chr(65 + i), f"x{i}", *(["y"] * (i % 3 == 0))) for i in range(12)]
    settings = PairSettings(top_k=3, bottom_q=4, rejected_samples=5)
    report = PairReport()
    teacher = NaiveBayesTeacher(cohort)
    rows = list(make_pairs(Disease(), cohort, teacher, settings, report, held_out=True))
    assert (report.notes, report.pairs) == (12, 60) and [row["id"] for row in rows[:3]] == ["0", "0~1", "0~2"]
    for i, ranking in enumerate(rank(teacher, cohort)):
        names = [name for name, _ in ranking]
        lists = [parse_list(row["rejected"]) for row in rows[5 * i : 5 * i + 5]]
        assert lists[0] == names[-4:] and len({tuple(one) for one in lists}) > 1
        for one in lists:
            assert one == sorted(one, key=names.index) and set(one) <= set(names[6:]) and len(set(one)) == 4
    assert list(make_pairs(Disease(), cohort, teacher, settings, PairReport(), held_out=True)) == rows
    with pytest.raises(InputError, match="no --rejected-samples"):
        PairSettings(top_k=8, bottom_q=4, rejected_samples=2).check(12)


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"top_k": 0}, {"variants": 0}, {"drop_terms": 0.9}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError):
        records(**settings)


def test_accuracy_on_published_cases(shared_data):
    """About 76 % first and 90 % in ten were expected without facial terms."""
    folder = shared_data / "phenopackets"
    face = read_term_ids(folder / "face_terms.tsv")
    train, dev = (read_phenopackets(folder / f"{part}.tar.xz", face)[0] for part in ("train", "dev"))
    report = PairReport()
    for _ in make_pairs(Disease(), dev, NaiveBayesTeacher(train), PairSettings(), report, held_out=True):
        pass
    assert report.first / report.notes > 0.76 and report.top / report.notes > 0.90

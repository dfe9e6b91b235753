"""Splits by patient: nobody in both, nothing tested that was never seen, the same draw every time."""

import random
from dataclasses import replace

import pytest

from mint.data.cases import Case
from mint.data.splits import hold_out, split_by_patient, take_split
from mint.errors import InputError


def cohort(patients=40, diseases=4, images=3):
    """Every patient has one disease and several cases."""
    return [
        Case(f"{p}-{i}", f"disease {p % diseases}", subject=f"patient {p}")
        for i in range(images)
        for p in range(patients)
    ]


def ids(cases):
    return [case.id for case in cases]


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_and_no_case_is_in_both(seed):
    cases = cohort()
    train, test = split_by_patient(cases, 0.25, seed)
    assert not {case.subject for case in train} & {case.subject for case in test}
    assert len({case.subject for case in test}) == 10 and len(test) == 30
    assert sorted(ids(train) + ids(test)) == sorted(ids(cases))
    assert ids(train) == [case.id for case in cases if case in train]  # in the order given


def test_the_draw_depends_on_the_seed_and_not_on_the_order():
    cases = cohort()
    shuffled = random.Random(1).sample(cases, len(cases))
    drawn = [
        {case.id for case in split_by_patient(given, seed=seed)[1]}
        for given, seed in ((cases, 0), (shuffled, 0), (cases, 1))
    ]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 12


def test_a_case_without_a_subject_is_a_patient_of_its_own():
    cases = [Case("x", "a", subject="y"), Case("y", "a"), Case("z", "a", subject="y"), Case("w", "a")]
    for seed in range(10):
        _, test = split_by_patient(cases, 0.34, seed)
        assert ids(test) in (["x", "z"], ["y"], ["w"])


def test_the_last_patient_of_a_disease_stays_in_train():
    single = [Case(f"s{i}", f"rare {i}", subject=f"s{i // 2}") for i in range(6)]  # two diseases each, of one patient
    for seed in range(10):
        train, test = split_by_patient(cohort(8, 2, 1) + single, 0.9, seed)
        assert {case.disease for case in test} <= {case.disease for case in train}
        assert set(ids(single)) <= set(ids(train)) and len(test) == 6


def test_given_splits_hold_for_all_cases_of_a_patient():
    cases = [
        Case("a", "d", subject="1", split="test"),
        Case("b", "d", subject="1"),
        Case("c", "d", subject="2", split="train"),
        Case("e", "rare", subject="3", split="val"),
        Case("f", "rare", subject="3", split="dev"),
        Case("g", "d", subject="4"),
    ]
    train, test = split_by_patient(cases, 0)
    assert ids(train) == ["c", "g"] and ids(test) == ["a", "b", "e", "f"]
    assert [ids(part) for part in split_by_patient(cases, 0.9)] == [["c"], ["a", "b", "e", "f", "g"]]
    alone = [Case("a", "d", split="test"), Case("b", "d", subject="2")]
    assert ids(split_by_patient(alone, 0.9)[0]) == ["b"]  # d has no other patient to learn from


def test_two_splits_of_one_patient_are_refused():
    cases = [Case(f"{p}-{split}", "d", subject=f"p{p}", split=split) for p in range(7) for split in ("train", "test")]
    with pytest.raises(InputError, match=r"more than one split: p0 \(test, train\); .*p4 \(test, train\) and 2 more"):
        split_by_patient(cases)


def test_bad_values():
    with pytest.raises(InputError, match="x: split 'probe' is not one of train, dev, val, test"):
        split_by_patient([Case("x", "d", split="probe")])
    for share in (-0.1, 1, float("nan")):
        with pytest.raises(InputError, match="share of test patients"):
            split_by_patient([], share)
    assert split_by_patient([]) == ([], [])


def test_what_stops_training_is_drawn_where_all_is_for_training():
    """Cases of a train split have a part held out as cases without a split do; a split of their own is kept."""
    cases = cohort()
    marked = [replace(case, split="train") for case in cases]
    assert ids(hold_out(marked, 0.25, 0)[1]) == ids(split_by_patient(cases, 0.25, 0)[1]) != []
    own = [replace(case, split="dev" if case.subject == "patient 3" else "train") for case in cases]
    assert {case.subject for case in hold_out(own, 0.25, 0)[1]} == {"patient 3"}


def test_one_split_at_a_time():
    names = ["train", "val", "test", "", "dev"]
    cases = [Case(f"{i}", "d", subject=f"p{i}", split=name) for i, name in enumerate(names)]
    cases += [Case("again", "d", subject="p1")]  # the patient's other case says val
    assert [ids(take_split(cases, name)) for name in ("train", "val", "test")] == [
        ["0", "3"],
        ["1", "4", "again"],
        ["2"],
    ]
    assert ids(take_split(cases[:2], "test")) == ["1"]  # nothing else is held out
    assert take_split([cases[0], cases[2]], "val") == []


def test_early_stopping_draws_where_all_have_one_split():
    cases = [replace(case, split="test") for case in cohort()]
    assert ids(hold_out(cases, 0.25, 0)[1]) == ids(split_by_patient(cohort(), 0.25, 0)[1]) != []

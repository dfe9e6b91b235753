"""The facts of a description, counted by hand."""

import pytest

from mint.prefs.claims import Truth
from mint.tasks.facts import facts_f1, stated_facts, true_facts

NODULE = {"names": ["nodule"], "present": True, "side": "left", "degree": "small", "zone": "lower"}
EFFUSION = {"names": ["effusion"], "present": False}
TRUTH = Truth.from_dict({"findings": [NODULE, EFFUSION]})


def test_what_is_true_is_presence_and_every_known_facet():
    assert true_facts(TRUTH) == {
        ("nodule", "present", True),
        ("nodule", "side", "left"),
        ("nodule", "degree", 0),
        ("nodule", "zone", "lower"),
        ("effusion", "present", False),
    }


@pytest.mark.parametrize(
    ("answer", "right", "told"),
    [
        ("There is a small nodule in the left lower zone. There is no effusion.", 5, 5),
        ("There is a small nodule in the right lower zone. There is no effusion.", 4, 5),
        ("There is a nodule. There is no effusion.", 2, 2),
        ("There is no nodule. There is no effusion.", 1, 2),
        ("There is a small nodule in the left lower zone. There is a large effusion on the left.", 4, 5),
        ("There is no nodule on the left. There is no effusion.", 1, 1),  # a denial of a side alone
        ("The heart is large.", 0, 0),
    ],
)
def test_f1_of_facts(answer, right, told):
    assert len(stated_facts(answer, TRUTH)) == told
    assert facts_f1(answer, TRUTH) == pytest.approx(2 * right / (told + 5))


def test_questions_about_one_finding_are_no_descriptions():
    truth = Truth.from_dict({"findings": [NODULE, EFFUSION], "about": ["nodule"]})
    assert facts_f1("There is a nodule.", truth) is None
    assert facts_f1("yes", Truth.from_dict({"answer": "yes"})) is None

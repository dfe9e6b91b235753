"""The rules' editor: hand-written awkward answers, what is left alone, wrong alternatives, bad truths."""

import random
import re
from pathlib import Path

import pytest

from mint.errors import InputError
from mint.prefs.claims import Finding, Truth
from mint.prefs.rules_editor import contradictions, edit_answer, make_true, says_truth, share_kept

NAMES = {"effusion": ["pleural effusion", "effusion"]}
KINDS = {"modality": ["CT", "MRI", "X-ray", "ultrasound"], "organ": ["chest", "brain", "abdomen"]}
LINES = (Path(__file__).with_name("awkward_edits.tsv")).read_text().splitlines()[1:]
CASES = [tuple(line.split("\t")) for line in LINES]


def truth(text: str) -> Truth:
    """From the short form of the table: "effusion + left small; nodule -; modality CT; yes"."""
    findings, terms, answer = [], {}, None
    for part in filter(None, text.split("; ")):
        name, *rest = part.split()
        if name in KINDS:
            terms[name] = rest[0]
        elif name in ("yes", "no"):
            answer = name
        else:
            finding = {"names": NAMES.get(name, [name]), "present": rest[0] == "+"}
            for word in rest[1:]:
                if word in ("left", "right", "both"):
                    finding["side"] = word
                elif word.isdigit():
                    finding["count"] = int(word)
                elif word.endswith("mm"):
                    finding["size"] = float(word[:-2])
                elif word in ("upper", "lower", "inner"):
                    finding["zone"] = word
                else:
                    finding["degree"] = word
            findings.append(finding)
    return Truth.from_dict({"findings": findings, "terms": terms, "kinds": KINDS, "answer": answer})


@pytest.mark.parametrize("answer, known, expected", CASES, ids=[f"{i}" for i in range(len(CASES))])
def test_awkward_answers(answer, known, expected):
    assert make_true(answer, truth(known)) == expected
    assert not contradictions(expected, truth(known))
    assert bool(contradictions(answer, truth(known))) == (answer != expected)


def test_there_are_a_hundred():
    assert len(CASES) >= 100 and len({case[:2] for case in CASES}) == len(CASES)


def test_a_right_answer_becomes_wrong_in_its_own_words():
    known = truth("effusion + left small; pneumothorax -")
    answer = "There is a small left pleural effusion. No pneumothorax."
    seen = set()
    for key in range(30):
        edit = edit_answer(answer, known, str(key))
        assert edit == edit_answer(answer, known, str(key)) and edit.right
        assert contradictions(edit.edited, known) and share_kept(answer, edit.edited) >= 0.8
        seen.add(edit.edited)
    assert len(seen) >= 3
    assert "There is a small right pleural effusion. No pneumothorax." in seen


def test_a_wrong_answer_becomes_true():
    edit = edit_answer("A large right effusion.", truth("effusion + left small"), "x")
    assert (edit.edited, edit.right) == ("A small left effusion.", False)


def test_yes_and_no_flip_with_what_they_say():
    edit = edit_answer("Yes, there is an effusion.", truth("effusion +; yes"), "x")
    assert edit.edited == "No, there is no effusion." and edit.right
    assert edit_answer("No", truth("effusion -; no"), "x").edited == "Yes"


def test_an_answer_that_says_nothing_known():
    assert edit_answer("The heart is normal.", truth("effusion +"), "x") is None
    assert edit_answer("", truth("effusion +"), "x") is None


@pytest.mark.parametrize(
    "raw, message",
    [
        ([], "must be an object"),
        ({"findings": [{"name": "x"}]}, "'present'"),
        ({"findings": [{"name": "x", "present": True, "side": "up"}]}, "shows them] is none of left, right, both"),
        ({"findings": [{"name": "x", "present": True, "degree": "odd"}]}, "shows them] is no degree"),
        ({"terms": {"modality": "PET"}, "kinds": {"modality": ["CT"]}}, "] is not among the kinds of modality"),
    ],
)
def test_truths_of_the_wrong_form(raw, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Truth.from_dict(raw)


def test_words_kept_by_hand():
    assert share_kept("a b c d", "a x c d") == 0.75 and share_kept("a", "b") == 0 and share_kept("", "a") == 0


def test_no_text_is_too_odd():
    """Word salad is read, edited and edited again without an error; what is true already stays as it is."""
    rng = random.Random(0)
    vocabulary = (
        "no not without left right both small large a an the effusion effusions pneumothorax nodule two 3 is are seen"
    )
    vocabulary += (
        " , . ; or and but absent free of evidence yes No Yes CT MRI upper in lobe 1.5 cm 12 mm neither nor isn't may"
    )
    truths = [truth(case[1]) for case in CASES]
    for _ in range(4000):
        answer = " ".join(rng.choices(vocabulary.split(" "), k=rng.randint(0, 12)))
        known = rng.choice(truths)
        edited = make_true(answer, known)
        assert (edited == answer) or contradictions(answer, known)
        edit_answer(answer, known, "x")
        make_true(edited, known)


def test_a_false_answer_does_not_contradict_itself():
    """Yes and no turn with the presence of what the answer speaks of, not with that of other findings."""
    findings = (Finding(("nodule",), True, degree=0), Finding(("effusion",), False), Finding(("mass",), True))
    for asked, answer, wanted in (
        ("nodule", "Yes, there is a nodule.", "No, there is no nodule."),
        ("effusion", "No, there is no effusion.", "Yes, there is an effusion."),
        ("nodule", "Yes.", "No."),
    ):
        truth = Truth(findings, answer=answer[:-1].split(",")[0].lower(), about=(asked,))
        assert {edit_answer(answer, truth, str(key)).edited for key in range(20)} == {wanted}
    truth = Truth(findings, answer="yes", about=("nodule",))
    edits = {edit_answer("Yes, there is a small nodule.", truth, str(key)).edited for key in range(40)}
    others = {f"Yes, there is a {degree} nodule." for degree in ("moderate", "large")}
    assert edits == {"No, there is no small nodule.", *others}


def test_an_answer_to_another_question_is_none():
    truth = Truth((Finding(("nodule",), False), Finding(("effusion",), False)), answer="no", about=("nodule",))
    assert says_truth("No, there is no nodule.", truth) and says_truth("No.", truth)
    assert not says_truth("No, there is no effusion.", truth)
    assert edit_answer("No, there is no effusion.", truth, "x") is None
    with pytest.raises(InputError, match="asked about .4 characters.*, which no finding is called"):
        Truth.from_dict({"findings": [{"name": "nodule", "present": True}], "about": ["mass"]})


@pytest.mark.parametrize("answer", ["No evidence of pneumonia", "There is no lesion", "no it is not", "No"])
def test_a_denial_is_false_where_only_a_yes_is_known(answer):
    """Published questions have a yes or no and nothing else; the same answers are true where it is a no."""
    yes, no = Truth(answer="yes"), Truth(answer="no")
    assert contradictions(answer, yes) and not says_truth(answer, yes)
    assert not contradictions(answer, no) and says_truth(answer, no)

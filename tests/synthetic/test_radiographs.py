"""Drawn radiographs: findings lie where they are said to, answers are true, the files are what the commands read."""

import json
import re
from collections import defaultdict

import numpy as np
import pytest

from mint.data.preferences import read_preferences
from mint.data.questions import read_questions
from mint.demo import __main__ as demo
from mint.errors import InputError
from mint.prefs.claims import Truth
from mint.prefs.edit_pairs import EditReport, QuestionRecord, edit_pairs, read_asked, rules_editor
from mint.prefs.rules_editor import contradictions, share_kept
from mint.synthetic.radiograph_set import ask, write_radiographs
from mint.synthetic.radiographs import DEGREES, KINDS, SIDE, ZONED, ZONES, draw_radiograph

DRAWN = [draw_radiograph(f"test/{number}") for number in range(250)]


def test_findings_lie_where_they_are_said_to():
    """The patient's left is on the right of the picture; zones follow each other downwards, degrees in size."""
    rows, areas = defaultdict(list), defaultdict(list)
    for drawn in DRAWN:
        for finding in drawn.findings:
            y, x = np.nonzero(finding.mask)
            assert finding.mask.shape == (SIDE, SIDE) and len(x) > 3
            assert (x.mean() > SIDE / 2) == (finding.side == "left")
            assert (finding.zone is not None) == (finding.kind in ZONED)
            rows[finding.kind, finding.zone].append(y.mean())
            areas[finding.kind, finding.degree].append(len(x))
    for kind in KINDS:
        sizes = [np.mean(areas[kind, degree]) for degree in DEGREES]
        assert sizes[0] < 0.8 * sizes[1] < 0.8 * 0.9 * sizes[2] / 0.8
    for kind in ZONED:
        heights = [np.mean(rows[kind, zone]) for zone in ZONES]
        assert heights[0] + 6 < heights[1] < heights[2] - 6


def test_a_radiograph_is_its_keys():
    assert draw_radiograph("a").image.tobytes() == draw_radiograph("a").image.tobytes()
    assert draw_radiograph("a").image.tobytes() != draw_radiograph("b").image.tobytes()
    assert {len(drawn.findings) for drawn in DRAWN} >= {0, 1, 2, 3}


def stated(answer: str) -> dict[str, tuple | None]:
    """What an answer of the drawn set says, read by its templates alone: kind -> None or (degree, side, zone)."""
    found: dict[str, tuple | None] = {}
    for sentence in re.split(r"(?<=\.)\s+|,? but (?=an? |no )|, (?=an? |no )| and (?=an? )", answer.lower()):
        kinds = [kind for kind in KINDS if kind in sentence]
        if re.search(r"\bno\b(?!,)", sentence):
            found |= dict.fromkeys(kinds)
            continue
        for kind in kinds:
            facets = [
                next((word for word in words if re.search(rf"\b{word}\b", sentence)), None)
                for words in (DEGREES, ("left", "right"), ZONES)
            ]
            found[kind] = tuple(facets)
    return found


def agrees(answer: str, truth: dict) -> bool:
    """Another checker than the editor's: every stated facet is the truth's."""
    facts = {fact["names"][-1]: fact for fact in truth["findings"]}
    for kind, facets in stated(answer).items():
        fact = facts[kind]
        if (facets is not None) != fact["present"]:
            return False
        known = (fact.get("degree"), fact.get("side"), fact.get("zone"))
        if facets and any(told is not None and told != real for told, real in zip(facets, known, strict=True)):
            return False
    return True


def test_answers_are_true_and_their_edits_false():
    """By both checkers; of the answers' words at least 80 % stay, in nearly all one word decides."""
    kept = words = 0
    for number, drawn in enumerate(DRAWN[:120]):
        for question in ask(drawn):
            truth = Truth.from_dict(question.truth)
            assert agrees(question.answer, question.truth) and not contradictions(question.answer, truth)
            (edit,) = rules_editor([(_asked(question, f"{number}"), question.answer)])
            assert edit.right and contradictions(edit.edited, truth)
            assert not agrees(edit.edited, question.truth), edit
            kept += share_kept(edit.answer, edit.edited) * len(edit.answer.split())
            words += len(edit.answer.split())
    assert kept / words >= 0.8


def test_false_answers_become_true():
    """Answers that belong to other radiographs, edited into the truth of these."""
    count = kept = words = 0
    for mine, other in zip(DRAWN[:120], DRAWN[120:240], strict=True):
        theirs = {question.text: question for question in ask(other)}
        for question in ask(mine):
            if question.text not in theirs:
                continue
            report, rejects = EditReport(), []
            answer = theirs[question.text].answer
            for pair in edit_pairs([_asked(question, "x")], [answer], rules_editor, "rules", report, rejects):
                plain = {side: re.sub("</?mask>", "", pair[side]) for side in ("chosen", "rejected")}
                assert agrees(plain["chosen"], question.truth) and not agrees(plain["rejected"], question.truth), plain
                count += 1
                kept += pair["edit"]["kept"] * len(answer.split())
                words += len(answer.split())
    assert count > 400 and kept / words >= 0.7  # a policy is right more often than another picture


def _asked(question, name):
    truth = question.truth
    return QuestionRecord(name, 1, ("x.png",), question.text, Truth.from_dict(truth), question.answer, {"truth": truth})


def test_the_files_are_what_the_commands_read(tmp_path, capsys):
    command = ["radiographs", "--out", f"{tmp_path}/set", "--taught", "4", "--asked", "5", "--unseen", "6"]
    assert demo.main(command) == 0
    assert re.search(r"\d+ in lessons.jsonl, \d+ in questions.jsonl, \d+ in test.jsonl", capsys.readouterr().out)
    folder = tmp_path / "set"
    asked = read_asked(folder / "questions.jsonl")
    assert len({one.images for one in asked}) == 5 and len(asked) >= 25
    questions, report = read_questions(folder / "test.jsonl", folder)
    assert "on 6 images" in report and {question.kind for question in questions} == {"open"}
    assert len(read_preferences(folder / "lessons.jsonl", require_rejected=False)) >= 20
    for pair in read_preferences(folder / "contrasts.jsonl"):
        assert (folder / pair.extra["mask"]).is_file() and pair.chosen.spans + pair.rejected.spans
    assert all((folder / json.loads(line)["images"][0]).is_file() for line in (folder / "lessons.jsonl").open())
    with pytest.raises(InputError, match="holds radiographs already"):
        write_radiographs(folder, 1, 1, 1)

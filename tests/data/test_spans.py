"""Spans: from tags in the text to character ranges to tokens."""

import random
import re

import pytest

from mint.data.spans import Answer, mark_changes, span_tokens
from mint.errors import InputError


def test_tags_become_ranges_of_the_text_without_them():
    tagged = "The <mask>left lung</mask> is <mask>clear</mask>."
    answer = Answer.parse(tagged)
    assert answer.text == "The left lung is clear."
    assert [answer.text[a:b] for a, b in answer.spans] == ["left lung", "clear"]
    assert answer.tagged == tagged
    assert Answer.parse("no tags at all") == Answer("no tags at all", ())


def test_spaces_at_the_edges_are_outside_and_empty_spans_are_dropped():
    answer = Answer.parse("a<mask> red </mask>ball<mask></mask> <mask> </mask>")
    assert answer.text == "a red ball  "
    assert [answer.text[a:b] for a, b in answer.spans] == ["red"]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("a <mask>b", "<mask> without </mask>"),
        ("a</mask> b", "</mask> without <mask> at character 1"),
        ("<mask>a <mask>b</mask></mask>", "<mask> inside <mask> at character 8"),
        ("<mask>a</mask></mask>", "</mask> without <mask> at character 14"),
    ],
)
def test_unbalanced_or_nested_tags_are_refused(text, problem):
    with pytest.raises(InputError, match=problem):
        Answer.parse(text)


def test_a_token_that_shares_a_character_with_a_span_belongs_to_it():
    #       "The left lung is": tokens "The", " le", "ft", " lung", " is", and one of no characters
    offsets = [(0, 3), (3, 6), (6, 8), (8, 13), (13, 16), (16, 16)]
    assert span_tokens(offsets, [(4, 13)]) == [False, True, True, True, False, False]
    assert span_tokens(offsets, [(0, 1), (7, 8)]) == [True, False, True, False, False, False]
    assert span_tokens(offsets, []) == [False] * 6


@pytest.mark.parametrize(
    "first, second, marked",
    [
        (
            "There is a small left pleural effusion.",
            "There is a large right pleural effusion.",
            (
                "There is a <mask>small left</mask> pleural effusion.",
                "There is a <mask>large right</mask> pleural effusion.",
            ),
        ),
        (
            "No pneumothorax.",
            "Left pneumothorax.",
            ("<mask>No</mask> pneumothorax.", "<mask>Left</mask> pneumothorax."),
        ),
        (
            "A nodule of 1.5 cm",
            "A nodule of 2.5 cm",
            ("A nodule of <mask>1.5</mask> cm", "A nodule of <mask>2.5</mask> cm"),
        ),
        ("clear lungs", "clear both lungs", ("clear lungs", "clear <mask>both</mask> lungs")),
        # one word between two changes joins them, a comma does not
        (
            "mild oedema of lungs",
            "severe oedema in lungs",
            ("<mask>mild oedema of</mask> lungs", "<mask>severe oedema in</mask> lungs"),
        ),
        (
            "left, lower",
            "right, upper",
            ("<mask>left</mask>, <mask>lower</mask>", "<mask>right</mask>, <mask>upper</mask>"),
        ),
        ("the same", "the  same", ("the same", "the  same")),
        ("old <mask>tags</mask> go", "old marks go", ("old <mask>tags</mask> go", "old <mask>marks</mask> go")),
        ("Yes", "No", ("<mask>Yes</mask>", "<mask>No</mask>")),
    ],
)
def test_changes_are_marked(first, second, marked):
    assert tuple(answer.tagged for answer in mark_changes(first, second)) == marked
    assert tuple(answer.tagged for answer in mark_changes(second, first)) == marked[::-1]


def test_marking_changes_no_text_and_leaves_the_same_words_outside():
    rng = random.Random(0)
    words = ["no", "left", "right", "effusion", "lung,", "1.5", "is", "X-ray", "(large)", "the"]
    for _ in range(300):
        first, second = (" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(2))
        marked = mark_changes(first, second)
        assert [answer.text for answer in marked] == [first, second]
        assert all(Answer.parse(answer.tagged) == answer for answer in marked)
        outside = [re.sub(r"<mask>.*?</mask>", " ", answer.tagged).split() for answer in marked]
        assert "".join(outside[0]) == "".join(outside[1])

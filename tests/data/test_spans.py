"""Spans: from tags in the text to character ranges to tokens."""

import pytest

from mint.data.spans import parse_spans, span_tokens
from mint.errors import InputError


def test_tags_become_ranges_of_the_text_without_them():
    text, spans = parse_spans("The <mask>left lung</mask> is <mask>clear</mask>.")
    assert text == "The left lung is clear."
    assert [text[a:b] for a, b in spans] == ["left lung", "clear"]
    assert parse_spans("no tags at all") == ("no tags at all", [])


def test_spaces_at_the_edges_are_outside_and_empty_spans_are_dropped():
    text, spans = parse_spans("a<mask> red </mask>ball<mask></mask> <mask> </mask>")
    assert text == "a red ball  "
    assert [text[a:b] for a, b in spans] == ["red"]


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
        parse_spans(text)


def test_a_token_that_shares_a_character_with_a_span_belongs_to_it():
    #       "The left lung is": tokens "The", " le", "ft", " lung", " is", and one of no characters
    offsets = [(0, 3), (3, 6), (6, 8), (8, 13), (13, 16), (16, 16)]
    assert span_tokens(offsets, [(4, 13)]) == [False, True, True, True, False, False]
    assert span_tokens(offsets, [(0, 1), (7, 8)]) == [True, False, True, False, False, False]
    assert span_tokens(offsets, []) == [False] * 6

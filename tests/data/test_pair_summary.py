"""Statistics of pairs against values worked by hand, and a pair as text."""

import pytest
from tokenizers import Tokenizer, decoders, models

from mint.data.batch import EncodedPair
from mint.data.encode import EncodeReport
from mint.data.pair_summary import render_pair, summarize_pairs


def pair(name, prompt, chosen, rejected, *spans, **more):
    return EncodedPair(name, [1] * prompt, [2] * chosen, [3] * rejected, *spans, **more)


def test_lengths_gaps_duplicates_and_spans():
    pairs = [
        pair("a", 10, 4, 2, [True, True, False, False], [False, False]),
        pair("b", 10, 4, 2),  # the same pair again
        pair("c", 10, 3, 3, images=("x.png",)),  # the same tokens about another image
        pair("d", 30, 1, 6),
        EncodedPair("e", [1] * 50, [2], [2]),  # equal answers
    ]
    assert summarize_pairs(pairs).splitlines() == [
        "tokens      median    95 %     max",
        "prompt          10      46      50",  # 30 + 0.8 x 20
        "chosen           3       4       4",
        "rejected         2       5       6",  # 3 + 0.8 x 3 = 5.4
        "length gap, chosen - rejected: mean -0.2 tokens; chosen longer in 40 %, rejected longer in 20 % of pairs",
        "duplicates: 1 prompts, 1 pairs; 1 pairs with equal answers",
        "spans: 7 % of answer tokens, in 1 of 5 pairs",  # 2 of 27
    ]


def test_records_without_a_rejected_answer_and_the_report_of_encoding():
    report = EncodeReport(kept=1, dropped=["x"], truncated=["y"])
    lines = summarize_pairs([pair("a", 2, 3, 0)], report).splitlines()
    assert lines[0].startswith("1 pairs; 1 dropped as longer than --max-length: x; 1 with their prompt cut")
    assert not any(line.startswith(("rejected", "length gap", "spans")) for line in lines)


class SpaceTokenizer:
    """Words with a leading mark for a space, which the decoder drops at the beginning, as SentencePiece's does."""

    VOCABULARY = ("<s>", "</s>", "<image>", "▁Is", "▁it", "▁clear", "▁left", "▁right", "▁lung")

    def __init__(self):
        self.words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(self.VOCABULARY)}, unk_token="<s>"))
        self.words.decoder = decoders.Metaspace()

    def decode(self, ids, skip_special=True):
        assert not skip_special
        return self.words.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("images", [(), ("chest.png",)])
def test_a_pair_is_rendered_with_special_tokens_roles_and_spans(images):
    prompt = [0, *[2] * 5 * len(images), 3, 4]
    spans = [True, True, False, False], [False, True, False, False]
    one = EncodedPair("p1", prompt, [6, 8, 5, 1], [8, 7, 5, 1], *spans, images, 2 if images else -1)
    assert render_pair(one, SpaceTokenizer()).splitlines() == [
        "pair p1",
        *(["images: chest.png"] if images else []),
        f"--- prompt: {len(prompt)} tokens ---",
        "<s><image> x 5 Is it" if images else "<s> Is it",
        "--- chosen: 4 tokens, 2 in spans ---",
        "[[ left lung]] clear</s>",
        "--- rejected: 4 tokens, 1 in spans ---",
        " lung[[ right]] clear</s>",
    ]

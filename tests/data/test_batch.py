"""Packing, order, spans, over-long pairs: what a batch must hold to the last index."""

from dataclasses import replace

import pytest
import torch

from mint.data.batch import CHOSEN, PROMPT, REJECTED, EncodedPair, collate, make_batches
from mint.data.encode import encode_pairs
from mint.data.packing import pack
from mint.data.preferences import Preference
from mint.data.spans import Answer
from mint.errors import InputError


class LetterTokenizer:
    """One token a character; the prompt begins with 1, an answer ends with 2."""

    def encode_prompt(self, prompt):
        return [1, *map(ord, prompt)]

    def answer_end(self, chat=True):
        return 2

    def answer_offsets(self, text, chat=True):
        return list(map(ord, text)), [(i, i + 1) for i in range(len(text))]

    def encode_answer(self, text, chat=True):
        return [*self.answer_offsets(text, chat)[0], self.answer_end(chat)]


def preference(name, prompt, chosen, rejected="no"):
    return Preference(name, int(name), prompt, Answer.parse(chosen), Answer.parse(rejected))


A = EncodedPair("a", [1, 10, 11], [20, 21, 2], [30, 2])
B = EncodedPair("b", [1, 12], [22, 2], [31, 32, 2])


def test_a_prompt_that_the_template_refuses_is_named():
    class Refusing(LetterTokenizer):
        def encode_prompt(self, prompt):
            raise InputError("the chat template omits the text")

    with pytest.raises(InputError, match=r"^line 3 \(3\): the chat template omits the text"):
        encode_pairs([preference("3", "ill?", "yes")], Refusing(), 40)


def test_layout_of_a_packed_row():
    batch = collate([A, B], row_length=18, prompt_targets=True)
    assert batch.tokens.tolist() == [[1, 10, 11, 20, 21, 2, 30, 2, 1, 12, 22, 2, 31, 32, 2, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4, 0, 1, 2, 3, 2, 3, 4, 0, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, -1, -1, -1]]
    assert (batch.pairs, batch.ids, batch.token_total) == (2, ("a", "b"), 15)


def test_every_target_is_predicted_from_the_token_before_it():
    batch = collate([A, B], row_length=18, prompt_targets=True)
    rows = zip(batch.predict, batch.targets, batch.pair, batch.side, batch.column, strict=True)
    seen = {tuple(int(x) for x in row) for row in rows}
    a = {(0, 10, 0, PROMPT, 0), (1, 11, 0, PROMPT, 1)}
    a |= {(2, 20, 0, CHOSEN, 0), (3, 21, 0, CHOSEN, 1), (4, 2, 0, CHOSEN, 2)}
    a |= {(2, 30, 0, REJECTED, 0), (6, 2, 0, REJECTED, 1)}  # from the last prompt position, as the chosen one
    b = {(8, 12, 1, PROMPT, 0), (9, 22, 1, CHOSEN, 0), (10, 2, 1, CHOSEN, 1)}
    b |= {(9, 31, 1, REJECTED, 0), (12, 32, 1, REJECTED, 1), (13, 2, 1, REJECTED, 2)}
    assert seen == a | b and len(batch.predict) == len(a | b)
    assert not (collate([A, B]).side == PROMPT).any()


def test_fixed_shapes_pad_rows_and_refuse_what_does_not_fit():
    batch = collate([A, B], row_length=8, rows=4)
    assert batch.tokens.shape == (4, 8) and (batch.segments[2:] == -1).all()
    with pytest.raises(ValueError, match="need 2 rows"):
        collate([A, B], row_length=8, rows=1)
    with pytest.raises(ValueError, match="does not fit"):
        collate([A], row_length=7)


def test_padding_is_known_by_segment_not_by_token():
    zeros = EncodedPair("z", [0, 0], [0], [0, 0])
    batch = collate([zeros], row_length=7)
    assert batch.segments.tolist() == [[0, 0, 1, 2, 2, -1, -1]]
    assert batch.targets.tolist() == [0, 0, 0]


def test_a_record_without_a_rejected_answer():
    batch = collate([EncodedPair("a", [1, 5], [6, 2], [])])
    assert batch.tokens.tolist() == [[1, 5, 6, 2]] and (batch.side == CHOSEN).all()


def test_pack_is_first_fit_and_loses_nothing():
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (200,), generator=g).tolist()
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    assert len(rows) <= 1.1 * sum(lengths) / 64 + 1
    assert pack([5, 4, 3, 2], 6) == [[0], [1, 3], [2]]


def test_spans_mark_target_tokens_and_never_the_end_of_turn():
    pairs, _ = encode_pairs([preference("1", "q", "ab<mask>cd</mask>", "x")], LetterTokenizer(), 50)
    assert pairs[0].chosen == [97, 98, 99, 100, 2]
    assert pairs[0].chosen_span == [False, False, True, True, False]
    assert pairs[0].rejected_span == [False, False]  # one side may have no span
    batch = collate(pairs)
    assert batch.span.tolist() == [False, False, True, True, False, False, False]
    assert collate([A]).span is None


def test_every_answer_is_tokenised_once_on_the_way_to_a_batch():
    class Counting(LetterTokenizer):
        seen = []

        def answer_offsets(self, text, chat=True):
            self.seen.append(text)
            return super().answer_offsets(text, chat)

    records = [preference("1", "q", "a <mask>b</mask>", "a <mask>c</mask>"), preference("2", "q", "d", "e")]
    list(make_batches(encode_pairs(records, Counting(), 50)[0], 2))
    assert Counting.seen == ["a b", "a c", "d", "e"]


def test_records_without_spans_are_dropped_and_counted_where_spans_are_used():
    records = [preference("1", "q", "a<mask>b</mask>"), preference("2", "q", "ab")]
    pairs, report = encode_pairs(records, LetterTokenizer(), 50, drop_spanless=True)
    assert [p.id for p in pairs] == ["1"] and report.spanless == ["2"]
    assert "1 dropped as neither answer marks a span: 2" in str(report)
    assert len(encode_pairs(records[1:], LetterTokenizer(), 50, drop_spanless=True)[0]) == 1  # no spans anywhere


LONG = [preference("1", "abcdef", "xy"), preference("2", "ab", "xy"), preference("3", "a", "x" * 30)]


def test_overlength_drop():
    pairs, report = encode_pairs(LONG, LetterTokenizer(), 8)
    assert [p.id for p in pairs] == ["2"] and report.dropped == ["1", "3"]
    assert str(report) == "1 pairs; 2 dropped as longer than --max-length: 1, 3"


def test_overlength_truncate_prompt_keeps_the_first_token_and_the_end_and_never_cuts_answers():
    pairs, report = encode_pairs(LONG, LetterTokenizer(), 8, "truncate-prompt")
    assert pairs[0].prompt == [1, *map(ord, "cdef")] and pairs[0].chosen == [*map(ord, "xy"), 2]
    assert report.truncated == ["1"] and report.dropped == ["3"]


def test_overlength_error_names_every_record():
    with pytest.raises(InputError, match="2 pairs are longer than --max-length 8:\n  line 1 .1.: 10 tokens\n  line 3"):
        encode_pairs(LONG, LetterTokenizer(), 8, "error")


def test_nothing_left_is_an_error():
    with pytest.raises(InputError, match="no pair is left"):
        encode_pairs(LONG[:1], LetterTokenizer(), 8)


def test_make_batches_takes_every_pair_once_in_order():
    batches = list(make_batches([A, B, A], 2))
    assert [batch.ids for batch in batches] == [("a", "b"), ("a",)]


def test_a_batch_moves_as_a_whole(monkeypatch):
    """Its integers in one transfer, each back to its own shape; on the device it knows its original on the CPU."""
    pairs = [replace(A, chosen_span=[True] * len(A.chosen), rejected_span=[False] * len(A.rejected)), B]
    batch = collate([replace(pair, fields={"weight": 0.5}) for pair in pairs], prompt_targets=True)
    batch = replace(batch, images={"pixel_values": torch.ones(2), "image_grid_thw": torch.ones(2, dtype=torch.int64)})
    moved, sent = batch.to("meta"), []
    assert moved.host is batch and moved.images["image_grid_thw"].is_cpu and moved.images["pixel_values"].is_meta
    assert all(x.is_cpu for x in moved.kl_positions.values())
    monkeypatch.setattr("mint.data.batch.upload", lambda x, device: sent.append(x.numel()) or x)
    moved = batch.to("meta")  # the values, which stay on the CPU
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(moved, name), value) and getattr(moved, name).dtype == value.dtype, name
    for key, side in batch.sides.items():
        assert all(torch.equal(ours, x) for ours, x in zip(moved.sides[key][:2], side[:2], strict=True))
    assert len(sent) == 4  # integers, spans, pixels, weights
    assert batch.to("cpu") is batch

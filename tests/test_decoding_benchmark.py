"""Decoding next to transformers: the table, with a stand-in for transformers' model."""

import argparse
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from benchmarks import decoding
from benchmarks.decoding import measure, span, until
from benchmarks.gpu.decoding import NoText
from mint.demo.tiny_model import write_base
from mint.errors import InputError
from mint.models import load_model
from mint.models.generate import generate
from mint.synthetic.cohort import sample_cohort
from mint.tasks.disease import Disease

PAD = 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    notes = [message["content"] for case in sample_cohort(16) for message in Disease().messages(case)]
    write_base(folder, notes, shape="shallow")
    return folder


@pytest.fixture
def peer(monkeypatch):
    """A ``transformers`` whose models take prompts padded on the left and give answers padded on the right."""

    class Model:
        def __init__(self, folder):
            self.model, self.generation_config = load_model(folder), SimpleNamespace(eos_token_id=[1])
            self.calls = 0

        def eval(self):
            return self

        def generate(self, tokens, attention_mask, max_new_tokens, do_sample, pad_token_id):
            assert not do_sample
            self.calls += 1
            ends = self.generation_config.eos_token_id or []
            prompts = [row[shown.bool()].tolist() for row, shown in zip(tokens, attention_mask, strict=True)]
            assert all(row[-1] == ids[-1] for row, ids in zip(tokens.tolist(), prompts, strict=True))
            texts = generate(self.model, NoText(set(ends)), prompts, max_new_tokens)
            answers = [[*map(int, text.split()), *ends[:1]] for text in texts]
            longest = max(map(len, answers))
            padded = [ids + [pad_token_id] * (longest - len(ids)) for ids in answers]
            return torch.cat([tokens, torch.tensor(padded)], dim=1)

    models = []

    def from_pretrained(folder, dtype):
        assert dtype == torch.float32
        models.append(Model(folder))
        return models[-1]

    module = ModuleType("transformers")
    module.AutoModelForCausalLM = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "transformers", module)
    return models


def arguments(folder, out, **changes):
    return argparse.Namespace(**{"model": str(folder), "out": str(out), "threads": 1, "repeats": 2} | changes)


def test_both_sides_take_turns_and_their_answers_are_compared(checkpoint, peer, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "LENGTH", 4)
    monkeypatch.setattr(decoding, "LONGEST", 6)
    table = measure(arguments(checkpoint, tmp_path))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert [row[0].split(":")[0] for row in rows[2:]] == ["1 equally long", "16 equally long", "16 notes"]
    assert [row[1] for row in rows[2:4]] == ["4", "4"]
    assert [row[-1] for row in rows[2:]] == ["1", "16", "16"]
    assert all(float(cell) >= 0 for row in rows[2:] for cell in row[2:5])
    assert peer[0].calls == 3 * 3  # a warm-up and two turns of each batch
    assert (tmp_path / "decoding.md").read_text() == table


def test_without_transformers_it_says_so(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="transformers is not installed"):
        measure(arguments(checkpoint, tmp_path))


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"threads": 0}])
def test_settings_out_of_range(wrong, checkpoint, tmp_path):
    with pytest.raises(InputError, match="at least 1"):
        measure(arguments(checkpoint, tmp_path, **wrong))


def test_an_answer_stops_before_its_first_end():
    assert until([5, 6, 2, 7, 2], {2, 3}) == [5, 6]
    assert until([5, 6], {2}) == [5, 6]
    assert until([2], {2}) == []


def test_a_span_of_equal_numbers_is_one_number():
    assert span([3, 9, 5]) == "3 to 9"
    assert span([4, 4]) == "4"

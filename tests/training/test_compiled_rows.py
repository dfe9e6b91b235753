"""Compiled layers: two graphs for all row lengths."""

from types import SimpleNamespace

import pytest
import torch

import train
from mint.data.batch import EncodedPair, collate
from mint.losses import load_loss
from mint.models import attention, init_model
from mint.models.generate import generate
from mint.models.lora import add_lora
from mint.objective import preference_loss
from mint.training.forward import Forward
from tests.reference.weights import TINY_LLAMA

SHAPE = {"rows": 1, "multiple": 128, "budget": 384}


def pair_of(length):
    return EncodedPair("a", [1] * (length - 20), [2] * 12, [3] * 8)


def make_forward(graphs, backend):
    """Of a model whose compiled layers add their graphs to ``graphs``."""
    torch._dynamo.reset()
    model = add_lora(init_model(TINY_LLAMA | {"num_hidden_layers": 3}), 4, 8, targets="q_proj,down_proj")
    model.attention_backend = backend
    model.compile_blocks(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    return Forward(model, load_loss("orpo"), 1, shape=SHAPE)


def test_all_row_lengths_take_two_graphs():
    """That of the first one, and one for any other. All layers share them, and later batches take them."""
    graphs = []
    forward = make_forward(graphs, "dense")
    for lengths, compiled in (([90], 1), ([200], 2), ([128], 2), ([130, 70, 90, 60], 2), ([256, 255], 2), ([380], 2)):
        train.accumulate_gradients(forward, [pair_of(length) for length in lengths])
        assert len(graphs) == compiled


def test_sample_answers_are_written_without_compilation():
    """A few answers do not repay it."""
    graphs = []
    model, tokenizer = make_forward(graphs, "dense").model, SimpleNamespace(eos_ids=set(), decode=len)
    assert generate(model, tokenizer, [[1, 2, 3], [4] * 9], 6) == [6, 6] and graphs == []


@pytest.mark.usefixtures("flash_on_cpu")
def test_sequences_of_any_number_and_length_are_compiled_into_the_same_graphs():
    graphs = []
    forward = make_forward(graphs, "flash")
    for lengths, compiled in (([90], 1), ([60, 50], 1), ([200], 2), ([130, 70, 90, 60], 2), ([380], 2)):
        train.accumulate_gradients(forward, [pair_of(length) for length in lengths])
        assert len(graphs) == compiled


def test_policy_and_reference_share_the_mask(monkeypatch):
    made, make = [], attention.make_mask
    monkeypatch.setattr("mint.models.llama.make_mask", lambda *given: made.append(1) or make(*given))
    preference_loss(add_lora(init_model(TINY_LLAMA), 4, 8), collate([pair_of(40)]), load_loss("dpo"))
    assert len(made) == 1

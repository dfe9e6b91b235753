"""Compiled layers: two graphs for all row lengths."""

import functools
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
from mint.training.monitor import evaluate
from tests.reference.weights import TINY_LLAMA

LENGTHS = (128, 256, 384)


def pair_of(length):
    return EncodedPair("a", [1] * (length - 20), [2] * 12, [3] * 8)


def make_forward(graphs, backend):
    """Of a model whose compiled layers add their graphs to ``graphs``."""
    torch._dynamo.reset()
    model = add_lora(init_model(TINY_LLAMA | {"num_hidden_layers": 3}), 4, 8, targets="q_proj,down_proj")
    model.attention_backend = backend
    model.compile_blocks(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    return Forward(model, load_loss("orpo"), 1, shape={"row_lengths": LENGTHS})


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


def test_a_block_mask_is_compiled_into_the_same_graphs():
    graphs = []
    forward = make_forward(graphs, "flex")
    for lengths, compiled in (([90], 1), ([60, 50], 1), ([200], 2), ([130, 70, 90, 60], 2), ([380], 2)):
        evaluate(forward, [pair_of(length) for length in lengths])
        assert len(graphs) == compiled


@pytest.mark.parametrize(("length", "kind"), [(256, "BlockMask"), (250, "Tensor")])
def test_on_cuda_only_whole_blocks_take_flex_attention(length, kind, monkeypatch):
    """The mask is compiled too, which is left out here."""
    monkeypatch.setattr(attention, "_compiled", lambda function: function)
    segments = torch.zeros(1, length, dtype=torch.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True, raising=False)
        mask = attention.make_mask(segments, segments)
    assert type(mask).__name__ == kind


def test_the_mask_of_a_row_length_is_compiled_once(monkeypatch):
    """On CUDA; its blocks are those of the mask that is not compiled."""
    torch._dynamo.reset()
    graphs = []
    compiled = functools.cache(
        lambda function: torch.compile(
            function, **attention.COMPILED, backend=lambda graph, _: graphs.append(graph) or graph.forward
        )
    )
    monkeypatch.setattr(attention, "_compiled", compiled)
    for lengths in ([90, 30], [60, 50, 100]):
        batch = collate([pair_of(length) for length in lengths], 256, 1)
        plain = attention.make_mask(batch.segments, batch.positions, backend="flex")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cuda", True, raising=False)
            mask = attention.make_mask(batch.segments, batch.positions)
        assert torch.equal(mask.to_dense(), plain.to_dense()) and torch.equal(mask.kv_num_blocks, plain.kv_num_blocks)
        assert len(graphs) == 1


def test_policy_and_reference_share_the_mask(monkeypatch):
    made, make = [], attention.make_mask
    monkeypatch.setattr("mint.models.llama.make_mask", lambda *given: made.append(1) or make(*given))
    preference_loss(add_lora(init_model(TINY_LLAMA), 4, 8), collate([pair_of(40)]), load_loss("dpo"))
    assert len(made) == 1

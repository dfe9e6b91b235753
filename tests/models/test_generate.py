"""Decoding: the same answers batched and alone, cached and not; sampling by hand; limits."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mint.errors import InputError
from mint.models import init_model
from mint.models.generate import generate, penalize_repetition, pick, sampling_probabilities
from mint.models.llama import KeyValueCache
from tests.reference import mllama_inputs
from tests.reference.weights import TINY_LLAMA, draw, reference_weights

REFERENCE = Path(__file__).parent.parent / "reference"
PENALIZED = json.loads((REFERENCE / "generation.json").read_text())
IDS = SimpleNamespace(eos_ids=set(), decode=lambda ids: list(ids))
PROMPTS = [[1, 5, 9], [1, 40, 41, 42, 43, 44, 45], [1], [1, 99, 3, 7]]


@pytest.fixture(scope="module")
def model():
    return init_model(TINY_LLAMA | {"initializer_range": 0.3}, seed=4)


@torch.no_grad()
def uncached(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_is_the_argmax_whatever_the_batch(model, each_device):
    expected = [uncached(model, prompt, 10) for prompt in PROMPTS]
    assert len({tuple(e) for e in expected}) > 1
    moved = copy.deepcopy(model).to(each_device)
    for size in (1, 3, 32):
        assert generate(moved, IDS, PROMPTS, max_new_tokens=10, batch_size=size) == expected


def test_sampling_repeats_by_seed_and_does_not_depend_on_the_batch(model):
    options = {"max_new_tokens": 10, "temperature": 0.9, "top_p": 0.95, "top_k": 20}
    first = generate(model, IDS, PROMPTS, seed=1, **options)
    assert generate(model, IDS, PROMPTS, seed=1, batch_size=1, **options) == first
    assert generate(model, IDS, PROMPTS, seed=2, **options) != first


def test_an_answer_ends_before_its_end_token(model):
    whole = uncached(model, PROMPTS[1], 10)
    end = whole[4]
    stopping = SimpleNamespace(eos_ids={end}, decode=lambda ids: list(ids))
    assert generate(model, stopping, [PROMPTS[1]], max_new_tokens=10) == [whole[: whole.index(end)]]


def test_sampling_probabilities_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    close = torch.testing.assert_close
    close(sampling_probabilities(logits, 1.0, 1.0, 0), torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    close(sampling_probabilities(logits, 1.0, 1.0, 2), torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    close(sampling_probabilities(logits, 1.0, 0.6, 0), torch.tensor([[0.625, 0.375, 0.0, 0.0]]))  # 0.5 alone is < 0.6
    close(sampling_probabilities(logits, 1.0, 0.5, 0), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    squared = torch.tensor([[0.25, 0.09, 0.0225, 0.0025]])
    close(sampling_probabilities(logits, 0.5, 1.0, 0), squared / squared.sum())
    # the temperature first, then top-k, then top-p of what is left: 0.25 / 0.34 = 0.735 < 0.8
    close(sampling_probabilities(logits, 0.5, 0.8, 2), torch.tensor([[0.25, 0.09, 0.0, 0.0]]) / 0.34)


def test_penalised_logits_by_hand_and_as_transformers_has_them():
    """Each token once, however often it stood there; a penalty above 1 lowers logits of either sign."""
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0]], dtype=torch.float64)
    present = torch.tensor([[True, True, False, True]])
    assert penalize_repetition(logits, present, 1.25).tolist() == [[2 / 1.25, -2.5, 1.0, 0.0]]
    drawn = draw("penalised logits", (2, 9), 0, std=2.0)
    present = torch.zeros(2, 9, dtype=torch.bool).scatter(1, torch.tensor(PENALIZED["seen"]), True)
    for penalty, expected in PENALIZED["penalised"].items():
        torch.testing.assert_close(penalize_repetition(drawn, present, float(penalty)), torch.tensor(expected))


@pytest.mark.parametrize("name", PENALIZED["greedy"])
def test_text_under_a_repetition_penalty_equals_transformers(name):
    """Prompt and answer both count; a second prompt in the batch keeps its own tokens."""
    record = json.loads((REFERENCE / "models.json").read_text())
    config = record["configs"][name]
    network = init_model(config)
    weights = reference_weights(config, PENALIZED["seed"])  # four times as large, as in make_models.py
    network.load_state_dict({key: w * (4 if w.dim() > 1 else 1) for key, w in weights.items()})
    prompt = ((draw("model tokens", (2, 24), 0, std=1000.0).long() % 128).abs())[0, :12].tolist()
    texts = {}
    for penalty, expected in PENALIZED["greedy"][name].items():
        prompts = [prompt, [7] * 3]
        texts[penalty] = generate(network, IDS, prompts, max_new_tokens=16, repetition_penalty=float(penalty))[0]
        assert texts[penalty] == expected
    assert len(set(map(tuple, texts.values()))) == len(texts)


def test_the_penalty_applies_to_what_is_sampled_from(model):
    """A penalty that moves all mass off the tokens that stand there already."""
    options = {"max_new_tokens": 20, "temperature": 1.0, "top_k": 1, "repetition_penalty": 1e6}
    for prompt, answer in zip(PROMPTS, generate(model, IDS, PROMPTS, **options), strict=True):
        assert len({*prompt, *answer}) == len(set(prompt)) + len(answer)


def test_the_penalty_passes_over_tokens_without_a_logit():
    """Llama 3.2 Vision's image token lies after the vocabulary."""
    network = init_model(mllama_inputs.TINY, seed=1)
    image = network.image_slots[0]
    assert image >= network.head_weight.shape[0]
    plain, penalised = (generate(network, IDS, [[1, image, 5]], 4, repetition_penalty=p)[0] for p in (1.0, 1e6))
    assert len(plain) == 4 and len({1, 5, *penalised}) == 6


def test_tokens_are_picked_by_hand():
    """Tokens without probability never, whatever is drawn."""
    probabilities = torch.tensor([[0.0, 0.25, 0.75, 0.0]]).expand(5, 4)
    draws = torch.tensor([0.0, 0.249, 0.25, 0.7, 1 - 2.0**-24])
    assert pick(probabilities, draws).tolist() == [1, 1, 2, 2, 2]


def test_equal_prompts_are_read_once(model, monkeypatch):
    read = []
    forward = model.forward_cached
    monkeypatch.setattr(
        model, "forward_cached", lambda tokens, *more: (read.append(len(tokens)), forward(tokens, *more))[1]
    )
    prompts = [PROMPTS[1], PROMPTS[0], PROMPTS[1], PROMPTS[1], PROMPTS[0]]
    options = {"max_new_tokens": 6, "temperature": 0.9, "seed": 3}
    together = generate(model, IDS, prompts, **options)
    assert read[0] == 2 and read[1] == 5
    assert together == generate(model, IDS, prompts, batch_size=1, **options)
    assert len({tuple(together[i]) for i in (0, 2, 3)}) > 1


def test_draws_follow_the_probabilities(model):
    logits = model(torch.tensor([[1]]))[0, -1]
    expected = sampling_probabilities(logits.detach().unsqueeze(0), 1.0, 1.0, 5)[0]
    answers = generate(model, IDS, [[1]] * 2000, max_new_tokens=1, temperature=1.0, top_k=5, batch_size=2000)
    share = torch.bincount(torch.tensor([a[0] for a in answers]), minlength=128) / 2000
    assert (share - expected).abs().max() < 4 * 0.5 / 2000**0.5


def test_a_long_prompt_does_not_shorten_its_neighbours(model):
    prompts = [[1], [1] * 120]
    alone = [generate(model, IDS, [prompt], max_new_tokens=50)[0] for prompt in prompts]
    assert [len(answer) for answer in alone] == [50, 8]
    assert generate(model, IDS, prompts, max_new_tokens=50) == alone


def test_limits_are_checked(model):
    for options in ({"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"max_new_tokens": 0}):
        with pytest.raises(InputError, match="decoding needs"):
            generate(model, IDS, [[1]], **options)
    with pytest.raises(InputError, match="repetition_penalty above 0, not 0"):
        generate(model, IDS, [[1]], repetition_penalty=0)
    with pytest.raises(InputError, match="prompt 2 has 128 tokens; the model's context is 128"):
        generate(model, IDS, [[1], [1] * 128])
    assert len(generate(model, IDS, [[1] * 120], max_new_tokens=50)[0]) == 8  # up to the end of the context


def test_activation_checkpointing_does_not_lose_the_cache(model):
    """A model that was trained with it, and decodes while gradients are recorded."""
    cache = KeyValueCache(model.config, 1, 8, model.head_weight)
    tokens, positions = torch.tensor([PROMPTS[1]]), torch.arange(7).unsqueeze(0)
    model.gradient_checkpointing = True
    try:
        model.forward_cached(tokens, positions, cache)
        step = model.forward_cached(torch.tensor([[9]]), torch.tensor([[7]]), cache)
    finally:
        model.gradient_checkpointing = False
    whole = model(torch.tensor([[*PROMPTS[1], 9]]))[0, -1]
    torch.testing.assert_close(step[0, 0] @ model.head_weight.T, whole, atol=1e-4, rtol=1e-4)

"""Answers held to known names, whatever the model; ranking of names against the uncached model."""

import copy
import dataclasses
import gzip
import json
from pathlib import Path

import pytest
import torch

from mint.data.cases import HEADER, diagnosis_messages, format_list, parse_list
from mint.data.chat import load_tokenizer
from mint.demo.tiny_model import write_base
from mint.errors import InputError
from mint.evaluation import name_scores
from mint.evaluation.constrained import ListGrammar
from mint.evaluation.metrics import KnownDiseases, score_list
from mint.evaluation.name_scores import rank_names
from mint.models import init_model, load_model
from mint.models.generate import generate
from mint.synthetic.cohort import load_syndromes
from tests.reference.weights import TINY_LLAMA

SHARED = Path(__file__).parents[3] / "shared" / "data"
NAMES = [syndrome.name for syndrome in load_syndromes()]
# names that begin another, end in marks that tokenizers join to a line break, or hold odd characters
AWKWARD = [
    "Noonan syndrome",
    "Noonan syndrome 12",
    "Noonan syndrome (PTPN11)",
    "Zoë–Müller's [type] 'IV'",
    "5p- syndrome",
]
AWKWARD += ["A;B"]
PROMPTS = [diagnosis_messages(note) for note in ("A boy with ptosis.", "A 3-year-old girl is referred.", "Seizures.")]


@pytest.fixture(scope="module", params=["phrases", "llama3"])
def setting(request, tmp_path_factory):
    """(model of random weights, tokenizer): of our own phrases, and of Llama 3's vocabulary where it is at hand."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "phrases":
        write_base(folder, [format_list(NAMES)] * 3 + [m["content"] for p in PROMPTS for m in p], "demo", 900)
        return load_model(folder), load_tokenizer(folder)
    source = SHARED / "tokenizers" / "llama3" / "tokenizer.json.gz"
    if not source.is_file():
        pytest.skip(f"no Llama 3 vocabulary at {source}")
    (folder / "tokenizer.json").write_bytes(gzip.decompress(source.read_bytes()))
    settings = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(folder)
    raw = TINY_LLAMA | {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 4096, "initializer_range": 0.2}
    return init_model(raw, seed=1), tokenizer


@pytest.mark.parametrize("names", [NAMES, AWKWARD, NAMES[:1]], ids=["syndromes", "awkward", "one"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 5.0, "top_k": 10, "top_p": 0.8}], ids=["greedy", "sampled"])
def test_every_listed_name_is_known_and_none_repeats(setting, names, sampling):
    model, tokenizer = setting
    answers = generate(model, tokenizer, PROMPTS, max_new_tokens=1, grammar=ListGrammar(tokenizer, names), **sampling)
    known = KnownDiseases(names)
    for answer in answers:
        listed = parse_list(answer)
        assert len(listed) == len(set(listed)) == min(10, len(names))
        assert score_list(listed, names[0], known, names[:10], names[-3:]).hallucination_free == 1.0


def test_the_tokens_are_those_the_model_was_taught(setting):
    """Walking an encoded answer through the grammar: every token of it is allowed."""
    _, tokenizer = setting
    for names in (NAMES, [*AWKWARD, *NAMES[:8]]):
        grammar = ListGrammar(tokenizer, names)
        for listed in (names[:10], names[:-11:-1], [names[2], *names[4:12], names[1]]):
            state, ids = grammar.start(), tokenizer.encode_answer(format_list(listed))
            assert len(ids) <= grammar.longest
            for token in ids:
                assert token in state.allowed(), tokenizer.decode([token])
                state.advance(token)
            assert state.listed == listed and state.text() == format_list(listed) and not state.allowed()


def test_greedy_among_what_is_allowed(setting):
    """The first line is the likeliest path, token by token, of the model run without a cache."""
    model, tokenizer = setting
    grammar = ListGrammar(tokenizer, NAMES)
    answer = generate(model, tokenizer, PROMPTS[:1], grammar=grammar)[0]
    state, ids = grammar.start(), tokenizer.encode_prompt(PROMPTS[0])
    while not state.listed:
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1]
        ids.append(max(state.allowed(), key=lambda token: logits[token]))
        state.advance(ids[-1])
    assert parse_list(answer)[0] == state.listed[0]


@pytest.mark.parametrize(
    "header, names, count, window",
    [(HEADER, [*NAMES[:5], *AWKWARD[:3]], 2, None), ("Likely", NAMES[:2], 1, None), (HEADER, NAMES[:4], 1, 6)],
)
def test_names_are_ranked_by_their_probability(setting, header, names, count, window):
    """p(name) = p(name, then another line) + p(name, then the end), by whole answers without a cache, in float64."""
    model, tokenizer = setting
    model = copy.deepcopy(model)
    model.config = dataclasses.replace(model.config, sliding_window=window)
    scores = rank_names(model, tokenizer, PROMPTS[:count], names, top=len(names), header=header)
    grammar = ListGrammar(tokenizer, names, header=header)
    shared = next(i for i in range(99) if len({tuple(ids[: i + 1]) for ids in grammar.first}) > 1)
    reference = copy.deepcopy(model).double()
    for row, messages in enumerate(PROMPTS[:count]):
        prompt = tokenizer.encode_prompt(messages)
        for column, name in enumerate(names):
            other = next(n for n in names if n != name)
            logps = []
            for listed, cut in (
                ([name, other], len(grammar.first[column]) + (not grammar.holds_break[column])),
                ([name], None),
            ):
                answer = tokenizer.encode_answer(format_list(listed, header))[:cut]
                ids = torch.tensor([prompt + answer])
                with torch.no_grad():
                    steps = reference(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
                logps.append(steps[len(prompt) + shared - 1 :].sum())
            assert scores[row, column] == pytest.approx(float(torch.logaddexp(*logps)), abs=1e-3)


def test_names_that_cannot_be_among_the_best_are_not_asked_for(setting, monkeypatch):
    """The best are those of the complete ranking, with its scores; of the others some are left out."""
    model, tokenizer = setting
    model = taught(model, tokenizer, NAMES[:2])
    names = [*AWKWARD, *NAMES]
    complete = rank_names(model, tokenizer, PROMPTS[:2], names, top=len(names))
    monkeypatch.setattr(name_scores, "TOKENS", 3)
    monkeypatch.setattr(name_scores, "AHEAD", 2)
    best = rank_names(model, tokenizer, PROMPTS[:2], names, top=2)
    assert complete.isfinite().all()
    assert best.isneginf().any(1).all()
    torch.testing.assert_close(best.topk(2), complete.topk(2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(best, complete.where(best.isfinite(), best), atol=1e-4, rtol=1e-4)


def taught(model, tokenizer, names):
    """A copy of the model that lists one of the names after the first prompt."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    prompt = tokenizer.encode_prompt(PROMPTS[0])
    for step in range(20):
        answer = tokenizer.encode_answer(format_list(names[step % len(names) :][:1]))
        logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_scores_follow_the_names_as_given(setting):
    model, tokenizer = setting
    scores = rank_names(model, tokenizer, PROMPTS[:1], NAMES[:4], top=4)
    turned = rank_names(model, tokenizer, PROMPTS[:1], NAMES[3::-1], top=4)
    torch.testing.assert_close(scores.flip(1), turned, atol=1e-4, rtol=1e-4)
    repeated = rank_names(model, tokenizer, PROMPTS[:1], [NAMES[0], NAMES[0].upper(), NAMES[1]], top=3)
    assert repeated[0, 0] == repeated[0, 1] != repeated[0, 2]
    assert rank_names(model, tokenizer, [], NAMES[:3], top=3).shape == (0, 3)


def test_what_cannot_be_listed(setting):
    model, tokenizer = setting
    for names, message in (
        ([], "no known names"),
        (["a", " .. "], "cannot stand in a list"),
        (["a\nb"], "cannot stand"),
    ):
        with pytest.raises(InputError, match=message):
            ListGrammar(tokenizer, names)
    small = init_model(TINY_LLAMA | {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 40})
    with pytest.raises(InputError, match="prompt 1"):
        generate(small, tokenizer, PROMPTS[:1], grammar=ListGrammar(tokenizer, NAMES))
    with pytest.raises(InputError, match="leaves no room"):
        rank_names(small, tokenizer, PROMPTS[:1], NAMES, top=3)

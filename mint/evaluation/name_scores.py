"""Names ranked by a language model: no list is written, every known name is scored as the first of one.

The spelling is that of ``ListGrammar``, the tokens that the tokenizer itself gives an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mint.data.cases import HEADER
from mint.data.chat import ChatTokenizer
from mint.errors import InputError
from mint.evaluation.constrained import ListGrammar
from mint.evaluation.metrics import normalize
from mint.losses.logprobs import token_stats
from mint.models.llama import CausalLM, KeyValueCache
from mint.progress import Progress

NAMES = 64  # scored at a time


@torch.no_grad()
def rank_names(
    model: CausalLM,
    tokenizer: ChatTokenizer,
    prompts: Sequence[list[dict]],
    names: Sequence[str],
    top: int,
    progress: bool = False,
    done: Callable[[int, Tensor], None] = lambda *_: None,
    header: str = HEADER,
) -> Tensor:
    """[prompts, names] float32: log p(the list begins with this name | prompt), and the name ends there.

    The ``top`` best names of every prompt have their score. Of the others, those whose first token alone is less
    likely than the ``top`` best names have -inf: they need not be asked for. A name ends with the line break, or with
    the answer. The prompt is run once; the names go on from its keys and values. done: called with each prompt's place
    and its row. header: the first line of a list. Raises InputError where a prompt and the longest name do not fit in
    the model's context.
    """
    grammar = ListGrammar(tokenizer, names, header=header)
    places = {normalize(name): place for place, name in enumerate(grammar.names)}
    paths = [_paths(grammar, place) for place in range(len(grammar.names))]
    shared = _shared([path.ids for ways in paths for path in ways])
    opening = paths[0][0].ids[:shared]
    paths = [[path._replace(ids=path.ids[shared:]) for path in ways] for ways in paths]
    longest = max(len(path.ids) for ways in paths for path in ways)
    training = model.training
    model.eval()
    order = [places[normalize(name)] for name in names]
    scores = torch.full((len(prompts), len(names)), -torch.inf)
    for row, messages in enumerate(Progress(prompts, desc="ranking", unit="prompt", show=progress)):
        prompt = tokenizer.encode_prompt(messages) + opening
        if len(prompt) + longest > model.config.max_position_embeddings:
            raise InputError(f"prompt {row + 1} leaves no room for a name: it has {len(prompt)} tokens")
        scores[row] = _score_names(model, prompt, paths, top)[order]
        done(row, scores[row])
    model.train(training)
    return scores


class _Path(NamedTuple):
    """A tokenisation of a name as the first line.

    ids: its tokens. ends: tokens of which one must follow; empty if the name has ended.
    """

    ids: list[int]
    ends: list[int]


def _paths(grammar: ListGrammar, place: int) -> list[_Path]:
    ids, end = grammar.first[place], grammar.tokenizer.end_of_turn
    ends = [] if end is None else [end]
    if grammar.length == 1:
        return [_Path(ids, ends)]
    if not grammar.holds_break[place]:
        return [_Path(ids, [next(iter(grammar.tree(2, False).children)), *ends])]
    alone = grammar.tokenizer.answer_offsets(f"{grammar.header}\n1. {grammar.names[place]}")[0]
    return [_Path(ids, []), *([_Path(alone, ends)] if ends else [])]


def _shared(lines: Sequence[list[int]]) -> int:
    """How many tokens all lines begin with; one token at least of each is its own."""
    least = min(map(len, lines)) - 1
    return next((i for i in range(least) if len({ids[i] for ids in lines}) > 1), least)


def _score_names(model: CausalLM, prompt: list[int], paths: Sequence[Sequence[_Path]], top: int) -> Tensor:
    """[names] log-probabilities of each name, written in any of its ``paths``, after the prompt; see rank_names."""
    device = model.head_weight.device
    cache = KeyValueCache(model.config, 1, len(prompt), model.head_weight)
    positions = torch.arange(len(prompt), device=device).unsqueeze(0)
    last = model.forward_cached(torch.tensor([prompt], device=device), positions, cache)[:, -1]
    first = model.logits(last)[0].float().log_softmax(-1).cpu()
    bounds = torch.stack([first[list({path.ids[0] for path in ways})].logsumexp(0) for ways in paths])
    scores = torch.full((len(paths),), -torch.inf)
    order = bounds.argsort(descending=True, stable=True)
    for members in order.split(NAMES):
        if (scores > bounds[members[0]]).sum() >= top:
            break
        some = [(int(name), path) for name in members for path in paths[name]]
        logps = _score(model, cache, last, [path for _, path in some])
        for (name, _), logp in zip(some, logps, strict=True):
            scores[name] = torch.logaddexp(scores[name], logp)
    return scores


def _score(model: CausalLM, once: KeyValueCache, last: Tensor, paths: Sequence[_Path]) -> Tensor:
    """[paths] log-probabilities of each path after the prompt whose keys and values are in ``once``.

    last: [1, H], the prompt's last state.
    """
    device = model.head_weight.device
    lengths = torch.tensor([len(path.ids) for path in paths])
    longest = int(lengths.max())
    tokens = torch.tensor([path.ids + [0] * (longest - len(path.ids)) for path in paths])
    places = torch.arange(once.length, once.length + longest, device=device).expand(len(paths), -1)
    after = model.forward_cached(tokens.to(device), places, _copy(once, model, len(paths), once.length + longest))
    hidden = torch.cat((last.expand(len(paths), 1, -1), after), 1)  # [paths, longest + 1, H]
    # positions that predict a token of the name, then those at its end that predict what follows
    predicting = torch.arange(longest) < lengths[:, None]
    rows, columns = predicting.nonzero(as_tuple=True)
    ends = [(row, int(lengths[row]), end) for row, path in enumerate(paths) for end in path.ends]
    rows = torch.cat((rows, torch.tensor([row for row, _, _ in ends], dtype=torch.int64)))
    columns = torch.cat((columns, torch.tensor([column for _, column, _ in ends], dtype=torch.int64)))
    targets = torch.cat((tokens[predicting], torch.tensor([end for _, _, end in ends], dtype=torch.int64)))
    states = hidden[rows.to(device), columns.to(device)]
    update = model.head_update(states)
    logps = token_stats(states, model.head_weight, targets.to(device), update=update).logps.cpu().float()
    names = int(lengths.sum())
    total = torch.zeros(len(paths)).index_add_(0, rows[:names], logps[:names])
    ended = torch.tensor([-torch.inf if path.ends else 0.0 for path in paths])
    for row, logp in zip(rows[names:].tolist(), logps[names:], strict=True):
        ended[row] = torch.logaddexp(ended[row], logp)
    return total + ended


def _copy(once: KeyValueCache, model: CausalLM, rows: int, slots: int) -> KeyValueCache:
    """The prompt's cache for many rows, with room after it."""
    cache = KeyValueCache(model.config, rows, slots, model.head_weight)
    for target, source in zip(cache.layers, once.layers, strict=True):
        for wide, narrow in zip(target, source, strict=True):
            wide[:, :, : once.length] = narrow
    return cache

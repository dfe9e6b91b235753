"""Names ranked by a language model: no list is written, every known name is scored as the first of one.

The spelling is that of ``ListGrammar``, the tokens that the tokenizer itself gives an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mint.data.cases import HEADER
from mint.data.chat import ChatTokenizer
from mint.errors import InputError
from mint.evaluation.constrained import ListGrammar
from mint.evaluation.metrics import normalize
from mint.models.llama import CausalLM, KeyValueCache
from mint.progress import Progress

NAMES = 16  # run at a time

Known = dict[tuple[int, ...], np.ndarray]  # front of a name -> [V] log-probabilities of what follows it


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

    The ``top`` best names of every prompt have their score. Of the others, those whose first tokens alone are less
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
    """[names] log-probabilities of each name, written in any of its ``paths``, after the prompt; see rank_names.

    A name is no likelier than the tokens at its front that are known. The names with the highest bounds are run next,
    one for each known front: that tells what may follow the fronts it shares with others, and bounds these too.
    """
    device = model.head_weight.device
    cache = KeyValueCache(model.config, 1, len(prompt), model.head_weight)
    positions = torch.arange(len(prompt), device=device).unsqueeze(0)
    last = model.forward_cached(torch.tensor([prompt], device=device), positions, cache)[:, -1]
    known: Known = {(): _log_softmax(model, last)[0]}
    while True:
        found = [[_bound(path, known) for path in ways] for ways in paths]
        bounds = np.array([np.logaddexp.reduce([bound for bound, _ in ways]) for ways in found])
        complete = np.array([all(depth is None for _, depth in ways) for ways in found])
        scores = np.where(complete, bounds, -np.inf)
        least = np.sort(scores)[-top] if top <= len(scores) else -np.inf
        open_names = [i for i in np.argsort(-bounds, kind="stable") if not complete[i] and bounds[i] > least]
        if not open_names:
            return torch.from_numpy(scores).float()
        fronts: dict[tuple[int, ...], list[int]] = {}
        for path, (_, depth) in ((p, f) for i in open_names for p, f in zip(paths[i], found[i], strict=True)):
            if depth is not None:
                fronts.setdefault(tuple(path.ids[:depth]), path.ids)
        _run(model, cache, list(fronts.values())[:NAMES], known)


def _bound(path: _Path, known: Known) -> tuple[float, int | None]:
    """(the log-probability of the path's front that is known, its length; None where all of the path is known)."""
    total = 0.0
    for depth, token in enumerate(path.ids):
        if (after := known.get(tuple(path.ids[:depth]))) is None:
            return total, depth
        total += after[token]
    if not path.ends:
        return total, None
    if (after := known.get(tuple(path.ids))) is None:
        return total, len(path.ids)
    return total + np.logaddexp.reduce(after[path.ends]), None


def _run(model: CausalLM, once: KeyValueCache, lines: Sequence[list[int]], known: Known) -> None:
    """Adds what follows every front of the lines to ``known``. once: keys and values of the prompt."""
    longest = max(map(len, lines))
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in lines], device=model.head_weight.device)
    places = torch.arange(once.length, once.length + longest, device=tokens.device).expand(len(lines), -1)
    after = model.forward_cached(tokens, places, _copy(once, model, len(lines), once.length + longest))
    fronts = {tuple(ids[: i + 1]): (row, i) for row, ids in enumerate(lines) for i in range(len(ids))}
    rows, columns = zip(*fronts.values(), strict=True)
    known |= zip(fronts, _log_softmax(model, after[list(rows), list(columns)]), strict=True)


def _log_softmax(model: CausalLM, hidden: Tensor) -> np.ndarray:
    """[N, V] log-probabilities of the next token after final states [N, H]."""
    return model.logits(hidden).float().log_softmax(-1).cpu().numpy()


def _copy(once: KeyValueCache, model: CausalLM, rows: int, slots: int) -> KeyValueCache:
    """The prompt's cache for many rows, with room after it."""
    cache = KeyValueCache(model.config, rows, slots, model.head_weight)
    for target, source in zip(cache.layers, once.layers, strict=True):
        for wide, narrow in zip(target, source, strict=True):
            wide[:, :, : once.length] = narrow
    return cache

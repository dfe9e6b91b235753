"""Names ranked by a language model: no list is written, every known name is scored as the first of one.

The spelling is that of ``ListGrammar``, the tokens that the tokenizer itself gives an answer.
"""

from __future__ import annotations

import heapq
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

TOKENS, AHEAD = 64, 4  # read at a time, about; of one name

Known = dict[tuple[int, ...], np.ndarray]  # prefix of a name -> [V] log-probabilities of what follows it


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

    A name is no likelier than its known prefix, so the names with the likeliest prefixes are read on first.
    """
    tree = _PrefixTree(model, prompt)
    names = [[_PathScore(path) for path in ways] for ways in paths]
    scores = np.full(len(names), -np.inf)
    open_names = [(0.0, place) for place in range(len(names))]  # a heap: the likeliest first, by the sign
    best: list[float] = []  # the ``top`` best scores so far, a heap
    while True:
        waiting = []
        while open_names and tree.room > 0 and not (len(best) == top and -open_names[0][0] <= best[0]):
            before, place = heapq.heappop(open_names)
            bound = np.logaddexp.reduce([way.advance(tree.known) for way in names[place]])
            if all(way.complete for way in names[place]):
                scores[place] = bound
                (heapq.heappush if len(best) < top else heapq.heappushpop)(best, bound)
            elif bound < -before:  # others may be likelier now
                heapq.heappush(open_names, (-bound, place))
            else:
                waiting.append((-bound, place))
                for way in names[place]:
                    tree.ask(way)
        if not waiting:
            return torch.from_numpy(scores).float()
        tree.read()
        for item in waiting:
            heapq.heappush(open_names, item)


class _PathScore:
    """How far a path is known. total: the log-probability of its first ``depth`` tokens, at last with what ends it."""

    def __init__(self, path: _Path):
        self.path, self.total, self.depth, self.complete = path, 0.0, 0, False

    def advance(self, known: Known) -> float:
        """Goes as far as the known prefixes allow; returns ``total``."""
        ids, ends = self.path
        while not self.complete:
            if self.depth == len(ids) and not ends:
                self.complete = True
            elif (after := known.get(tuple(ids[: self.depth]))) is None:
                break
            elif self.depth < len(ids):
                self.total += after[ids[self.depth]]
                self.depth += 1
            else:
                self.total += np.logaddexp.reduce(after[ends])
                self.complete = True
        return self.total


class _PrefixTree:
    """The prefixes of names that the model has read after a prompt, as a tree: what names share is read once.

    known: what follows each prefix.
    """

    def __init__(self, model: CausalLM, prompt: list[int]):
        device = model.head_weight.device
        self.model, self.start = model, len(prompt)
        self.cache = KeyValueCache(model.config, 1, len(prompt), model.head_weight)
        positions = torch.arange(len(prompt), device=device).unsqueeze(0)
        last = model.forward_cached(torch.tensor([prompt], device=device), positions, self.cache)[:, -1]
        self.known: Known = {(): _log_softmax(model, last)[0]}
        self._slots: dict[tuple[int, ...], int] = {}  # of the last token of each prefix
        self._new: dict[tuple[int, ...], int] = {}

    @property
    def room(self) -> int:
        """How many tokens more may be asked for before they are read."""
        return TOKENS - len(self._new)

    def ask(self, way: _PathScore) -> None:
        """Asks for the next ``AHEAD`` tokens of a path, from the first that is not known."""
        ids, ends = way.path
        last = len(ids) if ends else len(ids) - 1
        for end in range(max(1, way.depth), min(way.depth + AHEAD - 1, last) + 1) if not way.complete else ():
            if (prefix := tuple(ids[:end])) not in self._slots and prefix not in self._new:
                self._new[prefix] = self.start + len(self._slots) + len(self._new)

    def read(self) -> None:
        """Reads what was asked for."""
        device, prefixes = self.model.head_weight.device, list(self._new)
        self._slots |= self._new
        used = self.start + len(self._slots)
        if used > self.cache.length:
            self.cache.extend(max(used, 2 * self.cache.length))
        self.cache.used = used
        mask = torch.zeros(len(prefixes), used, dtype=torch.bool)
        mask[:, : self.start] = True
        for row, prefix in enumerate(prefixes):
            mask[row, [self._slots[prefix[:end]] for end in range(1, len(prefix) + 1)]] = True
        tokens = torch.tensor([[prefix[-1] for prefix in prefixes]], device=device)
        positions = torch.tensor([[self.start + len(prefix) - 1 for prefix in prefixes]])
        if (window := self.model.config.sliding_window) is not None:
            depths = torch.tensor([*range(self.start), *(self.start + len(prefix) - 1 for prefix in self._slots)])
            mask &= positions[0, :, None] - depths < window
        slots = torch.tensor([list(self._new.values())], device=device)
        tree = slots, mask.unsqueeze(0).to(device)
        after = self.model.forward_cached(tokens, positions.to(device), self.cache, tree=tree)[0]
        self.known |= zip(prefixes, _log_softmax(self.model, after), strict=True)
        self._new = {}


def _log_softmax(model: CausalLM, hidden: Tensor) -> np.ndarray:
    """[N, V] log-probabilities of the next token after final states [N, H]."""
    return model.logits(hidden).float().log_softmax(-1).cpu().numpy()

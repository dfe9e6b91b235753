"""Decoding that never leaves the answer's form: every listed name is a known one, and none is listed twice.

``ListGrammar`` restricts the next token to what continues a list of known names; ``rank_names`` asks for no list at
all, but how likely each known name is as the first of one. Both follow the tokens that the tokenizer itself gives an
answer, so that a model is asked in the spelling it was taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mint.data.cases import HEADER, format_list
from mint.errors import InputError
from mint.evaluation.metrics import normalize
from mint.losses.logprobs import token_stats
from mint.models.llama import KeyValueCache

LENGTH = 10  # names of a list
NAMES = 64  # scored at a time


class Node:
    """A place in the prefix tree of a line. names: a bit for each name below; end: the name that is complete here."""

    __slots__ = ("children", "end", "names")

    def __init__(self) -> None:
        self.children: dict[int, Node] = {}
        self.names = 0
        self.end: int | None = None


class ListGrammar:
    """The lists of ``length`` different known names (of all, where fewer are known), as sequences of tokens."""

    def __init__(self, tokenizer, names: Sequence[str], length: int = LENGTH):
        """names: of those that are the same after ``normalize``, the first is listed.

        Raises InputError for no names, and for one that is blank or holds a line break.
        """
        self.tokenizer = tokenizer
        self.names = tuple({normalize(name): name for name in reversed(names)}.values())[::-1]
        self.length = min(length, len(self.names))
        if not self.names:
            raise InputError("there are no known names to choose from")
        if bad := [name for name in self.names if not normalize(name) or len(name.splitlines()) != 1]:
            raise InputError(f"{bad[0]!r} cannot stand in a list: a name is one line, and not blank")
        self.first = [self._line(1, name) for name in self.names]
        # Some tokenizers write a line break and the mark before it as one token: such a name holds its line break.
        self.holds_break = [self._holds_break(name) for name in self.names]
        self._trees: dict[tuple[int, bool], Node] = {}

    def start(self) -> ListState:
        """The beginning of an answer."""
        return ListState(self)

    @property
    def longest(self) -> int:
        """No list has more tokens than this, its end included."""
        return self.length * (max(map(len, self.first)) + 2) + 1

    def tree(self, number: int, after_break: bool) -> Node:
        """The prefix tree of line ``number``; ``after_break``: the line before held the line break."""
        if (number, after_break) not in self._trees:
            before = self.names[self.holds_break.index(after_break)] if number > 1 else None
            root = Node()
            for place, name in enumerate(self.names):
                node = root
                node.names |= 1 << place
                for token in self.first[place] if number == 1 else self._line(number, name, before):
                    node = node.children.setdefault(token, Node())
                    node.names |= 1 << place
                node.end = place
            self._trees[number, after_break] = root
        return self._trees[number, after_break]

    def _line(self, number: int, name: str, before: str | None = None) -> list[int]:
        """The tokens of ``name`` as line ``number``; the header belongs to the first line."""
        opening = HEADER if before is None else f"{HEADER}\n{number - 1}. {before}"
        text = f"{opening}\n{number}. {name}"
        following = "" if number == self.length else f"\n{number + 1}. "
        ids, offsets = self.tokenizer.answer_offsets(text + following)
        begin = 0 if before is None else _first_from(offsets, len(opening))
        return ids[begin : _first_from(offsets, len(text))]

    def _holds_break(self, name: str) -> bool:
        text = f"{HEADER}\n1. {name}"
        _, offsets = self.tokenizer.answer_offsets(f"{text}\n2. ")
        return self.length > 1 and offsets[_first_from(offsets, len(text)) - 1][1] > len(text)


def _first_from(offsets: Sequence[tuple[int, int]], place: int) -> int:
    """The first token that begins at ``place`` of the text or behind it; their number, if none does."""
    return next((i for i, (start, end) in enumerate(offsets) if start >= place and end > start), len(offsets))


class ListState:
    """How far one answer has come. listed: the names that are complete."""

    def __init__(self, grammar: ListGrammar):
        self.grammar = grammar
        self.listed: list[str] = []
        self._used, self._node = 0, grammar.tree(1, False)

    def allowed(self) -> list[int]:
        """The tokens that may come next: of this line, of the next one, or those that end a complete answer."""
        tokens = _open(self._node, self._used)
        if (name := self._complete()) is not None:
            following = self._line_after(name)
            used = self._used | 1 << name
            tokens += sorted(self.grammar.tokenizer.eos_ids) if following is None else _open(following, used)
        return tokens

    def advance(self, token: int) -> None:
        """Takes a token that :meth:`allowed` has offered."""
        if token in _open(self._node, self._used):
            self._node = self._node.children[token]
            return
        name = self._complete()
        following = self._line_after(name)
        self.listed.append(self.grammar.names[name])
        self._used |= 1 << name
        self._node = Node() if following is None else following.children[token]

    def text(self) -> str:
        """The answer so far, without a name that is not complete."""
        return format_list(self.listed)

    def _complete(self) -> int | None:
        end = self._node.end
        return None if end is None or self._used >> end & 1 else end

    def _line_after(self, name: int) -> Node | None:
        """The tree of the line behind the one that ``name`` completes; None behind the last."""
        number = len(self.listed) + 1
        return None if number == self.grammar.length else self.grammar.tree(number + 1, self.grammar.holds_break[name])


def _open(node: Node, used: int) -> list[int]:
    return [token for token, child in node.children.items() if child.names & ~used]


@torch.no_grad()
def rank_names(
    model: nn.Module, tokenizer, prompts: Sequence[list[dict]], names: Sequence[str], top: int, progress: bool = False
) -> Tensor:
    """[prompts, names] float32: log p(the list begins with this name | prompt), and the name ends there.

    The ``top`` best names of every prompt have their score. Of the others, those whose first token alone is less
    likely than the ``top`` best names have -inf: they need not be asked for. A name ends with the line break, or with
    the answer. The prompt is run once; the names go on from its keys and values. Raises InputError where a prompt and
    the longest name do not fit in the model's context.
    """
    grammar = ListGrammar(tokenizer, names)
    places = {normalize(name): place for place, name in enumerate(grammar.names)}
    paths = [_paths(grammar, place) for place in range(len(grammar.names))]
    shared = _shared([path.ids for ways in paths for path in ways])
    opening = paths[0][0].ids[:shared]
    paths = [[path._replace(ids=path.ids[shared:]) for path in ways] for ways in paths]
    longest = max(len(path.ids) for ways in paths for path in ways)
    training = model.training
    model.eval()
    scores = torch.full((len(prompts), len(grammar.names)), -torch.inf)
    for row, messages in enumerate(tqdm(prompts, desc="ranking", unit="prompt", disable=None if progress else True)):
        prompt = tokenizer.encode_prompt(messages) + opening
        if len(prompt) + longest > model.config.max_position_embeddings:
            raise InputError(f"prompt {row + 1} leaves no room for a name: it has {len(prompt)} tokens")
        scores[row] = _score_names(model, prompt, paths, top)
    model.train(training)
    return scores[:, [places[normalize(name)] for name in names]]


class _Path(NamedTuple):
    """A way to write a name as the first line. ids: its tokens; ends: those of which one must follow (none: it has ended)."""

    ids: list[int]
    ends: list[int]


def _paths(grammar: ListGrammar, place: int) -> list[_Path]:
    ids, end = grammar.first[place], grammar.tokenizer.end_of_turn
    ends = [] if end is None else [end]
    if grammar.length == 1:
        return [_Path(ids, ends)]
    if not grammar.holds_break[place]:
        return [_Path(ids, [next(iter(grammar.tree(2, False).children)), *ends])]
    alone = grammar.tokenizer.answer_offsets(f"{HEADER}\n1. {grammar.names[place]}")[0]
    return [_Path(ids, []), *([_Path(alone, ends)] if ends else [])]


def _shared(lines: Sequence[list[int]]) -> int:
    """How many tokens all lines begin with; one token at least of each is its own."""
    least = min(map(len, lines)) - 1
    return next((i for i in range(least) if len({ids[i] for ids in lines}) > 1), least)


def _score_names(model: nn.Module, prompt: list[int], paths: Sequence[Sequence[_Path]], top: int) -> Tensor:
    """[names] log-probabilities of each name, written in any of its ``paths``, after the prompt; see rank_names."""
    device, head = model.head_weight.device, model.head_weight
    cache = KeyValueCache(model.config, 1, len(prompt), head)
    positions = torch.arange(len(prompt), device=device).unsqueeze(0)
    last = model.forward_cached(torch.tensor([prompt], device=device), positions, cache)[:, -1]
    first = F.linear(last, head)[0].float().log_softmax(-1).cpu()
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


def _score(model: nn.Module, once: KeyValueCache, last: Tensor, paths: Sequence[_Path]) -> Tensor:
    """[paths] log-probabilities of each path after the prompt whose keys and values are in ``once``.

    last: [1, H], the prompt's last state.
    """
    device, head = model.head_weight.device, model.head_weight
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
    logps = token_stats(hidden[rows.to(device), columns.to(device)], head, targets.to(device)).logps.cpu().float()
    names = int(lengths.sum())
    total = torch.zeros(len(paths)).index_add_(0, rows[:names], logps[:names])
    ended = torch.tensor([-torch.inf if path.ends else 0.0 for path in paths])
    for row, logp in zip(rows[names:].tolist(), logps[names:], strict=True):
        ended[row] = torch.logaddexp(ended[row], logp)
    return total + ended


def _copy(once: KeyValueCache, model: nn.Module, rows: int, slots: int) -> KeyValueCache:
    """The prompt's cache for many rows, with room behind it."""
    cache = KeyValueCache(model.config, rows, slots, model.head_weight)
    for target, source in zip(cache.layers, once.layers, strict=True):
        for wide, narrow in zip(target, source, strict=True):
            wide[:, :, : once.length] = narrow
    return cache

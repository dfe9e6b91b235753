"""Decoding that never leaves the answer's form: every listed name is a known one, and none is listed twice.

``ListGrammar`` restricts the next token to what continues a list of known names. It follows the tokens that the
tokenizer itself gives an answer, so that a model is asked in the spelling it was taught.
"""

from __future__ import annotations

from collections.abc import Sequence

from mint.data.cases import HEADER, format_list
from mint.data.chat import ChatTokenizer
from mint.errors import InputError, quote
from mint.evaluation.metrics import normalize

LENGTH = 10  # names of a list


class Node:
    """A place in the prefix tree of a line. names: a bit for each name below; end: the name that is complete here."""

    __slots__ = ("children", "end", "names")

    def __init__(self) -> None:
        self.children: dict[int, Node] = {}
        self.names = 0
        self.end: int | None = None


class ListGrammar:
    """The lists of ``length`` different known names (of all, where fewer are known), as sequences of tokens."""

    def __init__(self, tokenizer: ChatTokenizer, names: Sequence[str], length: int = LENGTH, header: str = HEADER):
        """names: of those that are the same after ``normalize``, the first is listed. header: the first line.

        Raises InputError for no names, and for one that is blank or holds a line break.
        """
        self.tokenizer, self.header = tokenizer, header
        self.names = tuple({normalize(name): name for name in reversed(names)}.values())[::-1]
        self.length = min(length, len(self.names))
        if not self.names:
            raise InputError("there are no known names to choose from")
        if bad := [name for name in self.names if not normalize(name) or len(name.splitlines()) != 1]:
            raise InputError(f"{quote(bad[0])} cannot stand in a list: a name is one line, and not blank")
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
        opening = self.header if before is None else f"{self.header}\n{number - 1}. {before}"
        text = f"{opening}\n{number}. {name}"
        following = "" if number == self.length else f"\n{number + 1}. "
        ids, offsets = self.tokenizer.answer_offsets(text + following)
        begin = 0 if before is None else _first_from(offsets, len(opening))
        return ids[begin : _first_from(offsets, len(text))]

    def _holds_break(self, name: str) -> bool:
        text = f"{self.header}\n1. {name}"
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
        assert name is not None  # after an unfinished name, only tokens of the line are offered
        following = self._line_after(name)
        self.listed.append(self.grammar.names[name])
        self._used |= 1 << name
        self._node = Node() if following is None else following.children[token]

    def text(self) -> str:
        """The answer so far, without a name that is not complete."""
        return format_list(self.listed, self.grammar.header)

    def _complete(self) -> int | None:
        end = self._node.end
        return None if end is None or self._used >> end & 1 else end

    def _line_after(self, name: int) -> Node | None:
        """The tree of the line behind the one that ``name`` completes; None behind the last."""
        number = len(self.listed) + 1
        return None if number == self.grammar.length else self.grammar.tree(number + 1, self.grammar.holds_break[name])


def _open(node: Node, used: int) -> list[int]:
    return [token for token, child in node.children.items() if child.names & ~used]

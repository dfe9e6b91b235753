"""On-policy rejected lists: answers that the model to be aligned writes itself.

``policy``: of several sampled answers the one whose list the teacher scores lowest is rejected for the teacher's list.
``edit``: the model's own greedy list is rejected for its minimal edit into names of the teacher.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from mint import parallel
from mint.data.spans import TAG
from mint.errors import InputError
from mint.evaluation.decoding import answer_prompts, load, load_vision_model
from mint.evaluation.metrics import normalize

ON_POLICY = ("policy", "edit")  # values of --reject
_key = functools.lru_cache(maxsize=1 << 16)(normalize)  # a name as it is compared


def add_policy_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Flags of the policy beside ``--device``; read by :class:`Policy`. max_new_tokens: the default."""
    add = parser.add_argument_group("policy, of --reject policy and edit").add_argument
    add("--policy", metavar="DIR|ID", help="the model whose own lists are rejected: the student, best after SFT")
    add("--policy-adapter", metavar="DIR", help="PEFT adapter to put on it")
    for flag, kind, default, text in (
        ("--policy-samples", int, 4, "--reject policy: answers sampled for each note"),
        ("--policy-temperature", float, 0.8, "of these samples"),
        ("--policy-top-p", float, 0.8, "of these samples: the smallest set of tokens with this probability"),
        ("--policy-tokens", int, max_new_tokens, "length of an answer at most"),
        ("--policy-batch", int, 32, "answers decoded at a time"),
    ):
        add(flag, type=kind, default=default, metavar="N" if kind is int else "X", help=f"{text} (default {default})")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of the policy's weights")
    add("--chat-date", default="26 Jul 2024", help="today's date in chat templates that print one")


def check_policy(args: argparse.Namespace) -> None:
    """Raises InputError for flags of the policy that do not fit together."""
    if (args.reject in ON_POLICY) != bool(args.policy):
        raise InputError("--reject policy and --reject edit need --policy, which goes with these two alone")
    if args.policy_adapter and not args.policy:
        raise InputError("--policy-adapter goes with --policy")
    if args.policy_samples < 1 or args.policy_temperature <= 0:
        raise InputError("--policy-samples must be at least 1, and --policy-temperature above 0")
    if parallel.size() > 1 and (args.reject not in ON_POLICY or getattr(args, "fit", None)):
        raise InputError("processes share the answers of --policy alone: start --fit and other pairs without torchrun")


class Policy:
    """The model to be aligned, and how its lists are decoded: ``samples`` for each prompt, or one greedy list."""

    def __init__(self, loaded: tuple, samples: int = 1, **decoding):
        """loaded: model, tokenizer and, for images, their reader. decoding: of ``mint.models.generate.generate``."""
        self.loaded, self.samples, self.decoding = loaded, samples, decoding

    @classmethod
    def load(cls, args: argparse.Namespace, vision: bool) -> Policy:
        """The policy of the flags of :func:`add_policy_options`, ``device``, ``reject`` and ``seed``.

        vision: it reads images. Raises InputError for a model that cannot be loaded.
        """
        named = argparse.Namespace(**vars(args) | {"model": args.policy, "adapter": args.policy_adapter})
        named.max_pixels = None
        loaded = load_vision_model(named) if vision else load(named)
        decoding = {"max_new_tokens": args.policy_tokens, "batch_size": args.policy_batch}
        decoding["seed"] = getattr(args, "seed", 0)  # not every task has the flag
        if args.reject == "edit":
            return cls(loaded, **decoding)
        sampling = {"temperature": args.policy_temperature, "top_p": args.policy_top_p}
        return cls(loaded, args.policy_samples, **decoding, **sampling)

    def answers(self, prompts: Sequence[list[dict]], files: Sequence[Sequence[str]]) -> list[list[str]]:
        """The answers to every prompt, without span tags; processes share them. files: the images of each prompt."""
        places = [place for place in range(len(prompts)) for _ in range(self.samples)]
        asked, seen = [prompts[place] for place in places], [files[place] for place in places]

        def decode(known: Mapping[int, str]) -> list[str]:
            return answer_prompts(self.loaded, asked, seen, known=known, **self.decoding)

        found = parallel.complete(len(asked), {}, decode, unit=self.samples)
        answers = [TAG.sub("", answer) for answer in found]
        return [answers[start : start + self.samples] for start in range(0, len(answers), self.samples)]


class ListForm(Protocol):
    """How a task writes lists; see :class:`mint.tasks.ranked.RankedTask`."""

    def format(self, names: Sequence[str]) -> str:
        """The answer that lists ``names``."""

    def parse(self, answer: str) -> list[str]:
        """The names that an answer lists."""


class ListPair(NamedTuple):
    """chosen, rejected: answers, with tags around spans. listed, avoided: their names. numbers: for the record."""

    chosen: str
    rejected: str
    listed: list[str]
    avoided: list[str]
    numbers: dict

    @property
    def same(self) -> bool:
        """Whether both list the same names in the same order."""
        return list(map(_key, self.listed)) == list(map(_key, self.avoided))


def sampled_pair(form: ListForm, answers: Sequence[str], top: Sequence[str], ranking: Sequence[str]) -> ListPair:
    """The list ``top`` over the answer that :func:`agreement` finds worst; of equal ones the first."""
    lists = [form.parse(answer) for answer in answers]
    scores = [agreement(names, ranking, len(top)) for names in lists]
    written = [i for i, answer in enumerate(answers) if answer.strip()] or [0]
    worst = min(written, key=scores.__getitem__)
    numbers = {"list_scores": [round(score, 4) for score in scores]}
    return ListPair(form.format(top), answers[worst], list(top), lists[worst], numbers)


def edited_pair(form: ListForm, answers: Sequence[str], top: Sequence[str], ranking: Sequence[str]) -> ListPair:
    """The edit of the first answer's list over that list, with span tags around the names that differ.

    Both are written in the task's own form, so that nothing but names differs.
    """
    own = form.parse(answers[0])
    edited, changed = edit_list(own, top)
    chosen, rejected = (form.format(_tag(names, changed)) for names in (edited, own))
    numbers = {"list_scores": [round(agreement(names, ranking, len(top)), 4) for names in (own, edited)]}
    return ListPair(chosen, rejected if own else "", edited, own, numbers)


def agreement(listed: Sequence[str], ranking: Sequence[str], length: int) -> float:
    """How well a list agrees with a teacher's ranking, in [0, 1].

        sum over places i <= length of (1 / i) * (1 / rank of the name at i), divided by the sum of 1 / i^2

    The teacher's own first ``length`` names score 1, an empty list 0. A name that the teacher does not know, and the
    repetition of a name, adds nothing. It reads ranks, not the teacher's scores: logits and log-probabilities cannot be
    compared between teachers, and their means would depend most on how wrong a wrong name is.
    """
    ranks = {_key(name): rank for rank, name in enumerate(ranking, 1)}
    names = [_key(name) for name in listed[:length]]
    gains = (1 / (i * ranks[name]) for i, name in enumerate(names, 1) if name in ranks and name not in names[: i - 1])
    return sum(gains) / sum(1 / i**2 for i in range(1, length + 1))


def edit_list(own: Sequence[str], top: Sequence[str]) -> tuple[list[str], list[bool]]:
    """The minimal edit of a list towards ``top``, and for every place of ``own`` whether its name was changed.

    Names that ``top`` does not hold, and repetitions, are replaced where they stand by the names of ``top`` that the
    list lacks, the best first. Places after ``len(top)`` are removed; a shorter list keeps its length. Names are
    compared without case and punctuation.
    """
    top = list({_key(name): name for name in reversed(top)}.values())[::-1]  # each name once
    names, best = [_key(name) for name in own[: len(top)]], [_key(name) for name in top]
    missing = iter([name for key, name in zip(best, top, strict=True) if key not in names])
    changed = [key not in best or key in names[:i] for i, key in enumerate(names)]
    edited = [next(missing) if other else name for name, other in zip(own, changed, strict=False)]
    return edited, changed + [True] * (len(own) - len(names))


def _tag(names: Sequence[str], changed: Sequence[bool]) -> list[str]:
    return [f"<mask>{name}</mask>" if other else name for name, other in zip(names, changed, strict=False)]

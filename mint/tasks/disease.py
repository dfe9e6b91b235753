"""MINT's first task: decode disease lists for cases, and score them against the truth and the upstream ranking."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from mint.data.cases import Case, diagnosis_messages, format_list, parse_list, write_note
from mint.data.preferences import write_jsonl
from mint.errors import InputError
from mint.evaluation.constrained import LENGTH, ListGrammar
from mint.evaluation.metrics import KnownDiseases, ListScore, score_list
from mint.evaluation.name_scores import rank_names
from mint.files import write_aside
from mint.models.generate import generate
from mint.teachers.ranking import Ranker, rank

COLUMNS = {  # score -> heading of the printed table
    "top_1": "top-1",
    "top_10": "top-10",
    "top_1_exact": "top-1 exact",
    "top_10_exact": "top-10 exact",
    "hallucination_free": "hallucination-free",
    "coverage": "coverage C",
    "avoidance": "avoidance A",
    "car": "CAR",
}
MEANINGS = {
    "top_1": "The true disease is listed first; a name counts from a similarity of 0.8.",
    "top_10": "The true disease is among the first ten names; a name counts from a similarity of 0.8.",
    "top_1_exact": "The true disease is listed first, with every letter right.",
    "top_10_exact": "The true disease is among the first ten names, with every letter right.",
    "hallucination_free": "The share of listed names that are known diseases.",
    "coverage": "C: the share of the teacher's best names that the list holds.",
    "avoidance": "A: the share of the teacher's worst names that the list leaves out.",
    "car": "CAR: the harmonic mean of coverage C and avoidance A.",
}


@dataclasses.dataclass(frozen=True)
class Upstream:
    """For every case, the upstream model's best and worst diseases."""

    top: list[list[str]]
    bottom: list[list[str]]


def rank_upstream(cases: Sequence[Case], ranker: Ranker, top_k: int, bottom_q: int, held_out: bool) -> Upstream:
    """The top k and bottom q of ``ranker`` for every case; ``held_out`` as in ``mint.prefs.pairs.make_pairs``."""
    rankings = [[name for name, _ in ranking] for ranking in rank(ranker, cases, None if held_out else cases)]
    return Upstream([names[:top_k] for names in rankings], [names[-bottom_q:] for names in rankings])


def list_diseases(
    model: nn.Module,
    tokenizer,
    cases: Sequence[Case],
    passages: Sequence[Sequence[str]] | None = None,
    only: Sequence[str] | None = None,
    **decoding,
) -> tuple[list[str], list[list[str]]]:
    """(raw answers, parsed lists) of a model for every case.

    passages: for every case, what was retrieved. only: the names that lists are held to. decoding: see
    ``mint.models.generate.generate``.
    """
    grammar = None if only is None else ListGrammar(tokenizer, only)
    answers = generate(model, tokenizer, write_prompts(cases, passages), progress=True, grammar=grammar, **decoding)
    return answers, [parse_list(answer) for answer in answers]


def rank_diseases(
    model: nn.Module,
    tokenizer,
    cases: Sequence[Case],
    names: Sequence[str],
    passages: Sequence[Sequence[str]] | None = None,
    known: Mapping[int, str] | None = None,
    save: Callable[[dict[int, str]], None] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """(answers, lists) with the ten names that a model finds likeliest as the first of its list, for every case.

    known, save: as for ``mint.models.generate.generate``.
    """
    answers = dict(known or {})
    left = [place for place in range(len(cases)) if place not in answers]
    prompts = [prompt for place, prompt in enumerate(write_prompts(cases, passages)) if place not in answers]

    def keep(row: int, scores: Tensor) -> None:
        best = [names[i] for i in scores.argsort(descending=True, stable=True)[:LENGTH]]
        answers[left[row]] = format_list(best)
        if save is not None:
            save({left[row]: answers[left[row]]})

    rank_names(model, tokenizer, prompts, names, top=LENGTH, progress=True, done=keep)
    found = [answers[place] for place in range(len(cases))]
    return found, [parse_list(answer) for answer in found]


def write_prompts(cases: Sequence[Case], passages: Sequence[Sequence[str]] | None) -> list[list[dict]]:
    """The messages that ask for each case's diseases; passages: for every case, what was retrieved."""
    notes = [write_note(case) for case in cases]
    return [diagnosis_messages(note, found) for note, found in zip(notes, passages or [()] * len(notes), strict=True)]


def score_lists(
    cases: Sequence[Case], lists: Sequence[Sequence[str]], known: KnownDiseases, upstream: Upstream
) -> list[ListScore]:
    """One score per case."""
    return [
        score_list(names, case.disease, known, top, bottom)
        for case, names, top, bottom in zip(cases, lists, upstream.top, upstream.bottom, strict=True)
    ]


def average(scores: Sequence[ListScore]) -> dict[str, float]:
    """The mean of every score over the cases, and how many answers held no list. Raises InputError for no cases."""
    if not scores:
        raise InputError("there are no cases to score")
    names = [field.name for field in dataclasses.fields(ListScore)]
    mean = {name: sum(getattr(score, name) for score in scores) / len(scores) for name in names}
    return {**mean, "cases": len(scores), "without_list": sum(score.listed == 0 for score in scores)}


def format_table(rows: dict[str, dict[str, float]], columns: dict[str, str] = COLUMNS) -> str:
    """A Markdown table, one row per system, scores in per cent. columns: score -> heading."""
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * row[column]:.1f}" for column in columns) + " |")
    return "\n".join(lines)


def save_evaluation(
    folder: Path,
    rows: dict[str, dict[str, float]],
    cases: Sequence[Case],
    answers: Sequence[str],
    lists: Sequence[Sequence[str]],
    scores: Sequence[ListScore],
    settings: dict,
    upstream: Upstream | None = None,
    training_cases: Sequence[Case] = (),
) -> None:
    """Writes ``metrics.json``, and ``predictions.jsonl`` with a row per case; whole files or none.

    The last of ``rows`` is the one that ``answers``, ``lists`` and ``scores`` belong to. training_cases: tell how common
    a disease is.
    """
    counts = Counter(case.disease for case in training_cases)

    def record(place: int, case: Case) -> dict:
        row = {"id": case.id, "disease": case.disease, "answer": answers[place], **dataclasses.asdict(scores[place])}
        row |= {"listed": lists[place], "note": write_note(case)}
        if case.image is not None:
            row["portrait"] = os.path.relpath(case.image, folder)
        if upstream is not None:
            row["teacher"] = upstream.top[place]
        if training_cases:
            row["disease_count"] = counts[case.disease]
        return row

    write_jsonl(folder / "predictions.jsonl", (record(place, case) for place, case in enumerate(cases)))
    write_aside(folder / "metrics.json", json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")

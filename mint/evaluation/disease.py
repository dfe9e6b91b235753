"""MINT's first task: decode disease lists for cases, and score them against the truth and the upstream ranking."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from mint.data.cases import Case, diagnosis_messages, parse_list, write_note
from mint.data.preferences import write_jsonl
from mint.errors import InputError
from mint.evaluation.metrics import KnownDiseases, ListScore, score_list
from mint.models.generate import generate

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


@dataclasses.dataclass(frozen=True)
class Upstream:
    """For every case, the upstream model's best and worst diseases."""

    top: list[list[str]]
    bottom: list[list[str]]


def rank_upstream(cases: Sequence[Case], ranker, top_k: int, bottom_q: int, held_out: bool) -> Upstream:
    """The top k and bottom q of ``ranker`` for every case; ``held_out`` as in ``mint.prefs.pairs.make_pairs``."""
    rankings = [[name for name, _ in ranker.rank(case, None if held_out else case)] for case in cases]
    return Upstream([names[:top_k] for names in rankings], [names[-bottom_q:] for names in rankings])


def list_diseases(model: nn.Module, tokenizer, cases: Sequence[Case], **decoding) -> tuple[list[str], list[list[str]]]:
    """(raw answers, parsed lists) of a model for every case; ``decoding`` as ``mint.models.generate.generate``."""
    prompts = [diagnosis_messages(write_note(case)) for case in cases]
    answers = generate(model, tokenizer, prompts, progress=True, **decoding)
    return answers, [parse_list(answer) for answer in answers]


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


def format_table(rows: dict[str, dict[str, float]]) -> str:
    """A Markdown table, one row per system, scores in per cent."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * row[column]:.1f}" for column in COLUMNS) + " |")
    return "\n".join(lines)


def save_evaluation(
    folder: Path,
    rows: dict[str, dict[str, float]],
    cases: Sequence[Case],
    answers: Sequence[str],
    lists: Sequence[Sequence[str]],
    scores: Sequence[ListScore],
    settings: dict,
) -> None:
    """Writes ``metrics.json``, and ``predictions.jsonl`` with a row per case; whole files or none."""
    write_jsonl(
        folder / "predictions.jsonl",
        (
            {"id": case.id, "disease": case.disease, "answer": answer, **dataclasses.asdict(score), "listed": names}
            for case, answer, names, score in zip(cases, answers, lists, scores, strict=True)
        ),
    )
    temporary = folder / "metrics.json.tmp"
    temporary.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / "metrics.json")

"""Answers of another system: a JSON Lines file with a record per case, or a folder of PhEval's results.

{"id": "case id", "answer": "POTENTIAL_DISEASES:\\n1. ..."}     or     {"id": "case id", "listed": ["name", ...]}
or     {"id": "case id", "ids": ["OMIM:154700", ...]}     the last two also with     "scores": [0.9, ...]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mint.data.cases import HEADER, format_list
from mint.data.records import json_lines
from mint.errors import InputError
from mint.evaluation.pheval import read_pheval
from mint.files import parse_json

SHOWN = 20  # problems listed in full


class Prediction(NamedTuple):
    """An answer. scores: of the names that it lists, the highest first; None where none were given."""

    answer: str
    scores: tuple[float, ...] | None = None


def read_predictions(path: str | Path, ids: Sequence[str], header: str = HEADER) -> list[str]:
    """The answer to every case, in the order of ``ids``; see :func:`read_rankings`."""
    found = read_rankings(path, ids, header)
    return [found[name].answer for name in ids]


def read_rankings(path: str | Path, ids: Sequence[str], header: str = HEADER) -> dict[str, Prediction]:
    """id -> the answer of every case. header: of answers that are given as a list.

    Raises InputError naming every line that cannot be used, and the cases without a prediction. Records of other cases
    are an error too: they indicate a mix-up.
    """
    found: dict[str, Prediction] = {}
    problems: list[str] = []
    if Path(path).is_dir():
        lists = read_pheval(Path(path), ids)
        found = {name: Prediction(format_list(listed, header), tuple(some)) for name, (listed, some) in lists.items()}
    else:
        problems = _read_lines(Path(path), set(ids), header, found)
    if missing := [name for name in ids if name not in found]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        problems.append(f"{path}: no prediction for {len(missing)} cases: {', '.join(missing[:5])}{more}")
    if problems:
        rest = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise InputError(f"{path} cannot be scored:\n  " + "\n  ".join(problems[:SHOWN] + rest))
    return found


def _read_lines(path: Path, wanted: set[str], header: str, found: dict[str, Prediction]) -> list[str]:
    """Adds the predictions of a file to ``found``; returns what is wrong with it."""
    problems = []
    for number, line in json_lines(path):
        try:
            name, prediction = _record(line, header)
            if name not in wanted:
                raise ValueError(f"no case has the id {name!r}")
            if name in found:
                raise ValueError(f"a second prediction for {name!r}")
            found[name] = prediction
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    return problems


def _record(line: bytes, header: str) -> tuple[str, Prediction]:
    """(id, prediction) of a line. Raises ValueError with what is wrong."""
    record = parse_json(line)
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        raise ValueError('needs a string "id"')
    given = [name for name in ("answer", "listed", "ids") if record.get(name) is not None]
    if given == ["answer"] and isinstance(record["answer"], str):
        return record["id"], Prediction(record["answer"])
    listed = record[given[0]] if given in (["listed"], ["ids"]) else None
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ValueError('needs "answer", a text, or "listed", a list of names, or "ids", a list of ids')
    if not all(name.strip() and name.isprintable() for name in listed):
        raise ValueError(f'"{given[0]}" holds an entry that is blank, or has a line break')
    scores = record.get("scores")
    if scores is None:
        return record["id"], Prediction(format_list(listed, header))
    numbers = isinstance(scores, list) and all(type(one) in (int, float) and math.isfinite(one) for one in scores)
    if not numbers or len(scores) != len(listed):
        raise ValueError(f'"scores" must be a number for each of "{given[0]}"')
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    answer = format_list([listed[i] for i in order], header)
    return record["id"], Prediction(answer, tuple(float(scores[i]) for i in order))

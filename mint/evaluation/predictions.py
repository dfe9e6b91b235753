"""Answers of another system: a JSON Lines file with a record per case.

{"id": "case id", "answer": "POTENTIAL_DISEASES:\\n1. ..."}     or     {"id": "case id", "listed": ["name", ...]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mint.data.cases import HEADER, format_list
from mint.errors import InputError

SHOWN = 20  # problems listed in full


def read_predictions(path: str | Path, ids: Sequence[str], header: str = HEADER) -> list[str]:
    """The answer to every case, in the order of ``ids``. header: of answers that are given as ``listed``.

    Raises InputError naming every line that cannot be used, and the cases without a prediction. Records of other cases
    are an error too: they indicate a mix-up.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    wanted = set(ids)
    found: dict[str, str] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, answer = _record(line, header)
            if name not in wanted:
                raise ValueError(f"no case has the id {name!r}")
            if name in found:
                raise ValueError(f"a second prediction for {name!r}")
            found[name] = answer
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if missing := [name for name in ids if name not in found]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        problems.append(f"{path}: no prediction for {len(missing)} cases: {', '.join(missing[:5])}{more}")
    if problems:
        rest = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise InputError(f"{path} cannot be scored:\n  " + "\n  ".join(problems[:SHOWN] + rest))
    return [found[name] for name in ids]


def _record(line: str, header: str) -> tuple[str, str]:
    """(id, answer) of a line. Raises ValueError with what is wrong."""
    try:
        record = json.loads(line)
    except ValueError:
        raise ValueError("not valid JSON") from None
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        raise ValueError('needs a string "id"')
    listed, answer = record.get("listed"), record.get("answer")
    if listed is None and isinstance(answer, str):
        return record["id"], answer
    if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
        return record["id"], format_list(listed, header)
    raise ValueError('needs "answer", a text, or "listed", a list of names')

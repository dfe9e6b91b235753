"""Lists that another model wrote: a JSON Lines file with a record per case.

{"id": "case id", "answer": "POTENTIAL_DISEASES:\\n1. ..."}     or     {"id": "case id", "listed": ["name", ...]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mint.data.cases import Case, format_list, parse_list
from mint.errors import InputError

SHOWN = 20  # problems listed in full


def read_predictions(path: str | Path, cases: Sequence[Case]) -> tuple[list[str], list[list[str]]]:
    """(answers, lists) in the order of ``cases``.

    Raises InputError naming every line that cannot be used, and the cases without a prediction. Records of other cases
    are an error too: they tell of a mix-up.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    wanted = {case.id for case in cases}
    found: dict[str, tuple[str, list[str]]] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, answer, listed = _record(line)
            if name not in wanted:
                raise ValueError(f"no case has the id {name!r}")
            if name in found:
                raise ValueError(f"a second prediction for {name!r}")
            found[name] = answer, listed
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if missing := [case.id for case in cases if case.id not in found]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        problems.append(f"{path}: no prediction for {len(missing)} cases: {', '.join(missing[:5])}{more}")
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise InputError(f"{path} cannot be scored:\n  " + "\n  ".join(problems[:SHOWN] + more))
    return [found[case.id][0] for case in cases], [found[case.id][1] for case in cases]


def _record(line: str) -> tuple[str, str, list[str]]:
    """(id, answer, list) of a line. Raises ValueError with what is wrong."""
    try:
        record = json.loads(line)
    except ValueError:
        raise ValueError("not valid JSON") from None
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        raise ValueError('needs a string "id"')
    listed, answer = record.get("listed"), record.get("answer")
    if listed is None and isinstance(answer, str):
        return record["id"], answer, parse_list(answer)
    if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
        return record["id"], answer if isinstance(answer, str) else format_list(listed), listed
    raise ValueError('needs "answer", a text, or "listed", a list of names')

"""Preference files: JSON Lines (also .gz, and Parquet where pyarrow is installed) of prompt, chosen, rejected.

    {"prompt": str | messages, "chosen": str | messages, "rejected": str | messages,
     "images": [path, ...], "corrupted_images": [path, ...], "id": ...}

A message is {"role": "system" | "user" | "assistant", "content": str}. Without ``prompt`` it is implicit: what both
conversations share before their last message, or the common beginning of two strings. Every bad line is reported, all
at once, before anything else happens.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mint.data.spans import parse_spans
from mint.errors import InputError

ROLES = ("system", "user", "assistant")
FIELDS = {"prompt", "chosen", "rejected", "images", "corrupted_images", "id"}
SHOWN = 50  # problems listed in full


@dataclass(frozen=True)
class Preference:
    """One record. ``chosen`` and ``rejected`` keep their ``<mask>`` tags; ``rejected`` is None where there is none."""

    id: str
    line: int
    prompt: str | list[dict]
    chosen: str
    rejected: str | None
    images: tuple[str, ...] = ()
    corrupted_images: tuple[str, ...] = ()
    extra: dict = field(default_factory=dict)


class PreferenceErrors(InputError):
    """All problems of a preference file, as ``problems``: one "FILE:LINE: what is wrong" each."""

    def __init__(self, path: Path, problems: list[str]):
        self.problems = problems
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__(f"{path} has {count}:\n  " + "\n  ".join(problems[:SHOWN] + more))


class _Problem(Exception):
    """What is wrong with one record."""


def read_preferences(path: str | Path, require_rejected: bool = True) -> list[Preference]:
    """The records of a preference file, in order.

    require_rejected: False for losses that only read the chosen answer; a record may then lack ``rejected``.
    Raises PreferenceErrors naming every bad line, InputError if the file cannot be read or holds no record.
    """
    path = Path(path)
    records: list[Preference] = []
    problems: list[str] = []
    lines_by_id: dict[str, int] = {}
    for number, content in _lines(path):
        try:
            record = _parse(content, number, require_rejected)
            if record.id in lines_by_id:
                raise _Problem(f"id {record.id!r} is that of line {lines_by_id[record.id]} too")
            lines_by_id[record.id] = number
            records.append(record)
        except _Problem as problem:
            problems.append(f"{path}:{number}: {problem}")
    if problems:
        raise PreferenceErrors(path, problems)
    if not records:
        raise InputError(f"{path} holds no records")
    return records


def _lines(path: Path) -> Iterator[tuple[int, bytes | dict]]:
    """(line number, content) of every line that is not blank; Parquet rows come as dictionaries."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow), or convert it to .jsonl") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    for number, row in enumerate(rows, 1):
        yield number, {key: value for key, value in row.items() if value is not None}


def _parse(content: bytes | dict, line: int, require_rejected: bool) -> Preference:
    raw = content if isinstance(content, dict) else _decode(content)
    if not isinstance(raw, dict):
        raise _Problem(f"a record must be an object, not {_kind(raw)}")
    needed = ("chosen", "rejected") if require_rejected or "rejected" in raw else ("chosen",)
    missing = [name for name in needed if name not in raw]
    if missing:
        raise _Problem(f"missing {' and '.join(missing)}")
    answers = {name: raw[name] for name in needed}
    if "prompt" in raw:
        prompt = _check_prompt(raw["prompt"])
    else:
        prompt, answers = _split_implicit(answers)
    texts = {name: _answer(name, value) for name, value in answers.items()}
    plain = {name: _untagged(name, text) for name, text in texts.items()}
    if len(plain) == 2 and plain["chosen"].strip() == plain["rejected"].strip():
        raise _Problem("chosen and rejected are the same")
    identity = raw.get("id", f"line-{line}")
    if isinstance(identity, bool) or not isinstance(identity, (str, int)):
        raise _Problem(f"id must be a string or an integer, not {_kind(identity)}")
    images, corrupted = (_paths(raw, name) for name in ("images", "corrupted_images"))
    extra = {key: value for key, value in raw.items() if key not in FIELDS}
    return Preference(
        str(identity), line, prompt, texts["chosen"], texts.get("rejected"), images, corrupted, extra
    )


def _decode(content: bytes):
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Problem(f"not UTF-8 (byte {error.start + 1})") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _Problem(f"invalid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise _Problem("invalid JSON: nested too deeply") from None
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _Problem("holds half of a surrogate pair, which is not text") from None
    return value


def _refuse_constant(name: str):
    raise _Problem(f"invalid JSON: {name} is not a value")


def _kind(value) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _check_prompt(prompt) -> str | list[dict]:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise _Problem("prompt is empty")
        return prompt
    messages = _check_messages("prompt", prompt)
    if messages[-1]["role"] != "user":
        raise _Problem(f"the last message of the prompt must be the user's, not the {messages[-1]['role']}'s")
    return messages


def _check_messages(name: str, messages) -> list[dict]:
    """An optional system message, then user and assistant in turn."""
    if not isinstance(messages, list):
        raise _Problem(f"{name} must be a string or a list of messages, not {_kind(messages)}")
    if not messages:
        raise _Problem(f"{name} is an empty list")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or {"role", "content"} - set(message):
            raise _Problem(f"{name}: message {number} must be an object with role and content")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise _Problem(f"{name}: message {number} has the role {role!r}, not one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise _Problem(f"{name}: the content of message {number} must be a string, not {_kind(content)}")
        if not content.strip():
            raise _Problem(f"{name}: message {number} is empty")
    turns = [message["role"] for message in messages]
    turns = turns[1:] if turns[0] == "system" else turns
    expected = [("user", "assistant")[i % 2] for i in range(len(turns))]
    if turns and turns[0] == "assistant" and len(turns) == 1 and len(messages) == 1 and name != "prompt":
        return messages  # an answer given as its one message
    if turns != expected or not turns:
        raise _Problem(f"{name}: roles out of order: {', '.join(m['role'] for m in messages)}")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _split_implicit(answers: dict) -> tuple[str | list[dict], dict]:
    """(prompt, answers) from two conversations, or two strings, that begin alike."""
    values = list(answers.values())
    if all(isinstance(value, list) for value in values):
        conversations = {name: _check_messages(name, value) for name, value in answers.items()}
        prompts = [conversation[:-1] for conversation in conversations.values()]
        if not prompts[0] or any(prompt != prompts[0] for prompt in prompts):
            raise _Problem("without a prompt, chosen and rejected must share all messages but the last")
        return _check_prompt(prompts[0]), {name: c[-1:] for name, c in conversations.items()}
    if len(values) == 2 and all(isinstance(value, str) for value in values):
        common = os.path.commonprefix(values)
        if any(len(value) > len(common) and not value[len(common)].isspace() for value in values):
            common = common[: max((i + 1 for i, c in enumerate(common) if c.isspace()), default=0)]  # whole words
        if not common.strip():
            raise _Problem("missing prompt, and chosen and rejected do not begin alike")
        return common, {name: value[len(common) :] for name, value in answers.items()}
    raise _Problem("missing prompt")


def _answer(name: str, value) -> str:
    if isinstance(value, list):
        messages = _check_messages(name, value)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise _Problem(f"{name} beside a prompt must be one assistant message, not {len(messages)} messages")
        return messages[0]["content"]
    if not isinstance(value, str):
        raise _Problem(f"{name} must be a string or a list of messages, not {_kind(value)}")
    return value


def _untagged(name: str, text: str) -> str:
    try:
        plain, _ = parse_spans(text)
    except InputError as error:
        raise _Problem(f"{name}: {error}") from None
    if not plain.strip():
        raise _Problem(f"{name} is empty")
    return plain


def _paths(raw: dict, name: str) -> tuple[str, ...]:
    paths = raw.get(name, [])
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise _Problem(f"{name} must be a list of file names")
    return tuple(paths)


def write_jsonl(path: str | Path, records: Iterable[dict]) -> int:
    """Writes records as JSON Lines (gzip for .gz), aside and renamed, so that no half-written file is left.

    Returns their number. Raises InputError if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".writing-{path.name}")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(temporary, "wt", encoding="utf-8") if path.suffix == ".gz" else temporary.open(
            "w", encoding="utf-8"
        ) as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
                count += 1
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return count

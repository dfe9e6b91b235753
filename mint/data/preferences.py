"""Preference files: JSON Lines (also .gz, and Parquet where pyarrow is installed) of prompt, chosen, rejected.

    {"prompt": str | messages, "chosen": str | messages, "rejected": str | messages,
     "images": [path, ...], "corrupted_images": [path, ...], "id": ...}

One image may also be given as "image": path. A message is {"role": "system" | "user" | "assistant", "content": str}.
An answer is a string, one assistant message, or the conversation that ends in it. Without ``prompt`` it is implicit:
what both conversations share before their last message, or the whole words with which two strings begin alike; as
elsewhere in the field, the space between prompt and answer goes to the answer. Other fields are kept in
``Preference.extra``; a loss can ask for those that are numbers. A field that is null counts as absent. Every bad line
is reported, all at once, before anything else happens.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mint.data.image_names import image_names
from mint.data.spans import TAG, parse_spans
from mint.errors import FileProblems, InputError

ROLES = ("system", "user", "assistant")
LARGEST = 3.4e38  # what float32 holds
FIELDS = {"prompt", "chosen", "rejected", "images", "image", "corrupted_images", "id"}


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


class PreferenceErrors(FileProblems):
    """All problems of a preference file."""


class _Problem(Exception):
    """What is wrong with one record."""


def read_preferences(path: str | Path, require_rejected: bool = True, fields: Sequence[str] = ()) -> list[Preference]:
    """The records of a preference file, in order.

    require_rejected: False for losses that only read the chosen answer; a record may then lack ``rejected``.
    fields: names of further fields that every record must have as a finite number; they are in ``Preference.extra``.
    Raises PreferenceErrors naming every bad line, InputError if the file cannot be read or holds no record, or if a
    name of ``fields`` has a meaning of its own.
    """
    path = Path(path)
    if taken := FIELDS.intersection(fields):
        raise InputError(f"a loss cannot ask for the fields {', '.join(sorted(taken))}: their meaning is fixed")
    records: list[Preference] = []
    problems: list[str] = []
    lines_by_id: dict[str, int] = {}
    for number, content in _lines(path):
        try:
            record = _parse(content, number, require_rejected)
            for name in fields:
                _check_number(record, name)
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
        raise InputError(f"{path}: Parquet needs pyarrow (pip install pyarrow), or convert it to .jsonl") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return enumerate(rows, 1)


def _parse(content: bytes | dict, line: int, require_rejected: bool) -> Preference:
    raw = content if isinstance(content, dict) else _decode(content)
    if not isinstance(raw, dict):
        raise _Problem(f"a record must be an object, not {_kind(raw)}")
    raw = {key: value for key, value in raw.items() if value is not None}
    needed = ("chosen", "rejected") if require_rejected or "rejected" in raw else ("chosen",)
    if missing := [name for name in needed if name not in raw]:
        raise _Problem(f"missing {' and '.join(missing)}")
    answers = {name: raw[name] for name in needed}
    if "prompt" in raw:
        prompt, answers = _without_prompt(_check_prompt(raw["prompt"]), answers)
    else:
        prompt, answers = _split_implicit(answers)
    texts = {name: _answer(name, value) for name, value in answers.items()}
    plain = [_untagged(name, text).strip() for name, text in texts.items()]
    if plain[1:] == plain[:1]:
        raise _Problem("chosen and rejected are the same")
    identity = raw.get("id", f"line-{line}")
    if isinstance(identity, bool) or not isinstance(identity, (str, int)):
        raise _Problem(f"id must be a string or an integer, not {_kind(identity)}")
    images, corrupted = _images(raw), _paths(raw, "corrupted_images")
    if corrupted and len(corrupted) != len(images):
        raise _Problem(f"corrupted_images must hold one for each of images: {len(corrupted)} for {len(images)}")
    extra = {key: value for key, value in raw.items() if key not in FIELDS}
    return Preference(str(identity), line, prompt, texts["chosen"], texts.get("rejected"), images, corrupted, extra)


def _check_number(record: Preference, name: str) -> None:
    if name not in record.extra:
        raise _Problem(f"the loss reads the field {name!r}, which the record lacks")
    value = record.extra[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Problem(f"the field {name!r} must be a number, not {_kind(value)}")
    if not abs(value) <= LARGEST:
        raise _Problem(f"the field {name!r} must be a finite number that float32 can hold")


def _decode(content: bytes):
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Problem(f"not UTF-8 (byte {error.start + 1})") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise _Problem(f"invalid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise _Problem("invalid JSON: nested too deeply") from None
    except ValueError:  # Python reads no integer of thousands of digits
        raise _Problem("invalid JSON: a number has too many digits") from None
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _Problem("holds half of a surrogate pair, which is not text") from None
    return value


def _refuse_constant(name: str):
    raise _Problem(f"invalid JSON: {name} is not a value")


def _object(pairs: list[tuple]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Problem(f"invalid JSON: {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return value


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
    turns = [message["role"] for message in messages][messages[0]["role"] == "system" :]
    expected = [("user", "assistant")[i % 2] for i in range(len(turns))]
    if turns == ["assistant"] and len(messages) == 1 and name != "prompt":
        return messages  # an answer given as its one message
    if not turns or turns != expected:
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
        return _check_prompt(prompts[0]), conversations
    if len(values) == 2 and all(isinstance(value, str) for value in values):
        common = TAG.split(os.path.commonprefix(values))[0]  # a span is never the prompt's
        if any(len(value) > len(common) and not value[len(common)].isspace() for value in values):
            common = common[: max((i + 1 for i, c in enumerate(common) if c.isspace()), default=0)]  # whole words
            common = common.removesuffix(" ")
        if not common.strip():
            raise _Problem("missing prompt, and chosen and rejected do not begin alike")
        return common, {name: value[len(common) :] for name, value in answers.items()}
    raise _Problem("missing prompt")


def _without_prompt(prompt: str | list[dict], answers: dict) -> tuple[str | list[dict], dict]:
    """(prompt, answers) where answers may repeat the prompt as the conversations that they end.

    A string may stand for the last message of such a conversation; the conversation is then the prompt.
    """
    conversations = {
        name: _check_messages(name, value) for name, value in answers.items() if isinstance(value, list) and value[1:]
    }
    for name, (*before, _) in conversations.items():
        if isinstance(prompt, str) and before[-1]["content"] == prompt:
            prompt = before
        if before != prompt:
            raise _Problem(f"{name} is a conversation that does not begin with the prompt")
    return prompt, {name: conversations.get(name, value) for name, value in answers.items()}


def _answer(name: str, value) -> str:
    if isinstance(value, list):
        *_, last = _check_messages(name, value)
        if last["role"] != "assistant":
            raise _Problem(f"{name} must end with an assistant message, not the {last['role']}'s")
        return last["content"]
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


def _images(raw: dict) -> tuple[str, ...]:
    try:
        return image_names(raw)
    except InputError as error:
        raise _Problem(str(error)) from None


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
        with (
            gzip.open(temporary, "wt", encoding="utf-8")
            if path.suffix == ".gz"
            else temporary.open("w", encoding="utf-8") as file
        ):
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
                count += 1
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return count

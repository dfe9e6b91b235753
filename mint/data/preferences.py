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

import functools
import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mint.data.records import json_lines, parquet_rows, parse_rows
from mint.data.spans import TAG, Answer
from mint.errors import InputError
from mint.files import file_aside, parse_json
from mint.hub import fetch_dataset, is_dataset_id

ROLES = ("system", "user", "assistant")
LARGEST = 3.4e38  # of float32
FIELDS = {"prompt", "chosen", "rejected", "images", "image", "corrupted_images", "id"}


@dataclass(frozen=True)
class Preference:
    """One record. ``rejected`` is None where there is none."""

    id: str
    line: int
    prompt: str | list[dict]
    chosen: Answer
    rejected: Answer | None
    images: tuple[str, ...] = ()
    corrupted_images: tuple[str, ...] = ()
    extra: dict = field(default_factory=dict)

    @property
    def has_spans(self) -> bool:
        return any(answer.spans for answer in (self.chosen, self.rejected) if answer)


def read_preferences(path: str | Path, require_rejected: bool = True, fields: Sequence[str] = ()) -> list[Preference]:
    """The records of a preference file, in order.

    path: a file, or a data set of the Hugging Face hub: OWNER/NAME, OWNER/NAME:SPLIT or OWNER/NAME:FILE.
    require_rejected: False for losses that only read the chosen answer; a record may then lack ``rejected``.
    fields: names of further fields that every record must have as a finite number; they are in ``Preference.extra``.
    Raises FileProblems naming every bad line, InputError if the file cannot be read or holds no record, or if a
    name of ``fields`` has a meaning of its own.
    """
    fetched = is_dataset_id(path)
    path = fetch_dataset(path) if fetched else Path(path)
    check_fields(fields)
    parse = functools.partial(parse_record, require_rejected=require_rejected, fields=fields)
    records = parse_rows(path, _lines(path), parse)
    if fetched and any(record.images for record in records):
        raise InputError(f"{path} names images, which are not fetched from the hub: download the whole data set")
    if not records:
        raise InputError(f"{path} holds no records")
    return records


def check_fields(fields: Sequence[str]) -> None:
    """Raises InputError if a loss asks for a field with a meaning of its own."""
    if taken := FIELDS.intersection(fields):
        raise InputError(f"a loss cannot ask for the fields {', '.join(sorted(taken))}: their meaning is fixed")


def image_names(record: Mapping) -> tuple[str, ...]:
    """The file names in a record's ``images`` (a list) or ``image`` (a name or a list); () where neither is given.

    Raises InputError for values of another form, empty names, and a record with both fields.
    """
    images, image = record.get("images"), record.get("image")
    if images is not None and image is not None:
        raise InputError("give either images or image, not both")
    if images is not None and not isinstance(images, list):
        raise InputError("images must be a list of file names")
    names = images if images is not None else image if isinstance(image, list) else [] if image is None else [image]
    if any(isinstance(name, dict) for name in names):
        raise InputError("images inside the file are not read: save them as files, and give their names")
    if not all(isinstance(name, str) and name for name in names):
        raise InputError("images must be a list of file names" if images is not None else "image must be a file name")
    return tuple(names)


def _lines(path: Path) -> Iterator[tuple[int, bytes | dict]]:
    """(line number, content) of every line that is not blank; Parquet rows come as dictionaries."""
    if path.suffix == ".parquet":
        return parquet_rows(path)
    return json_lines(path)


def parse_record(
    content: bytes | dict, line: int, require_rejected: bool = True, fields: Sequence[str] = ()
) -> Preference:
    """The record on a line; the arguments are those of :func:`read_preferences`. Raises InputError for a bad one."""
    record = _parse(content, line, require_rejected)
    for name in fields:
        _check_number(record, name)
    return record


def identify_record(
    content: bytes, line: int, require_rejected: bool = True, fields: Sequence[str] = ()
) -> tuple[str, bool]:
    """(id, whether an answer has spans) of the record on a line, which is checked as by :func:`parse_record`."""
    record = parse_record(content, line, require_rejected, fields)
    return record.id, record.has_spans


def _parse(content: bytes | dict, line: int, require_rejected: bool) -> Preference:
    raw = content if isinstance(content, dict) else parse_json(content)
    if not isinstance(raw, dict):
        raise InputError(f"a record must be an object, not {_kind(raw)}")
    raw = {key: value for key, value in raw.items() if value is not None}
    needed = ("chosen", "rejected") if require_rejected or "rejected" in raw else ("chosen",)
    if missing := [name for name in needed if name not in raw]:
        raise InputError(f"missing {' and '.join(missing)}")
    answers = {name: raw[name] for name in needed}
    if "prompt" in raw:
        prompt, answers = _without_prompt(_check_prompt(raw["prompt"]), answers)
    else:
        prompt, answers = _split_implicit(answers)
    chosen = _answer("chosen", answers["chosen"])
    rejected = _answer("rejected", answers["rejected"]) if "rejected" in answers else None
    if rejected and rejected.text.strip() == chosen.text.strip():
        raise InputError("chosen and rejected are the same")
    identity = raw.get("id", f"line-{line}")
    if isinstance(identity, bool) or not isinstance(identity, (str, int)):
        raise InputError(f"id must be a string or an integer, not {_kind(identity)}")
    images = image_names(raw)
    corrupted = raw.get("corrupted_images", [])
    if not isinstance(corrupted, list) or not all(isinstance(path, str) and path for path in corrupted):
        raise InputError("corrupted_images must be a list of file names")
    if corrupted and len(corrupted) != len(images):
        raise InputError(f"corrupted_images must hold one for each of images: {len(corrupted)} for {len(images)}")
    extra = {key: value for key, value in raw.items() if key not in FIELDS}
    return Preference(str(identity), line, prompt, chosen, rejected, images, tuple(corrupted), extra)


def _check_number(record: Preference, name: str) -> None:
    if name not in record.extra:
        raise InputError(f"the loss reads the field {name!r}, which the record lacks")
    value = record.extra[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"the field {name!r} must be a number, not {_kind(value)}")
    if not abs(value) <= LARGEST:
        raise InputError(f"the field {name!r} must be a finite number that float32 can hold")


def _kind(value) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _check_prompt(prompt) -> str | list[dict]:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InputError("prompt is empty")
        return prompt
    messages = _check_messages("prompt", prompt)
    if messages[-1]["role"] != "user":
        raise InputError(f"the last message of the prompt must be the user's, not the {messages[-1]['role']}'s")
    return messages


def _check_messages(name: str, messages) -> list[dict]:
    """An optional system message, then user and assistant in turn."""
    if not isinstance(messages, list):
        raise InputError(f"{name} must be a string or a list of messages, not {_kind(messages)}")
    if not messages:
        raise InputError(f"{name} is an empty list")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or {"role", "content"} - set(message):
            raise InputError(f"{name}: message {number} must be an object with role and content")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise InputError(f"{name}: message {number} has the role {role!r}, not one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise InputError(f"{name}: the content of message {number} must be a string, not {_kind(content)}")
        if not content.strip():
            raise InputError(f"{name}: message {number} is empty")
    turns = [message["role"] for message in messages][messages[0]["role"] == "system" :]
    expected = [("user", "assistant")[i % 2] for i in range(len(turns))]
    if turns == ["assistant"] and len(messages) == 1 and name != "prompt":
        return messages  # an answer given as its one message
    if not turns or turns != expected:
        raise InputError(f"{name}: roles out of order: {', '.join(m['role'] for m in messages)}")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _split_implicit(answers: dict) -> tuple[str | list[dict], dict]:
    """(prompt, answers) from two conversations, or two strings, that begin alike."""
    values = list(answers.values())
    if all(isinstance(value, list) for value in values):
        conversations = {name: _check_messages(name, value) for name, value in answers.items()}
        prompts = [conversation[:-1] for conversation in conversations.values()]
        if not prompts[0] or any(prompt != prompts[0] for prompt in prompts):
            raise InputError("without a prompt, chosen and rejected must share all messages but the last")
        return _check_prompt(prompts[0]), conversations
    if len(values) == 2 and all(isinstance(value, str) for value in values):
        common = TAG.split(os.path.commonprefix(values))[0]  # a span is never the prompt's
        if any(len(value) > len(common) and not value[len(common)].isspace() for value in values):
            common = common[: max((i + 1 for i, c in enumerate(common) if c.isspace()), default=0)]  # whole words
            common = common.removesuffix(" ")
        if not common.strip():
            raise InputError("missing prompt, and chosen and rejected do not begin alike")
        return common, {name: value[len(common) :] for name, value in answers.items()}
    raise InputError("missing prompt")


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
            raise InputError(f"{name} is a conversation that does not begin with the prompt")
    return prompt, {name: conversations.get(name, value) for name, value in answers.items()}


def _answer(name: str, value) -> Answer:
    if isinstance(value, list):
        *_, last = _check_messages(name, value)
        if last["role"] != "assistant":
            raise InputError(f"{name} must end with an assistant message, not the {last['role']}'s")
        value = last["content"]
    if not isinstance(value, str):
        raise InputError(f"{name} must be a string or a list of messages, not {_kind(value)}")
    try:
        answer = Answer.parse(value)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    if not answer.text.strip():
        raise InputError(f"{name} is empty")
    return answer


def write_jsonl(path: str | Path, records: Iterable[dict]) -> int:
    """Writes records as JSON Lines (gzip for .gz), aside and renamed, so that no half-written file is left.

    Returns their number. Raises InputError if the file cannot be written.
    """
    count = 0
    with (
        file_aside(path) as aside,
        (gzip.open if aside.suffix == ".gz" else open)(aside, "wt", encoding="utf-8") as file,
    ):
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count

"""A model's own chat template: from messages to runs of text and control tokens.

The template is a program from the checkpoint, so it runs in Jinja2's sandbox; what it fills in is data, so no control
token may come out of that. A character that could begin a control token's name gets a marker behind it before the
template sees it: the names that remain whole in the template's output are the ones the template itself wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mint.data.preferences import ROLES
from mint.errors import InputError

PRIVATE_USE = range(0xE000, 0xF900)  # characters that stand for nothing; one of them marks broken names
PROBE = "7f3a-probe"  # an answer that no template holds or changes

LLAMA3_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] | trim }}"
    "{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|image|>' }}{%- else %}{{- part['text'] | trim }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{{- '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)

Run = str | int  # text, or the id of a control token


@dataclass(frozen=True)
class AnswerForm:
    """How the template writes the assistant's answer after the prompt it opens with ``add_generation_prompt``.

    end: the control token behind the answer, None if there is none. prefix, suffix: text that stands between the
    prompt and the answer, and between the answer and ``end``. continues: the prompt ends in text, not a control token.
    """

    end: int | None = None
    prefix: str = ""
    suffix: str = ""
    continues: bool = False


class ChatTemplate:
    """source: the Jinja2 text. control: ``added_tokens`` of tokenizer.json. names: bos_token and its like, for the
    template to write. date: today, as the template sees it. where: the model's directory, for messages.

    Raises InputError if the source is not a valid template.
    """

    def __init__(self, source: str, control: Sequence[dict], names: dict[str, str], date: datetime, where: str):
        self._source, self._names, self._date, self._where = source, names, date, where
        self._ids = {token["content"]: token["id"] for token in control}
        self._control = _control_pattern(control)
        starts = "".join(sorted({content[0] for content in self._ids}))
        self._starts = re.compile(f"([{re.escape(starts)}])") if starts else None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals.update(raise_exception=_raise_exception, strftime_now=date.strftime)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template of {where} is not valid: {error}") from None

    def runs(self, messages: Sequence[dict], add_generation_prompt: bool) -> list[Run]:
        """The conversation in order; texts are never empty.

        Raises InputError for messages of another form than {"role", "content"}, an unknown role, or if the template
        refuses them.
        """
        marker = self._unused_character(messages)
        safe = [self._safe(number, message, marker) for number, message in enumerate(messages, 1)]
        try:
            text = self._template.render(
                messages=safe,
                add_generation_prompt=add_generation_prompt,
                date_string=self._date.strftime("%d %b %Y"),
                **self._names,
            )
        except Exception as error:  # someone else's program: whatever it raises is its refusal
            raise InputError(f"the chat template of {self._where} refuses the messages: {error}") from None
        runs: list[Run] = []
        last = 0
        for match in self._control.finditer(text) if self._control else ():
            runs += [text[last : match.start()].replace(marker, ""), self._ids[match.group(match.lastindex)]]
            last = match.end()
        runs.append(text[last:].replace(marker, ""))
        return [run for run in runs if run != ""]

    def answer_form(self) -> AnswerForm:
        """Found by rendering a conversation; empty where the template does not take one or changes the answer."""
        question = {"role": "user", "content": "question"}
        try:
            prompt = self.runs([question], True)
            whole = self.runs([question, {"role": "assistant", "content": PROBE}], False)
        except InputError:
            return AnswerForm()
        at = next((i for i, run in enumerate(whole) if isinstance(run, str) and PROBE in run), None)
        if at is None:
            return AnswerForm()
        before, _, suffix = whole[at].partition(PROBE)
        end = whole[at + 1] if at + 1 < len(whole) and not suffix.strip() else None
        opening = prompt.pop() if prompt and isinstance(prompt[-1], str) else ""
        matches = prompt == whole[:at] and before.startswith(opening)
        prefix = before[len(opening) :] if matches else ""
        return AnswerForm(end, prefix, suffix if end is not None else "", continues=opening != "")

    def _unused_character(self, messages: Sequence[dict]) -> str:
        used = set(self._source) | set(json.dumps(list(messages), ensure_ascii=False, default=str))
        return next(chr(code) for code in PRIVATE_USE if chr(code) not in used)

    def _safe(self, number: int, message: dict, marker: str) -> dict:
        """The message's role and content and nothing else, its text with markers."""
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise InputError(f"message {number} has the role {role!r}, not one of {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, str):
            return {"role": role, "content": self._break(content, marker)}
        if not isinstance(content, list):
            raise InputError(f"the content of message {number} must be a string or a list of text and image parts")
        return {"role": role, "content": [self._safe_part(number, part, marker) for part in content]}

    def _safe_part(self, number: int, part: dict, marker: str) -> dict:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            return {"type": "image"}
        if kind == "text" and isinstance(part.get("text"), str):
            return {"type": "text", "text": self._break(part["text"], marker)}
        raise InputError(f"message {number} has a part that is neither an image nor a text")

    def _break(self, text: str, marker: str) -> str:
        # Behind every such character, not only in whole names: one must not arise at the seam with the template.
        return self._starts.sub(rf"\g<1>{marker}", text) if self._starts else text


def _control_pattern(control: Sequence[dict]) -> re.Pattern | None:
    """Matches a control token's name, the longest first, with the spaces that it swallows; the name is its group."""
    ordered = sorted(control, key=lambda token: -len(token["content"]))
    alternatives = [
        (r"\s*" if token.get("lstrip") else "") + f"({re.escape(token['content'])})" + (r"\s*" if token.get("rstrip") else "")
        for token in ordered
    ]
    return re.compile("|".join(alternatives)) if alternatives else None


class _GenerationBlock(Extension):
    """``{% generation %}...{% endgeneration %}``, by which newer templates mark the answer: its content, unchanged."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str):
    raise jinja2.TemplateError(message)

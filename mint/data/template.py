"""A model's own chat template: from messages to runs of text and control tokens.

The template is a program from the checkpoint, so it runs in Jinja2's sandbox, in a process with limits of time, memory
and output (``template_process``). The texts it fills in are data and must
not produce control tokens: a marker follows every character of them that could begin a control token's name, so the
names that remain whole in the output are those that the template itself wrote. For the same reason a template cannot
act on control names in the data: one that cuts ``<think>...</think>`` out of earlier answers leaves them in as text.

Some templates render contents given as strings, some lists of parts, some both. A probe finds out which (by role), and
messages are converted to the form that is rendered. A text that is still missing from the prompt is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from mint.data.preferences import ROLES
from mint.data.template_process import LimitExceeded, Template
from mint.errors import InputError, quote

PRIVATE_USE = range(0xE000, 0xF900)  # characters without a meaning; one of them marks broken names
PROBE = "7f3a-probe"  # a text that no template holds or changes
SECOND_PROBE = "5c1e-probe"
SPACES = {False: "", True: r"\s*"}  # whitespace that a control token with lstrip or rstrip absorbs

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

    end: the control token after the answer, None if there is none. prefix, suffix: the text between the prompt and
    the answer, and between the answer and ``end``. continues: the prompt ends in text, not in a control token.
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
        try:
            self._template = Template(source, date)
        except InputError as error:
            raise InputError(f"the chat template of {where} is not valid: {error}") from None
        self._forms: dict[str, set[type]] = {}
        self._find_forms()

    def runs(self, messages: Sequence[dict], add_generation_prompt: bool) -> list[Run]:
        """The conversation in order; texts are never empty.

        Contents are given to the template in the form that it renders. Raises InputError for messages of another form
        than {"role", "content"}, an unknown role, if the template refuses the messages, or if the text of one is
        missing from the prompt.
        """
        marker = self._unused_character(messages)
        safe = [self._safe(number, message, marker) for number, message in enumerate(messages, 1)]
        try:
            text = self._render([self._in_accepted_form(message) for message in safe], add_generation_prompt)
        except InputError as error:
            raise InputError(f"the chat template of {self._where} refuses the messages: {error}") from None
        self._check_complete(messages, text.replace(marker, ""))
        runs: list[Run] = []
        last = 0
        for match in self._control.finditer(text) if self._control else ():
            runs += [text[last : match.start()].replace(marker, ""), self._ids[match[match.lastindex or 0]]]
            last = match.end()
        runs.append(text[last:].replace(marker, ""))
        return [run for run in runs if run != ""]

    def _render(self, messages: list[dict], add_generation_prompt: bool) -> str:
        return self._template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            date_string=self._date.strftime("%d %b %Y"),
            **self._names,
        )

    def _check_complete(self, messages: Sequence[dict], text: str) -> None:
        """Raises InputError if ``text`` lacks a text of a message; whitespace does not count, since templates trim.

        A text that occurs n times in the messages must occur n times, so that one cannot stand in for another.
        """
        wanted = [(i, part, "".join(part.split())) for i, message in enumerate(messages, 1) for part in _texts(message)]
        rendered = "".join(text.split())
        for number, part, letters in wanted:
            if letters and rendered.count(letters) < sum(other.count(letters) for _, _, other in wanted):
                raise InputError(
                    f"the chat template of {self._where} omits or changes the text of message {number} "
                    f"({messages[number - 1]['role']}): {quote(part)}; remove it from the message, or put a "
                    "template that renders it into the model's directory (chat_template.jinja comes first)"
                )

    def _find_forms(self) -> None:
        """Finds, for each role, the types of content (str, list) that the template renders in full.

        None for a role that it refuses: its own error message then says so.
        """
        contents: dict[type, str | list[dict]] = {
            str: f"{PROBE} {SECOND_PROBE}",
            list: [_text_part(PROBE), _text_part(SECOND_PROBE)],
        }
        for role in ("user", "system", "assistant"):  # the user first: the others are probed beside a question
            question = self._in_accepted_form({"role": "user", "content": "question"})
            accepted: set[type] = set()
            for kind, content in contents.items():
                probe = {"role": role, "content": content}
                messages = {"user": [probe], "system": [probe, question], "assistant": [question, probe]}[role]
                try:
                    text = self._render(messages, add_generation_prompt=role != "assistant")
                except LimitExceeded as error:
                    raise InputError(f"the chat template of {self._where} cannot be used: {error}") from None
                except InputError:  # refused, as in ``runs``
                    continue
                if re.search(f"{PROBE}[^'\"]*{SECOND_PROBE}", text):  # quotes: the list itself was printed
                    accepted.add(kind)
            self._forms[role] = accepted

    def _in_accepted_form(self, message: dict) -> dict:
        """The message with its content as a string or as a list of parts, whichever the template renders."""
        content, accepted = message["content"], self._forms.get(message["role"], ())
        if type(content) in accepted or not accepted:
            return message
        if isinstance(content, str):
            return {**message, "content": [_text_part(content)]}
        if any(part["type"] != "text" for part in content):
            return message  # only a list can hold an image
        return {**message, "content": "".join(_texts(message))}

    def answer_form(self) -> AnswerForm:
        """Found by rendering a conversation; empty where the template does not take one or changes the answer."""
        question = {"role": "user", "content": "question"}
        try:
            prompt = self.runs([question], True)
            whole = self.runs([question, {"role": "assistant", "content": PROBE}], False)
        except InputError:
            return AnswerForm()
        found = ((i, run) for i, run in enumerate(whole) if isinstance(run, str) and PROBE in run)
        at, text = next(found, (None, ""))
        if at is None:
            return AnswerForm()
        before, _, suffix = text.partition(PROBE)
        end = next((run for run in whole[at + 1 : at + 2] if isinstance(run, int) and not suffix.strip()), None)
        opening = "".join(run for run in prompt[-1:] if isinstance(run, str))
        matches = prompt == [*whole[:at], *filter(None, [opening])] and before.startswith(opening)
        prefix = before[len(opening) :] if matches else ""
        return AnswerForm(end, prefix, suffix if end is not None else "", continues=opening != "")

    def _unused_character(self, messages: Sequence[dict]) -> str:
        used = set(self._source) | set(json.dumps(list(messages), ensure_ascii=False, default=str))
        free = next((chr(code) for code in PRIVATE_USE if chr(code) not in used), None)
        if free is None:
            raise InputError("the messages use every character that Unicode leaves to private use; remove one of them")
        return free

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
            return _text_part(self._break(part["text"], marker))
        raise InputError(f"message {number} has a part that is neither an image nor a text")

    def _break(self, text: str, marker: str) -> str:
        # After every such character, not only in whole names: one must not arise at the seam with the template.
        return self._starts.sub(rf"\g<1>{marker}", text) if self._starts else text


def _text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def _texts(message: dict) -> list[str]:
    """The texts of a message in order, without its images."""
    content = message["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def _control_pattern(control: Sequence[dict]) -> re.Pattern | None:
    """Matches a control token's name, the longest first, with the spaces that it swallows; the name is its group."""
    ordered = sorted(control, key=lambda token: -len(token["content"]))
    alternatives = [
        f"{SPACES[bool(token.get('lstrip'))]}({re.escape(token['content'])}){SPACES[bool(token.get('rstrip'))]}"
        for token in ordered
    ]
    return re.compile("|".join(alternatives)) if alternatives else None

"""From messages and answers to token ids, with the model's own chat template.

One promise matters most: text from data can never become a control token. So there are two encoders of the same
vocabulary: control tokens are looked up by name, and only where the template itself wrote them; everything else goes
through an encoder that knows no added tokens at all.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from mint.errors import InputError
from mint.hub import TOKENIZER_FILES, resolve_dir

CHAT_DATE = "26 Jul 2024"  # the date Llama 3.2's template prints when it is told none
PRIVATE_USE = range(0xE000, 0xF900)  # characters that stand for nothing; one marks broken control strings

LLAMA3_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)


def load_tokenizer(name: str | Path, chat_date: str = CHAT_DATE) -> ChatTokenizer:
    """The tokenizer of a model directory or hub repository.

    chat_date: today's date as the template sees it ("26 Jul 2024"); pinned, so that runs repeat.
    Raises InputError if the directory has no ``tokenizer.json`` or a file cannot be read, or the date is no date.
    """
    folder = resolve_dir(name, TOKENIZER_FILES)
    path = folder / "tokenizer.json"
    if not path.is_file():
        old = " (tokenizer.model alone is not read: save the tokenizer in its fast form)"
        raise InputError(f"{folder} has no tokenizer.json{old if (folder / 'tokenizer.model').is_file() else ''}")
    try:
        date = datetime.strptime(chat_date, "%d %b %Y")
    except ValueError:
        raise InputError(f"--chat-date {chat_date!r} is not a date of the form '26 Jul 2024'") from None
    try:
        return ChatTokenizer(path.read_text(encoding="utf-8"), _settings(folder), date, folder)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise InputError(f"{path} cannot be read: {error}") from None


def _settings(folder: Path) -> dict:
    """``tokenizer_config.json`` with the chat template and the end tokens that other files add to it."""
    settings = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings.update(_read_json(folder / name))
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if isinstance(settings.get(name), dict):
            settings[name] = settings[name].get("content")
    template = folder / "chat_template.jinja"
    if template.is_file():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    settings.setdefault("chat_template", _read_json(folder / "chat_template.json").get("chat_template"))
    if isinstance(settings["chat_template"], list):  # several templates by name
        named = {entry.get("name"): entry.get("template") for entry in settings["chat_template"]}
        settings["chat_template"] = named.get("default")
    ends = [_read_json(folder / name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
    ends = next((end for end in ends if end is not None), [])
    settings["eos_token_ids"] = ends if isinstance(ends, list) else [ends]
    return settings


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object")
    return content


class ChatTokenizer:
    """Encodes prompts and answers; made by :func:`load_tokenizer`.

    bos_id: the token that begins a text, or None.     eos_ids: tokens that end an answer.     vocab_size: all ids.
    """

    def __init__(self, tokenizer_json: str, settings: dict, date: datetime, folder: Path):
        self._full = Tokenizer.from_str(tokenizer_json)
        content = json.loads(tokenizer_json)
        self._control = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
        self._plain = _plain_encoder(content)
        self._continued = _plain_encoder(content, continued=True)
        self._settings, self._date, self._folder = settings, date, folder
        ordered = sorted(self._control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self.vocab_size = self._full.get_vocab_size()
        self.bos_id = self._find_bos()
        self._template = self._compile_template()
        self._end_of_turn: int | None = None
        eos = self._id(settings.get("eos_token"))
        self.eos_ids = {i for i in [eos, *settings["eos_token_ids"]] if i is not None}
        if self._template is not None:
            self.eos_ids.add(self.end_of_turn)
        self._eos = eos if eos is not None else next(iter(self.eos_ids), None)

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._full.token_to_id(token)

    def _find_bos(self) -> int | None:
        """The token the tokenizer itself puts before a text."""
        bos = self._id(self._settings.get("bos_token"))
        if self._settings.get("add_bos_token") is not None:
            return bos if self._settings["add_bos_token"] else None
        begun = self._full.encode("a").ids
        return bos if bos is not None and begun[:1] == [bos] else None

    # -- plain text ---------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; never a control token, whatever the text holds."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids, by default without control tokens."""
        return self._full.decode(list(ids), skip_special_tokens=skip_special)

    # -- prompts ------------------------------------------------------------------------------------------------

    def encode_prompt(self, prompt: str | list[dict]) -> list[int]:
        """A string as it is, after the BOS token if there is one; messages through the template, ready to answer."""
        if isinstance(prompt, str):
            return ([] if self.bos_id is None else [self.bos_id]) + self.encode(prompt)
        return self.encode_chat(prompt)

    def encode_chat(self, messages: list[dict], add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation; ``add_generation_prompt`` opens the assistant's turn. No second BOS.

        Raises InputError if the model has no chat template, or the template refuses the messages.
        """
        rendered, marker = self._render(messages, add_generation_prompt)
        ids: list[int] = []
        last = 0
        for control in self._control_pattern.finditer(rendered) if self._control_pattern else []:
            ids += self._encode_run(rendered[last : control.start()].replace(marker, ""), first=not ids)
            ids.append(self._control[control.group()])
            last = control.end()
        return ids + self._encode_run(rendered[last:].replace(marker, ""), first=not ids)

    def _encode_run(self, text: str, first: bool) -> list[int]:
        encoder = self._plain if first else self._continued
        return encoder.encode(text, add_special_tokens=False).ids if text else []

    def _render(self, messages: list[dict], add_generation_prompt: bool) -> tuple[str, str]:
        """The template's text, with control strings of the data broken by a marker, and that marker."""
        if self._template is None:
            raise InputError(f"{self._folder} has no chat template; give prompts as strings, or add a template")
        everything = "".join(str(message.get("content")) for message in messages)
        marker = next(chr(code) for code in PRIVATE_USE if chr(code) not in everything)
        safe = [{**message, "content": self._break(message["content"], marker)} for message in messages]
        names = {name: self._settings.get(name) or "" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        try:
            text = self._template.render(
                messages=safe,
                add_generation_prompt=add_generation_prompt,
                date_string=self._date.strftime("%d %b %Y"),
                **names,
            )
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template of {self._folder} refuses the messages: {error}") from None
        return text, marker

    def _break(self, text: str, marker: str) -> str:
        """``text`` with a marker after every character that could begin a control string."""
        if self._control_pattern is None:
            return text
        starts = {control[0] for control in self._control}
        # Every such character, not only whole control strings: one must not arise at the seam with the template.
        return "".join(c + marker if c in starts else c for c in text)

    def _compile_template(self) -> jinja2.Template | None:
        source = self._settings.get("chat_template")
        if source is None:
            if any(token not in self._control for token in ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")):
                return None
            source = LLAMA3_TEMPLATE
            self._settings.setdefault("bos_token", "<|begin_of_text|>" if "<|begin_of_text|>" in self._control else "")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = self._date.strftime
        try:
            return environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template of {self._folder} is not valid: {error}") from None

    # -- answers ------------------------------------------------------------------------------------------------

    def encode_answer(self, text: str, chat: bool = True) -> list[int]:
        """Ids of an answer with the token that ends it: the end of the turn in a chat, else end of sequence.

        Raises InputError if the model has no such token.
        """
        end = self.end_of_turn if chat else self._eos
        if end is None:
            raise InputError(f"{self._folder} names no end-of-sequence token (eos_token in tokenizer_config.json)")
        return self._continued.encode(text, add_special_tokens=False).ids + [end]

    def answer_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of an answer without its end token, and each id's character range in ``text``."""
        encoding = self._continued.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    @property
    def end_of_turn(self) -> int:
        """The control token that the template writes after an assistant's message, else end of sequence."""
        if self._end_of_turn is None:
            answer = "answer"
            conversation = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
            text, _ = self._render(conversation, add_generation_prompt=False)
            after = text[text.rindex(answer) + len(answer) :].lstrip()
            found = self._control_pattern.match(after) if self._control_pattern else None
            end = self._control[found.group()] if found else self._id(self._settings.get("eos_token"))
            if end is None:
                raise InputError(f"the chat template of {self._folder} ends an answer with no control token")
            self._end_of_turn = end
        return self._end_of_turn

    def save(self, folder: str | Path) -> None:
        """Copies the tokenizer's files into ``folder``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for pattern in ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.*"):
            for path in self._folder.glob(pattern):
                shutil.copyfile(path, Path(folder) / path.name)


def _plain_encoder(content: dict, continued: bool = False) -> Tokenizer:
    """The same vocabulary without added tokens; ``continued``: for text that does not begin the sequence."""
    content = {**content, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    if continued and content.get("pre_tokenizer"):
        content["pre_tokenizer"] = _never_prepend(content["pre_tokenizer"])
    return Tokenizer.from_str(json.dumps(content))


def _never_prepend(part: dict) -> dict:
    """A SentencePiece-style space goes before the first run of a text only, where the tokenizer says ``first``."""
    if part.get("type") == "Sequence":
        return {**part, "pretokenizers": [_never_prepend(inner) for inner in part["pretokenizers"]]}
    if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
        return {**part, "prepend_scheme": "never"}
    return part


def _raise_exception(message: str):
    raise jinja2.TemplateError(message)

"""From messages and answers to token ids.

Text from data never becomes a control token. Control tokens are looked up by name, and only where the template itself
wrote them (``template``); all other text is encoded by encoders without control tokens (``encoders``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from mint.data.encoders import PlainEncoders, encode_text, tokenizer_errors
from mint.data.template import LLAMA3_TEMPLATE, AnswerForm, ChatTemplate
from mint.errors import InputError
from mint.files import parse_json, read_json
from mint.hub import TOKENIZER_FILES, resolve_dir

CHAT_DATE = "26 Jul 2024"  # the date that Llama 3.2's template prints by default
RUN_CACHE_LENGTH = 24  # characters up to which the ids of a run are remembered
LLAMA3_CONTROL = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
PROCESSOR_TEMPLATES = ("chat_template.json", "processor_config.json")
SAVED = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.*", "generation_config.json")


def load_tokenizer(name: str | Path, chat_date: str = CHAT_DATE, template: str | None = None) -> ChatTokenizer:
    """The tokenizer of a model directory or hub repository.

    chat_date: today's date as the template sees it ("26 Jul 2024"); pinned, so that runs repeat. template: the text of
    a chat template that replaces the directory's.
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
    with tokenizer_errors(path):
        settings = _settings(folder) | ({"chat_template": template} if template else {})
        return ChatTokenizer(path.read_text(encoding="utf-8"), settings, date, folder)


def _settings(folder: Path) -> dict:
    """``tokenizer_config.json`` with the chat template and the end tokens that other files add to it."""
    settings: dict = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings.update(read_json(folder / name, optional=True))
    for name in NAMES:
        if isinstance(settings.get(name), dict):
            settings[name] = settings[name].get("content")
    settings["chat_template"] = _find_template(folder, settings.get("chat_template"))
    ends = [
        read_json(folder / name, optional=True).get("eos_token_id")
        for name in ("generation_config.json", "config.json")
    ]
    ends = next((end for end in ends if end is not None), [])
    settings["eos_token_ids"] = ends = ends if isinstance(ends, list) else [ends]
    if not all(type(end) is int and 0 <= end < 2**31 for end in ends):
        raise InputError(f"{folder}: eos_token_id must be the id of a token, or a list of them, not {ends!r:.60}")
    for name in NAMES:
        if not isinstance(settings.get(name), str | None):
            raise InputError(f"{folder / 'tokenizer_config.json'}: {name} must be a text")
    return settings


def _find_template(folder: Path, of_tokenizer: str | list | None) -> str | None:
    """The text of the chat template: ``chat_template.jinja``, else that of the processor or the tokenizer.

    In a vision-language directory, which has files of a processor, the processor's template comes first: that in
    ``tokenizer_config.json`` may know no images. Elsewhere the tokenizer's comes first.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    sources = [(name, read_json(folder / name, optional=True).get("chat_template")) for name in PROCESSOR_TEMPLATES]
    has_processor = any((folder / name).is_file() for name in PROCESSOR_FILES)
    sources.insert(len(sources) if has_processor else 0, ("tokenizer_config.json", of_tokenizer))
    name, template = next((source for source in sources if source[1] is not None), ("", None))
    if isinstance(template, list):  # several templates by name
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    if not isinstance(template, str | None):
        raise InputError(f"{folder / name}: chat_template must be a string or a list of named ones")
    return template


class ChatTokenizer:
    """Encodes prompts and answers; made by :func:`load_tokenizer`.

    bos_id: the token that begins a text, or None.     eos_ids: tokens that end an answer.     vocab_size: all ids.
    """

    def __init__(self, tokenizer_json: str, settings: dict, date: datetime, folder: Path):
        self._full = Tokenizer.from_str(tokenizer_json)
        content = parse_json(tokenizer_json)
        self._encoders = PlainEncoders(content)
        self._settings, self._folder = settings, folder
        self._runs: dict[tuple[str, bool], list[int]] = {}
        self.vocab_size = self._full.get_vocab_size()
        self.bos_id = self._find_bos()
        self._template = self._load_template(content.get("added_tokens") or [], date)
        self._form = self._template.answer_form() if self._template else AnswerForm()
        eos = self._id(settings.get("eos_token"))
        self.eos_ids = {i for i in (eos, self._form.end, *settings["eos_token_ids"]) if i is not None}
        self._eos = eos if eos is not None else next(iter(settings["eos_token_ids"]), None)

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._full.token_to_id(token)

    def _find_bos(self) -> int | None:
        """The token that the tokenizer puts before a text, by ``add_bos_token`` or else by its post-processor."""
        begun = self._full.encode("a")
        first = begun.ids[0] if begun.special_tokens_mask[:1] == [1] else None
        add, bos = self._settings.get("add_bos_token"), self._id(self._settings.get("bos_token"))
        if add is None:
            return first
        return (first if bos is None else bos) if add else None

    def _load_template(self, control: list[dict], date: datetime) -> ChatTemplate | None:
        names = {name: self._settings.get(name) or "" for name in NAMES}
        source = self._settings["chat_template"]
        if source is None:
            known = {token["content"] for token in control}
            if not known.issuperset(LLAMA3_CONTROL):
                return None
            source = LLAMA3_TEMPLATE
            begin = "<|begin_of_text|>"
            names["bos_token"] = names["bos_token"] or (begin if begin in known else "")
        return ChatTemplate(source, control, names, date, str(self._folder))

    # -- plain text ---------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; never a control token, whatever the text holds."""
        return encode_text(self._encoders.start, text, self._folder).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids, by default without control tokens."""
        with tokenizer_errors(self._folder):
            return self._full.decode(list(ids), skip_special_tokens=skip_special)

    # -- prompts ------------------------------------------------------------------------------------------------

    def encode_prompt(self, prompt: str | list[dict]) -> list[int]:
        """A string as it is, after the BOS token if there is one; messages through the template, ready to answer."""
        if isinstance(prompt, str):
            return ([] if self.bos_id is None else [self.bos_id]) + self.encode(prompt)
        return self.encode_chat(prompt)

    def encode_chat(self, messages: list[dict], add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation; ``add_generation_prompt`` opens the assistant's turn.

        messages: {"role": "system" | "user" | "assistant", "content": str, or a list of text and image parts}.
        They begin with one BOS if the template writes it or the tokenizer adds it. Raises InputError if the model has
        no chat template, or the template refuses the messages or omits the text of one.
        """
        if self._template is None:
            raise InputError(f"{self._folder} has no chat template; give prompts as strings, or add a template")
        runs = self._template.runs(messages, add_generation_prompt)
        ids: list[int] = []
        for run in runs:
            ids += [run] if isinstance(run, int) else self._encode_run(run, first=not ids)
        written = next((run for run in runs if isinstance(run, int) or not run.isspace()), None)
        return ids if self.bos_id in (None, written) else [self.bos_id, *ids]

    def _encode_run(self, text: str, first: bool) -> list[int]:
        if (text, first) in self._runs:
            return self._runs[text, first]
        encoder = self._encoders.start if first else self._encoders.after_control
        ids = encode_text(encoder, text, self._folder).ids
        if len(text) <= RUN_CACHE_LENGTH:  # role names, line ends: the same in every conversation
            self._runs[text, first] = ids
        return ids

    # -- answers ------------------------------------------------------------------------------------------------

    def encode_answer(self, text: str, chat: bool = True) -> list[int]:
        """Ids of an answer with the token that ends it: the end of the turn in a chat, else end of sequence.

        They continue ``encode_prompt``. Raises InputError if the model has no such token.
        """
        return [*self._encode_answer(text, chat)[0].ids, self.answer_end(chat)]

    def answer_end(self, chat: bool = True) -> int:
        """The token that ends an answer. Raises InputError if the model has none."""
        end = self.end_of_turn if chat else self._eos
        if end is None:
            raise InputError(f"{self._folder} names no end-of-sequence token (eos_token in tokenizer_config.json)")
        return end

    def answer_offsets(self, text: str, chat: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """``encode_answer`` without the end token, and each id's character range in ``text``.

        A token of what the template writes around the answer has an empty range.
        """
        encoding, shift = self._encode_answer(text, chat)
        length = len(text)
        edges = ((min(max(edge - shift, 0), length) for edge in offset) for offset in encoding.offsets)
        inside = [(start, end) for start, end in edges]
        return encoding.ids, inside

    def _encode_answer(self, text: str, chat: bool) -> tuple[Encoding, int]:
        """(an answer as the template writes it, without the end token; the characters before ``text`` in it)."""
        form = self._form if chat else AnswerForm(continues=True)
        encoder = self._encoders.within_text if form.continues else self._encoders.after_control
        return encode_text(encoder, form.prefix + text + form.suffix, self._folder), len(form.prefix)

    @property
    def end_of_turn(self) -> int | None:
        """The control token that the template writes after an assistant's message, else end of sequence."""
        return self._form.end if self._form.end is not None else self._eos

    def save(self, folder: str | Path) -> None:
        """Copies the tokenizer's files into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() == self._folder.resolve():
            return
        for path in (path for pattern in (*SAVED, *PROCESSOR_FILES) for path in self._folder.glob(pattern)):
            shutil.copyfile(path, folder / path.name)

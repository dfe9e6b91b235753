"""Encoders for ordinary text: a tokenizer's vocabulary without its control tokens.

Three of them, since SentencePiece-style tokenizers put a space before a text and the place of a text in the sequence
decides whether it gets one. Byte-level tokenizers (Llama 3, Qwen) treat all places alike and need only one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from mint.errors import InputError


@contextmanager
def tokenizer_errors(path: str | Path) -> Iterator[None]:
    """Turns what the tokenizers library raises for a bad tokenizer.json into an InputError that names the file.

    It raises plain Exception, and where its Rust code panics an exception that is no Exception.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"
        if not (panic or isinstance(error, Exception)):
            raise
        why = f"the tokenizers library fails with it ({error})" if panic else error
        raise InputError(f"{path} cannot be read: {why}") from None


def encode_text(encoder: Tokenizer, text: str, path: str | Path) -> Encoding:
    """Ordinary text, without special tokens. path: names the tokenizer in the InputError that a failure raises."""
    with tokenizer_errors(path):
        return encoder.encode(text, add_special_tokens=False)


class PlainEncoders:
    """start: for the text that begins a sequence. after_control: for text after a control token of a conversation.
    within_text: for text that continues other text. content: the parsed tokenizer.json.
    """

    def __init__(self, content: dict):
        control = {token["content"] for token in content.get("added_tokens") or []}
        plain = {
            **content,
            "added_tokens": [],
            "model": _without_control(content["model"], control),
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        self.start = Tokenizer.from_str(json.dumps(plain))
        self.after_control = self.within_text = self.start
        later = {**plain, "pre_tokenizer": _change(plain.get("pre_tokenizer"), _not_first)}
        if later != plain:
            self.after_control = self.within_text = Tokenizer.from_str(json.dumps(later))
        inner = {key: _change(plain.get(key), _no_space) for key in ("normalizer", "pre_tokenizer")}
        if any(inner[key] != later.get(key) for key in inner):
            self.within_text = Tokenizer.from_str(json.dumps({**plain, **inner}))


def _without_control(model: dict, control: set[str]) -> dict:
    """The model with no way from text to a control token that is also an entry of its vocabulary.

    The unknown token stays: it is what unknown text is meant to become.
    """
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: ids are places in the list, so a piece is renamed, not removed
        spare: dict[int | None, str] = {
            i: f" {chr(0xE000)}{i} " for i, (piece, _) in enumerate(vocabulary) if piece in control
        }
        spare.pop(model.get("unk_id"), None)
        return {**model, "vocab": [[spare.get(i, piece), score] for i, (piece, score) in enumerate(vocabulary)]}
    hidden = {token for token in control if token in vocabulary} - {model.get("unk_token")}
    if not hidden:
        return model
    changed = {**model, "vocab": {token: i for token, i in vocabulary.items() if token not in hidden}}
    if "merges" in model:
        pairs = ((merge, merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in model["merges"])
        changed["merges"] = [merge for merge, (a, b) in pairs if not hidden & {a, b, a + b}]
    return changed


def _change(part: dict | None, change: Callable[[dict], dict | None]) -> dict | None:
    """A normalizer or pre-tokenizer with ``change`` applied to it, or to the steps it consists of."""
    if part is None:
        return None
    for steps in ("normalizers", "pretokenizers"):
        if steps in part:
            kept = [changed for step in part[steps] if (changed := _change(step, change)) is not None]
            return {**part, steps: kept}
    return change(part)


def _not_first(step: dict) -> dict:
    if step["type"] == "Metaspace" and step.get("prepend_scheme") == "first":
        return {**step, "prepend_scheme": "never"}
    return step


def _no_space(step: dict) -> dict | None:
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return {**{key: value for key, value in step.items() if key != "add_prefix_space"}, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    return step

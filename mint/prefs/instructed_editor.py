"""Editors that follow an instruction: a local instruct model, or one behind an OpenAI-compatible address."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from mint.errors import InputError
from mint.files import write_aside
from mint.prefs.question_files import QuestionRecord
from mint.prefs.rules_editor import Edit

INSTRUCTION = (
    "You check answers to questions about medical images and edit them minimally. You are given the question, what is "
    "true of the image, and the answer.\n"
    "If the answer agrees with the truth, write RIGHT, and an edit that says one thing that is medically plausible but "
    "false. If it does not, write WRONG, and an edit that agrees with the truth.\n"
    "Change as few words as possible. Keep style, length and wording. Reply in this form and write nothing else:\n"
    "VERDICT: RIGHT or WRONG\nEDIT: the whole edited answer"
)
REPLY = re.compile(r"VERDICT:\s*(RIGHT|WRONG)\s*EDIT:\s*(.+)", re.IGNORECASE | re.DOTALL)
ATTEMPTS, LONGEST_WAIT = 5, 60.0  # of requests that fail; seconds
Complete = Callable[[Sequence[list[dict]]], Iterator[str]]  # messages -> replies, one after the other


def request(asked: QuestionRecord, answer: str) -> list[dict]:
    """The messages for one answer. The truth is always among them."""
    truth = json.dumps(asked.raw["truth"], ensure_ascii=False, sort_keys=True)
    reference = f"\nReference answer: {asked.answer}" if asked.answer else ""
    text = f"Question: {asked.question}\nTruth: {truth}{reference}\nAnswer: {answer}"
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]


def parse_reply(answer: str, reply: str) -> Edit | None:
    """The edit that a reply holds, None if it is not of the form asked for."""
    match = REPLY.search(reply)
    if match is None:
        return None
    return Edit(answer, match.group(2).strip(), right=match.group(1).upper() == "RIGHT")


def instructed_editor(complete: Complete) -> Callable[[Sequence[tuple[QuestionRecord, str]]], Iterator[Edit | None]]:
    """An editor from what completes messages."""

    def edit(pairs: Sequence[tuple[QuestionRecord, str]]) -> Iterator[Edit | None]:
        replies = complete([request(asked, answer) for asked, answer in pairs])
        for (_, answer), reply in zip(pairs, replies, strict=True):
            yield parse_reply(answer, reply)

    return edit


def add_chat_options(parser, flag: str) -> None:
    """The flags of a :class:`ChatEndpoint`. flag: the one that they belong to."""
    parser.add_argument("--url", help=f"of {flag}: an OpenAI-compatible address, as https://api.openai.com/v1")
    parser.add_argument("--key-name", default="OPENAI_API_KEY", help=f"of {flag}: the variable that holds the key")
    parser.add_argument("--per-minute", type=float, default=60, help=f"of {flag}: requests a minute (default 60)")


class ChatEndpoint:
    """``endpoint(messages, ...)`` -> replies of a chat model behind an OpenAI-compatible address.

    Failed requests are repeated with growing delays. Replies are kept on disk, so nothing is requested twice; requests
    are written nowhere else.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache: str | Path,
        per_minute: float = 60,
        key_name: str = "OPENAI_API_KEY",
        client: InferenceClient | None = None,
    ):
        """key_name: the environment variable that holds the key.

        Raises InputError if the key is needed and not set, and for a rate that is not positive.
        """
        if per_minute <= 0:
            raise InputError(f"--per-minute must be above 0, not {per_minute:g}")
        key = os.environ.get(key_name)
        if client is None and not key and not re.match(r"https?://(localhost|127\.0\.0\.1|\[::1\])[:/]", f"{url}/"):
            raise InputError(f"{url} needs a key: set {key_name}")
        self._client = client or InferenceClient(base_url=url, api_key=key or "none", timeout=120)
        self.model, self.cache, self._gap = model, Path(cache), 60 / per_minute
        self._name, self._next = f"{url} {model}", 0.0

    def __call__(self, requests: Sequence[list[dict]]) -> Iterator[str]:
        for messages in requests:
            text = json.dumps([self._name, messages], ensure_ascii=False, sort_keys=True)
            place = self.cache / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
            if place.is_file():
                yield json.loads(place.read_text(encoding="utf-8"))["reply"]
                continue
            reply = self._ask(messages)
            self._keep(place, reply)
            yield reply

    def _ask(self, messages: list[dict]) -> str:
        for attempt in range(ATTEMPTS):
            time.sleep(max(0.0, self._next - time.monotonic()))
            self._next = time.monotonic() + self._gap
            try:
                reply = self._client.chat_completion(messages, model=self.model, temperature=0.0, max_tokens=512)
                return reply.choices[0].message.content or ""
            except (HfHubHTTPError, InferenceTimeoutError, OSError) as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                if status in (400, 401, 403, 404, 422) or attempt == ATTEMPTS - 1:
                    why = status or type(error).__name__
                    raise InputError(f"the chat model {self._name} does not answer ({why})") from None
                time.sleep(min(LONGEST_WAIT, self._gap * 2**attempt))
        raise AssertionError("the last attempt returns or raises")

    def _keep(self, place: Path, reply: str) -> None:
        write_aside(place, json.dumps({"reply": reply}, ensure_ascii=False))

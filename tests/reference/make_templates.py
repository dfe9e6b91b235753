"""Writes templates.json: the ids and texts that transformers' processors and tokenizers give for conversations.

    python -m tests.reference.make_templates PUBLISHED_DIRS        in an environment with torch and transformers

The inputs are those of template_inputs.py, so only results are stored. Placeholders of images are not expanded.
"""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import transformers
from transformers import AutoTokenizer, ProcessorMixin
from transformers.utils import chat_template_utils

from tests.reference.template_inputs import (
    ANSWER,
    CONSTRUCTS,
    CONVERSATIONS,
    DATE,
    FAMILIES,
    HERE,
    NAMES,
    PARTS_ONLY,
    REFUSED,
    TEXT_CONVERSATIONS,
    as_parts,
    model_dir,
)


class Pinned(datetime):
    """``datetime`` whose today is DATE: templates that ask for the date get a constant one."""

    @classmethod
    def now(cls, tz=None):
        return cls.strptime(DATE, "%d %b %Y")


def encode(folder: Path, family: str) -> dict[str, dict[str, list[int]]]:
    """Ids of every conversation, ready for an answer ("prompt") and with one ("whole").

    As ``ProcessorMixin.apply_chat_template`` does it: the processor's template where there is one, and the special
    tokens that the tokenizer adds where the text does not begin with BOS.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = ProcessorMixin.get_processor_dict(folder)[0].get("chat_template") or tokenizer.chat_template
    found = {}
    for name, messages in CONVERSATIONS.items():
        if (family, name) in REFUSED:
            continue
        answered = [*messages, {"role": "assistant", "content": ANSWER}]
        rendered = [
            tokenizer.apply_chat_template(
                as_parts(conversation) if family in PARTS_ONLY else conversation,
                chat_template=template,
                add_generation_prompt=opened,
                tokenize=False,
                date_string=DATE,
            )
            for conversation, opened in ((messages, True), (answered, False))
        ]
        begun = [bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token) for text in rendered]
        ids = [tokenizer.encode(text, add_special_tokens=not has) for text, has in zip(rendered, begun, strict=True)]
        found[name] = dict(zip(("prompt", "whole"), ids, strict=True))
    return found


def render(template: str, name: str, opened: bool) -> str:
    """The text of a conversation, by transformers' Jinja2 environment."""
    (text,), _ = chat_template_utils.render_jinja_template(
        [CONVERSATIONS[name]], chat_template=template, add_generation_prompt=opened, **NAMES
    )
    return text


def main() -> None:
    chat_template_utils.datetime = Pinned
    with tempfile.TemporaryDirectory() as place:
        published, place = Path(sys.argv[1]), Path(place)
        ids = {family: encode(model_dir(family, published, place / family), family) for family in FAMILIES}
    texts = {
        kind: {name: [render(template, name, opened) for opened in (True, False)] for name in TEXT_CONVERSATIONS}
        for kind, template in CONSTRUCTS.items()
    }
    record = {"versions": {"transformers": transformers.__version__}, "ids": ids, "texts": texts}
    lines = json.dumps(record, ensure_ascii=False, indent=None).replace('}, "', '},\n"')
    (HERE / "templates.json").write_text(lines + "\n", encoding="utf-8")
    print({family: len(found) for family, found in ids.items()}, {kind: len(found) for kind, found in texts.items()})


if __name__ == "__main__":
    main()

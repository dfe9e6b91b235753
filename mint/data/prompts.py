"""The wording of a prompt: a system and a user message with placeholders, and the first line of the answer.

A file has the form of TOML:

    system = "You are a genetic counselor."           # may be left out
    user = "{note}\\n\\nList ten diseases under DISEASES:"
    header = "DISEASES:"                               # may be left out where the user message has the default

A placeholder is a name in braces. ``{{name}}`` stands for the braces themselves.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mint.errors import InputError
from mint.files import read_toml

PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")


@dataclass(frozen=True)
class Prompt:
    """user, system: the messages, with placeholders; an empty system message is left out. header: of the answer."""

    user: str
    header: str
    system: str = ""

    @property
    def placeholders(self) -> set[str]:
        """The names that :meth:`messages` needs a text for."""
        return {match[2] for match in PLACEHOLDER.finditer(self.system + self.user) if match[2]}

    def messages(self, **texts: str) -> list[dict]:
        """The messages with every placeholder replaced; what stands in a text is not looked at again."""

        def fill(template: str) -> str:
            return PLACEHOLDER.sub(lambda match: f"{{{match[1]}}}" if match[1] else texts[match[2]], template)

        roles = (("system", self.system), ("user", self.user))
        return [{"role": role, "content": fill(template)} for role, template in roles if template]


def read_prompt(path: str | Path, header: str, known: Collection[str], needed: Collection[str] = ()) -> Prompt:
    """The prompt in a file. header: the default; known, needed: names of placeholders that it may and must have.

    Raises InputError for a file that cannot be read, other keys and placeholders, and a header that the messages lack
    where the file does not name one.
    """
    values = read_toml(path)
    if unknown := [name for name in values if name not in ("system", "user", "header")]:
        raise InputError(f"{path}: {unknown[0]!r} is not one of system, user, header")
    if bad := [name for name, value in values.items() if not isinstance(value, str) or not value.strip()]:
        raise InputError(f"{path}: {bad[0]} must be a text")
    if "user" not in values:
        raise InputError(f'{path} has no user = "..."')
    prompt = Prompt(**{"header": header, **values})
    if len(prompt.header.splitlines()) > 1:
        raise InputError(f"{path}: the header must be one line")
    if "header" not in values and header not in prompt.system + prompt.user:
        raise InputError(f'{path} does not ask for {header}: add header = "..." with the first line of an answer')
    places = prompt.placeholders
    if strange := sorted(places.difference(known)):
        listed = ", ".join(f"{{{name}}}" for name in known)
        raise InputError(f"{path}: {{{strange[0]}}} is not one of {listed} (write {{{{{strange[0]}}}}} for the braces)")
    if missing := [name for name in needed if name not in places]:
        raise InputError(f"{path} has no {{{missing[0]}}}")
    return prompt

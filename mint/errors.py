"""Errors the user can fix, and the end of a command by a signal.

Commands print an InputError as ``error: ...`` and exit with status 2; any other error is a bug and shows a traceback.
Messages name records by their ids. Their texts (prompts, notes, answers) go through :func:`quote`.
"""

import os
import re

SHOW_TEXT = "MINT_SHOW_TEXT"  # set by --show-text; an environment variable, so that worker processes have it too
QUOTED = 60  # characters of a quoted text


class InputError(ValueError):
    """Bad input: the message says what was wrong, where, and what to do about it."""


class Stopped(KeyboardInterrupt):
    """Stopped by a signal; ``number`` is the signal's. Commands exit with status 128 + number."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


SHOWN = 50  # problems listed in full


class FileProblems(InputError):
    """All that is wrong with one file, as ``problems``: one "FILE:LINE: what is wrong" each."""

    def __init__(self, path, problems: list[str]):
        self.path, self.problems = path, problems
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__(f"{path} has {count}:\n  " + "\n  ".join(problems[:SHOWN] + more))

    def __reduce__(self):  # as worker processes send it
        return FileProblems, (self.path, self.problems)


def shows_text() -> bool:
    """Whether messages may contain texts of records (``--show-text``)."""
    return bool(os.environ.get(SHOW_TEXT))


def quote(text: object) -> str:
    """A text of a record for a message: the beginning with ``--show-text``, otherwise only its length. Numbers stay."""
    if text is None or isinstance(text, int | float):
        return repr(text)
    value = str(text)
    if shows_text():
        return repr(value if len(value) <= QUOTED else f"{value[:QUOTED]}...")
    return f"[{len(value)} characters; --show-text shows them]"


def describe_error(error: Exception) -> str:
    """The type of an exception whose message may quote a record; with ``--show-text`` the message too."""
    return f"{type(error).__name__}: {error}" if shows_text() else type(error).__name__


def without_passwords(text: str) -> str:
    """The text with ``***`` for the user and password of every address in it (``https://user:password@host``)."""
    return re.sub(r"(?<=://)[^\s/?#]*@", "***@", text)

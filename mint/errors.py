"""Errors the user can fix, and the end of a command by a signal.

Commands print an InputError as ``error: ...`` and exit with status 2; any other error is a bug and shows a traceback.
"""


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

"""The one exception for mistakes that the person at the keyboard can mend.

Commands print its message as ``error: ...`` and exit with status 2; everything else is a bug and shows a traceback.
"""


class InputError(ValueError):
    """Bad input: the message says what was wrong, where, and what to do about it."""


SHOWN = 50  # problems listed in full


class FileProblems(InputError):
    """All that is wrong with one file, as ``problems``: one "FILE:LINE: what is wrong" each."""

    def __init__(self, path, problems: list[str]):
        self.problems = problems
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__(f"{path} has {count}:\n  " + "\n  ".join(problems[:SHOWN] + more))

"""The one exception for mistakes that the person at the keyboard can mend.

Commands print its message as ``error: ...`` and exit with status 2; everything else is a bug and shows a traceback.
"""


class InputError(ValueError):
    """Bad input: the message says what was wrong, where, and what to do about it."""

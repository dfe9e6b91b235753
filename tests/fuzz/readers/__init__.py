"""The readers of files and settings, each with the good input that is damaged before it is read.

A reader is a function of (rng, folder): it writes damaged input to the empty ``folder`` and reads it. It may raise
InputError, or exit with status 2 as argument parsers do; all else is a fault. What it writes belongs into
``folder/out``.
"""

from tests.fuzz.readers import images, models, records, settings, tables  # noqa: F401 (they enter their readers)
from tests.fuzz.readers.registry import LIMIT, READERS, attempt

__all__ = ["LIMIT", "READERS", "attempt"]

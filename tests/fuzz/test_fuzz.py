"""Damaged input is read or refused with an InputError, within a time limit, and nothing is written elsewhere.

A short run over all readers; ``python -m benchmarks.fuzz`` is the long one.
"""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.readers import READERS, attempt

EXAMPLES = 8
COUNT = itertools.count()


@pytest.mark.parametrize("name", READERS)
def test_damaged_input_is_read_or_refused(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )
    @given(st.integers(0, 2**32))
    def check(seed):
        assert attempt(name, seed, folder / str(next(COUNT)), limit=60)[0] in ("read", "refused")

    check()

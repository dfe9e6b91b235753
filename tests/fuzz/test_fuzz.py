"""Damaged input is read or refused with an InputError, within a time limit, and nothing is written elsewhere.

A short run over all readers; ``python -m benchmarks.fuzz`` is the long one.
"""

import itertools
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.readers import READERS, attempt
from tests.fuzz.readers.inputs import picture

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


@pytest.mark.parametrize("name", READERS)
def test_a_seed_writes_the_same_input_again(name, tmp_path, monkeypatch):
    def written(folder):
        attempt(name, 1, folder, limit=60)
        inputs = folder / "in"
        paths = [path for path in inputs.rglob("*") if path.is_file() and not path.is_symlink()]
        return {path.relative_to(inputs): path.read_bytes() for path in paths if "out" not in path.parts}

    first = written(tmp_path / "first")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 5)  # gzip notes it
    picture.cache_clear()
    torch.rand(7)
    assert written(tmp_path / "again") == first

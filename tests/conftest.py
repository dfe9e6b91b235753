"""Fixtures shared by all tests: where the real data lies, and the mark for tests that need a GPU."""

import os
from pathlib import Path

import pytest
import torch

from mint.evaluation import statistics
from mint.training.setup import choose_precision
from tests.flash_on_cpu import flash_on_cpu  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: a thread each, also of the commands they start
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project; tests that use it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real data is not present beside the project")
    return folder


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def each_device(request) -> str:
    """The CPU, and a GPU where there is one, whose products of float32 are then float32."""
    choose_precision(False, torch.device(request.param))
    return request.param


@pytest.fixture
def few_resamples(monkeypatch):
    """Intervals and tests of comparisons from few draws, where a test is not about them."""
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    monkeypatch.setattr(statistics, "FLIPS", 20)

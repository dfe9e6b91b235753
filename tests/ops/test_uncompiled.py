"""A function that is not compiled: the same numbers, no compilation for each of its shapes, no compiler imported."""

import subprocess
import sys
from pathlib import Path

import torch
from torch._dynamo.testing import CompileCounter

from mint.ops.pair_attention import pair_attention, pair_layout


def test_new_bounds_compile_nothing():
    counter = CompileCounter()

    def attend(x, layout):
        return pair_attention(2 * x, x, x + 1, layout) * 3

    compiled, counts = torch.compile(attend, backend=counter), []
    for lengths in ((5, 3, 4), (6, 2, 2), (3, 7, 5), (9, 1, 1)):
        roles = torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor(lengths))
        layout = pair_layout(torch.nn.functional.pad(roles, (0, 24 - len(roles)), value=-1)[None])
        x = torch.randn(1, 2, 24, 8)
        torch.testing.assert_close(compiled(x, layout), attend(x, layout))
        counts.append(counter.frame_count)
    assert counts == [2] * 4  # what stands before the function, and after it


def test_models_are_imported_without_the_compiler():
    code = "import sys, mint.models; print('torch._dynamo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.stdout == "False\n", run.stderr

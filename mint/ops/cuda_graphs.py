"""What ``torch.compile`` needs to know to record CUDA graphs."""

from __future__ import annotations

from torch import Tensor


def keep_address(x: Tensor) -> None:
    """Says that ``x`` stays where it is in memory, so that a recorded graph may write to it.

    A compiled function that writes to other tensors of its caller is run without a graph.
    """
    import torch._dynamo  # the compiler takes two seconds to import

    torch._dynamo.mark_static_address(x)

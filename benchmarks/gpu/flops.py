"""Operations of a training step that the model asks for: padding, recomputation and repeated prompts are not counted.

A product of a matrix with a vector takes two operations per weight. With a frozen weight the backward pass takes two
more, for the gradient of the input, and the reference another two:

    layers      (4 or 6) N per token; N: weights of the decoder's linear layers
    attention   4 n D per visible pair of query and key forward, twice that backward, once for the reference;
                n heads of size D in every layer
    head        (4 or 6) H V per predicted position
    adapter     6 per weight and token, the reference has none

The model-FLOPs utilisation is the sum without the adapter, per second, of the device's ``PEAK``. Image encoders are
not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PEAK = 989e12  # operations per second of an H100 (SXM) or H200 in bfloat16, dense


@dataclass(frozen=True)
class StepFlops:
    """Operations by part (see the module)."""

    layers: int
    attention: int
    head: int
    adapter: int

    @property
    def model(self) -> int:
        """Those of the model."""
        return self.layers + self.attention + self.head


def count_flops(
    text: dict, lengths: Iterable[tuple[int, int, int]], reference: bool, prompt_targets: bool, adapter: int
) -> StepFlops:
    """Of sequences with ``lengths`` (prompt, chosen, rejected), a corrupted twin being one of its own.

    text: the decoder's settings. reference: whether the loss has one. prompt_targets: whether the prompt is predicted
    too, from its second token on. adapter: number of trained weights.
    """
    width, heads = text["hidden_size"], text["num_attention_heads"]
    size = text.get("head_dim") or width // heads
    query, key = heads * size, text["num_key_value_heads"] * size
    weights = text["num_hidden_layers"] * (2 * width * (query + key) + 3 * width * text["intermediate_size"])
    tokens = visible = predicted = 0
    for prompt, chosen, rejected in lengths:
        tokens += prompt + chosen + rejected
        visible += _causal(prompt) + sum(answer * prompt + _causal(answer) for answer in (chosen, rejected))
        predicted += chosen + rejected + (prompt - 1) * prompt_targets
    return StepFlops(
        layers=(4 + 2 * reference) * weights * tokens,
        attention=(12 + 4 * reference) * query * text["num_hidden_layers"] * visible,
        head=(4 + 2 * reference) * width * text["vocab_size"] * predicted,
        adapter=6 * adapter * tokens,
    )


def _causal(length: int) -> int:
    return length * (length + 1) // 2


def utilisation(flops: float, seconds: float) -> float:
    """The share of ``PEAK``."""
    return flops / seconds / PEAK

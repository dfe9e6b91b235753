"""A tokenizer that turns ``<5> <17>`` into [5, 17], for trainers that insist on tokenising text themselves.

Needs transformers; used by the reference scripts and the benchmark's peer, never by the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS, EOS = 1, 2


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Token i is the word ``<i>``; BOS is 1, EOS 2, and 0 is what trainers pad with."""
    words = {f"<{i}>": i for i in range(vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    apart = pre_tokenizers.Split(Regex(r"<\d+>"), "isolated")  # <5><5>: processors repeat an image's token so
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), apart])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=f"<{BOS}>", eos_token=f"<{EOS}>", pad_token="<0>", unk_token="<0>"
    )


def as_text(pairs: Sequence[dict[str, list[int]]]) -> list[dict[str, str]]:
    """Pairs of ids as rows of text that ``word_tokenizer`` turns back into the same ids."""
    rows = []
    for pair in pairs:
        words = {side: "".join(f" <{i}>" for i in pair[side]) for side in ("prompt", "chosen", "rejected")}
        rows.append({**words, "prompt": words["prompt"].lstrip()})
    return rows

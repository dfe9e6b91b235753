"""Greedy decoding of a checkpoint on the CPU, next to transformers' ``generate`` on the same weights, in turn.

    python -m benchmarks.decoding --model DIR --out OUT [--threads 2]

One prompt and sixteen, all of 64 tokens with answers of 64; then the notes of sixteen drawn patients, whose answers end
where the model ends them, or after 256 tokens. The environment needs transformers beside this project's packages.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.command import make_parser, run
from benchmarks.gpu.decoding import PROMPTS, NoText, random_prompts
from mint.data.chat import load_tokenizer
from mint.errors import InputError
from mint.files import write_aside
from mint.models import load_model
from mint.models.generate import generate
from mint.synthetic.cohort import sample_cohort
from mint.tasks.disease import Disease

LENGTH, LONGEST = 64, 256  # tokens of a prompt and of its answer; of the answer to a note
HEADER = "prompts", "tokens of the answers", "ours, s", "transformers, s", "transformers / ours", "equal answers"


class Batch(NamedTuple):
    """Prompts of ids, decoded together. longest: tokens of an answer. ends: tokens that end one."""

    name: str
    prompts: list[list[int]]
    longest: int
    ends: set[int]


Decode = Callable[[Batch], list[str]]  # the ids of each answer


def measure(args: argparse.Namespace) -> str:
    """The table. Raises InputError for settings out of range, a model that cannot be read, or without transformers."""
    if args.repeats < 1 or args.threads < 1:
        raise InputError("--repeats and --threads must be at least 1")
    torch.set_num_threads(args.threads)
    tokenizer = load_tokenizer(args.model)
    sides = [our_decoder(args.model), peer_decoder(args.model)]
    notes = [tokenizer.encode_prompt(Disease().messages(case)) for case in sample_cohort(PROMPTS[-1])]
    batches = [Batch("equally long", random_prompts(n, LENGTH, tokenizer.vocab_size), LENGTH, set()) for n in PROMPTS]
    batches.append(Batch("notes", notes, LONGEST, tokenizer.eos_ids))
    rows = [HEADER, ["---"] * len(HEADER), *(compare(batch, sides, args.repeats) for batch in batches)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    write_aside(Path(args.out) / "decoding.md", table)
    return table


def compare(batch: Batch, sides: list[Decode], repeats: int) -> list[str]:
    """A row of the table: medians of both sides, which take turns, and the median of the ratios; after a warm-up."""
    answers = [decode(batch) for decode in sides]
    seconds: list[list[float]] = []
    for _ in range(repeats):
        turn = []
        for decode in sides:
            started = time.perf_counter()
            decode(batch)
            turn.append(time.perf_counter() - started)
        seconds.append(turn)
    ratio = statistics.median(theirs / ours for ours, theirs in seconds)
    lengths, tokens = [len(ids) for ids in batch.prompts], [len(answer.split()) for answer in answers[0]]
    return [
        f"{len(lengths)} {batch.name}: {span(lengths)} tokens", span(tokens),
        *(f"{statistics.median(times):.2f}" for times in zip(*seconds, strict=True)), f"{ratio:.2f}",
        str(sum(ours == theirs for ours, theirs in zip(*answers, strict=True))),
    ]  # fmt: skip


def span(numbers: list[int]) -> str:
    """The least and the largest number, or the only one."""
    return f"{min(numbers)} to {max(numbers)}" if min(numbers) < max(numbers) else str(numbers[0])


def our_decoder(folder: str) -> Decode:
    """``mint.models.generate``, in float32."""
    model = load_model(folder)
    return lambda batch: generate(model, NoText(batch.ends), batch.prompts, batch.longest)


def peer_decoder(folder: str) -> Decode:
    """transformers' ``generate``, in float32, prompts padded on the left. Raises InputError without transformers."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise InputError("transformers is not installed: use an environment that has it") from error
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def decode(batch: Batch) -> list[str]:
        longest = max(map(len, batch.prompts))
        tokens = torch.tensor([[0] * (longest - len(ids)) + ids for ids in batch.prompts])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch.prompts])
        model.generation_config.eos_token_id = sorted(batch.ends) or None
        written = model.generate(
            tokens, attention_mask=mask, max_new_tokens=batch.longest, do_sample=False, pad_token_id=0
        )
        return [NoText.decode(until(ids, batch.ends)) for ids in written[:, longest:].tolist()]

    return decode


def until(ids: list[int], ends: set[int]) -> list[int]:
    """The tokens before the first end."""
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="a Llama checkpoint with its tokenizer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())

"""Decoding in batches with a static key/value cache, greedy or sampled.

A prompt's answer does not depend on its batch: rows are padded on the right, each row writes the cache at its own
positions, and sampling draws from a generator of the prompt's own. Tokens are chosen on the model's device.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeGuard, cast

import torch
from torch import Tensor

from mint.errors import InputError
from mint.models.llama import CausalLM, KeyValueCache
from mint.ops.cuda_graphs import RecordedFunction
from mint.progress import Progress

Prompt = str | list[dict] | list[int]
KEPT = 0.75  # of a batch's rows: when no more than these go on, the others are dropped


class AnswerState(Protocol):
    """The state of an answer under a grammar."""

    def allowed(self) -> list[int]:
        """The tokens that may follow; an end token where the answer may end."""

    def advance(self, token: int) -> None:
        """Takes the next token."""

    def text(self) -> str:
        """The answer as text."""


class Grammar(Protocol):
    """A set of allowed answers. longest: the maximum number of tokens of an answer."""

    longest: int

    def start(self) -> AnswerState:
        """The beginning of an answer."""


class PromptTokenizer(Protocol):
    """A :class:`mint.data.chat.ChatTokenizer`. eos_ids: tokens that end an answer."""

    eos_ids: set[int]

    def encode_prompt(self, prompt: str | list[dict]) -> list[int]:
        """The ids of a string or of messages."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without control tokens."""


def generate(
    model: CausalLM,
    tokenizer: PromptTokenizer,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
    grammar: Grammar | None = None,
    images: Callable[[Sequence[int]], dict[str, Tensor] | None] | None = None,
    repetition_penalty: float = 1.0,
    known: Mapping[int, str] | None = None,
    save: Callable[[dict[int, str]], None] | None = None,
) -> list[str]:
    """The model's answer to every prompt, in the given order.

    prompts: message lists (the chat template adds the assistant's turn), strings (continued as they are) or token ids.
    temperature: 0 is greedy decoding; above, tokens are drawn from softmax(logits / temperature), restricted to the
    ``top_k`` most probable (0: all), then to the smallest set with a total probability of at least ``top_p``.
    seed: with the index of the prompt, seeds its random generator. grammar: restricts the answers, which then end where
    it ends, whatever ``max_new_tokens``. images: maps the indices of a batch of prompts to the tensors of all their
    images, in the order of the image tokens in the prompts' ids.
    repetition_penalty: > 0, see :func:`penalize_repetition`; 1 is off. known: answers by index that are not decoded
    again. save: called with the answers of each batch by index. Raises InputError for settings out of range or a prompt
    that leaves no room in the model's context.
    """
    if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1 or top_k < 0 or batch_size < 1:
        raise InputError("decoding needs max_new_tokens >= 1, temperature >= 0, 0 < top_p <= 1 and top_k >= 0")
    if repetition_penalty <= 0:
        raise InputError(f"decoding needs a repetition_penalty above 0, not {repetition_penalty}")
    encoded = [list(p) if _is_ids(p) else tokenizer.encode_prompt(cast("str | list[dict]", p)) for p in prompts]
    limit = model.config.max_position_embeddings
    if grammar is not None:
        max_new_tokens = grammar.longest
    least = 1 if grammar is None else grammar.longest
    for number, ids in enumerate(encoded):
        if not 0 < len(ids) <= limit - least:
            room = f" and an answer up to {least}" if least > 1 else ""
            raise InputError(f"prompt {number + 1} has {len(ids)} tokens{room}; the model's context is {limit}")
    known = known or {}
    left = [i for i in range(len(encoded)) if i not in known]
    order = sorted(
        left, key=lambda i: (len(encoded[i]), encoded[i], i)
    )  # equal prompts side by side: they are read once
    answers: list[str] = [known.get(i, "") for i in range(len(encoded))]
    training = model.training
    model.eval()
    bar = Progress(total=len(encoded), initial=len(encoded) - len(left), desc="decoding", unit="prompt", show=progress)
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        rooms = [min(max_new_tokens, limit - len(encoded[i])) for i in members]
        draws = [torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**63) for i in members]
        states = [grammar.start() for _ in members] if grammar else None
        choose = _Chooser(temperature, top_p, top_k, draws, states)
        seen = images(members) if images else None
        batch = [encoded[i] for i in members]
        outputs = _decode(model, batch, rooms, tokenizer.eos_ids, choose, seen, repetition_penalty)
        for row, (i, ids) in enumerate(zip(members, outputs, strict=True)):
            answers[i] = states[row].text() if states else tokenizer.decode(ids)
        if save is not None:
            save({i: answers[i] for i in members})
        bar.update(len(members))
    bar.close()
    model.train(training)
    return answers


def _is_ids(prompt: Prompt) -> TypeGuard[list[int]]:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], int)


@torch.no_grad()
def _decode(
    model: CausalLM,
    prompts: list[list[int]],
    rooms: list[int],
    eos_ids: set[int],
    choose: _Chooser,
    images: dict[str, Tensor] | None,
    repetition_penalty: float,
) -> list[list[int]]:
    """The tokens of each answer. The device is waited for once a token, to see which rows have ended.

    On CUDA the step of a token is recorded for the batch, whose rows then all stay.
    """
    device, vocabulary = model.head_weight.device, model.head_weight.shape[0]
    unwritten = [i for i in model.image_slots[:1] if 0 <= i < vocabulary]  # no answer holds an image
    slots = max(len(ids) + room for ids, room in zip(prompts, rooms, strict=True))
    last, cache = _read_prompts(model, prompts, slots, images)
    place = torch.tensor([len(ids) for ids in prompts], device=device).unsqueeze(1)
    longest = max(map(len, prompts))
    step = functools.partial(_step, model, cache)
    recorded: RecordedFunction | None = None
    outputs: list[list[int]] = [[] for _ in prompts]
    present = _present(prompts, vocabulary).to(device) if repetition_penalty != 1 else None
    rows: list[int | None] = list(range(len(prompts)))  # the answers that the batch's rows continue; None: it has ended
    for length in range(longest, longest + max(rooms)):
        logits = last.float()
        logits[:, unwritten] = -torch.inf
        if present is not None:
            logits = penalize_repetition(logits, present, repetition_penalty)
        chosen = choose(logits, rows)
        if present is not None:
            present.scatter_(1, chosen.unsqueeze(1), True)
        for i, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if row is not None:
                if token not in eos_ids:
                    outputs[row].append(token)
                if token in eos_ids or len(outputs[row]) == rooms[row]:
                    rows[i] = None
        going = [i for i, row in enumerate(rows) if row is not None]
        if not going:
            break
        if device.type != "cuda":
            if len(going) <= KEPT * len(rows):
                kept = torch.tensor(going, device=device)
                cache.keep(kept)
                rows, chosen, place = [rows[i] for i in going], chosen[kept], place[kept]
                present = present[kept] if present is not None else None
            cache.used = min(cache.length, length + 1)
        inputs = chosen.unsqueeze(1), place.clamp(max=cache.length - 1)  # rows that have ended write anywhere
        if device.type == "cuda" and recorded is None:
            recorded = RecordedFunction(step, *inputs)
        last = (recorded or step)(*inputs)
        place = place + 1
    return outputs


def _read_prompts(
    model: CausalLM, prompts: list[list[int]], slots: int, images: dict[str, Tensor] | None
) -> tuple[Tensor, KeyValueCache]:
    """([B, V] logits after each prompt, the cache with ``slots`` each). Equal prompts without images are read once."""
    device = model.head_weight.device
    texts = list(map(tuple, prompts))
    read = texts if images is not None else list(dict.fromkeys(texts))
    lengths = [len(ids) for ids in read]
    longest = max(lengths)
    tokens = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in read], device=device)
    positions = torch.arange(longest, device=device).expand_as(tokens)  # padding is overwritten as the row grows
    if images is not None:
        images = {name: value.to(device) for name, value in images.items()}
    cache = KeyValueCache(model.config, len(read), slots, model.head_weight)
    cache.used = longest
    hidden = model.forward_cached(tokens, positions, cache, images)
    last = hidden[torch.arange(len(read), device=device), torch.tensor(lengths, device=device) - 1]  # [B, H]
    logits = model.logits(last)
    if len(read) < len(prompts):
        places = {ids: place for place, ids in enumerate(read)}
        copies = torch.tensor([places[ids] for ids in texts], device=device)
        cache.keep(copies)
        logits = logits[copies]
    cache.used = slots
    return logits, cache


def _step(model: CausalLM, cache: KeyValueCache, tokens: Tensor, positions: Tensor) -> Tensor:
    """[B, V] logits after one more token [B, 1] of each row."""
    return model.logits(model.forward_cached(tokens, positions, cache)[:, 0])


def _present(prompts: list[list[int]], vocabulary: int) -> Tensor:
    """[B, V] bool: the tokens of each prompt; an image token after the vocabulary has no logit."""
    present = torch.zeros(len(prompts), vocabulary, dtype=torch.bool)
    for number, ids in enumerate(prompts):
        present[number, [i for i in ids if i < vocabulary]] = True
    return present


def penalize_repetition(logits: Tensor, present: Tensor, penalty: float) -> Tensor:
    """[B, V]: logits of tokens in ``present`` [B, V] bool divided by ``penalty`` where positive, else multiplied by it.

    Above 1, tokens of the prompt and of the answer so far become less likely (arXiv 1909.05858).
    """
    return torch.where(present, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


class _Chooser:
    """Picks the next token of every row."""

    def __init__(
        self,
        temperature: float,
        top_p: float,
        top_k: int,
        generators: list[torch.Generator],
        states: list[AnswerState] | None = None,
    ):
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.generators, self.states = generators, states

    def __call__(self, logits: Tensor, rows: Sequence[int | None]) -> Tensor:
        """[B] tokens. logits: [B, V] float32. rows: the answer that each continues; one that is None gets any token."""
        if self.states is None:
            return self._choose(logits, rows)
        allowed = [(i, t) for i, row in enumerate(rows) if row is not None for t in self.states[row].allowed()]
        places = tuple(torch.tensor(allowed, device=logits.device).T)
        held = torch.full_like(logits, -torch.inf)
        held[places] = logits[places]
        chosen = self._choose(held, rows)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if row is not None:
                self.states[row].advance(token)
        return chosen

    def _choose(self, logits: Tensor, rows: Sequence[int | None]) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        probabilities = sampling_probabilities(logits, self.temperature, self.top_p, self.top_k)
        draws = [0.0 if row is None else float(torch.rand((), generator=self.generators[row])) for row in rows]
        return pick(probabilities, torch.tensor(draws, device=logits.device))


def pick(probabilities: Tensor, draws: Tensor) -> Tensor:
    """[B]: the first token of each row whose cumulative probability exceeds ``draws`` [B], uniform in [0, 1).

    probabilities: [B, V]. The draws may come from any generator, so that devices agree; summed in float64.
    """
    cumulative = probabilities.double().cumsum(-1)
    return (cumulative <= draws.unsqueeze(1) * cumulative[:, -1:]).sum(-1)


def sampling_probabilities(logits: Tensor, temperature: float, top_p: float, top_k: int) -> Tensor:
    """[B, V]: the distribution that tokens are drawn from; with the settings of :func:`generate` applied in order."""
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ordered, places = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # the probability of all likelier tokens
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, places, ordered)
    return probabilities / probabilities.sum(-1, keepdim=True)

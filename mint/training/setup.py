"""What a training run needs before its first step: the loss, the model with its adapter, and the encoded pairs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mint import parallel
from mint.config import TrainConfig
from mint.data.batch import EncodedPair
from mint.data.chat import ChatTokenizer, load_tokenizer
from mint.data.encode import EncodeReport, PairEncoder, encode_pairs
from mint.data.image_features import check_image_features
from mint.data.images import Processor, processor_of
from mint.data.order import PairOrder, batch_shape
from mint.data.pair_summary import render_pair, summarize_pairs
from mint.data.preferences import Preference, read_preferences
from mint.data.record_images import ImageSlots, find_images
from mint.data.spans import mark_changes
from mint.data.streamed_pairs import StreamedPairs, read_streamed
from mint.errors import InputError, shows_text
from mint.losses import Loss, fire_loss, load_loss
from mint.losses.check import check_loss
from mint.models import load_language_model, load_structure
from mint.models.attention import SPLIT_FROM
from mint.models.llama import CausalLM
from mint.models.lora import (
    adapter_settings,
    add_lora,
    find_targets,
    keep_as_reference,
    load_adapter,
    lora_layers,
    merge_lora,
    target_modules,
)
from mint.models.quantized import weight_bytes
from mint.models.recompute import set_recompute

SHOWN = (1200, 600)  # characters of the rendered pair, from its beginning and from its end


def choose_loss(config: TrainConfig) -> Loss:
    """The loss of the run. Raises InputError if it does not work with these settings; nothing else is loaded yet."""
    loss = load_loss(config.loss, config.loss_options())
    if config.nll_over == "sequence" and not loss.needs.prompt:
        raise InputError(f"--nll-over sequence is for losses with an NLL over the prompt, which {config.loss} is not")
    check_loss(loss, reads_prompt(config, loss))
    if config.cache_reference and not loss.needs.reference:
        raise InputError(f"--cache-reference: the loss {config.loss!r} has no reference model; leave the flag out")
    return load_loss(config.loss, config.loss_options())  # a custom one anew, as if it had not been called yet


def check_processes(config: TrainConfig) -> None:
    """Raises InputError if the processes outnumber the forward passes of a step; prints a note if some have fewer."""
    passes, processes = config.grad_accum, parallel.size()
    if config.shard and processes == 1:
        raise InputError("--shard divides a model between processes: start several with torchrun --nproc-per-node N")
    if config.shard and config.sample_every:
        raise InputError("--shard and --sample-every do not go together: a sharded model does not write answers")
    if config.shard and passes % processes:
        raise InputError(f"--shard needs a --grad-accum that is a multiple of {processes}, the number of processes")
    if passes < processes:
        raise InputError(
            f"a step of --grad-accum {passes} cannot be shared by {processes} processes: --grad-accum counts the "
            f"forward passes of all processes; give a multiple of {processes}, or fewer processes"
        )
    if passes % processes:
        few, many = passes // processes, -(-passes // processes)
        print(
            f"note: --grad-accum {passes} is no multiple of {processes} processes: in each step some compute {few} "
            f"forward passes, others {many}",
            file=sys.stderr,
        )


def reads_prompt(config: TrainConfig, loss: Loss) -> bool:
    """Whether the prompt's own tokens are predicted: where that was asked for, and for losses that require them."""
    return loss.needs.prompt and (config.nll_over == "sequence" or loss.requires("prompt"))


def load_policy(
    config: TrainConfig,
    loss: Loss,
    device: torch.device,
    dtype: torch.dtype,
    load: Callable[..., CausalLM] = load_language_model,
) -> tuple[CausalLM, CausalLM | None, TrainConfig]:
    """(model to train, reference model, settings).

    The model is frozen below an adapter in float32, or with ``--full`` all of it is trained in float32; only then a
    loss with a reference gets a model of its own for it, unless the reference is cached. Rank, alpha, dropout and
    targets of the returned settings are the adapter's.
    """
    sharded = config.shard and parallel.size() > 1
    if sharded:
        load = load_structure
    more = {"quantize": config.quantize} if config.quantize else {}
    model = load(str(config.model), dtype=torch.float32 if config.full else dtype, device=device, **more)
    if config.adapter and config.full:
        merge_lora(load_adapter(model, config.adapter), drop=True)
    elif config.adapter:
        wanted = find_targets(model, config.lora_targets) if config.lora_targets else None
        covered = lora_layers(load_adapter(model, config.adapter))
        targets = ",".join(target_modules(model))
        if wanted is not None and set(wanted) != set(covered):
            raise InputError(
                f"--lora-targets {config.lora_targets}: the adapter in {config.adapter} covers other layers "
                f"({targets}); leave --lora-targets out"
            )
        keep_as_reference(model)
        config = replace(config, **adapter_settings(config.adapter), lora_targets=targets)
    if config.full:
        model.requires_grad_(True)
        unset: dict[str, Any] = dict.fromkeys(config.LORA_DEFAULTS)  # settings of an adapter do not apply
        config = replace(config, **unset)
    elif not config.adapter:
        given = {name: getattr(config, name) for name in config.LORA_DEFAULTS if getattr(config, name) is not None}
        config = replace(config, **(config.LORA_DEFAULTS | given))
        add_lora(model, **{name.removeprefix("lora_"): getattr(config, name) for name in config.LORA_DEFAULTS})
    if sharded:
        from mint.training.sharding import shard_and_load  # here, since it imports FSDP

        shard_and_load(model, str(config.model), config.adapter, device, config.seed)
    if config.image_features:
        check_image_features(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{config.model}: {sum(p.numel() for p in model.parameters()):,} parameters, {trainable:,} trained")
    if config.quantize:
        print(f"weights in {config.quantize}: {weight_bytes(model) / 1e6:,.1f} MB, embeddings and the rest included")
    warn_of_vision(model, loss)
    own_reference = config.full and loss.needs.reference and not config.cache_reference
    frozen = None
    if own_reference and sharded:
        frozen = load(str(config.model), dtype=torch.float32).requires_grad_(False)
        shard_and_load(frozen, str(config.model), None, device, config.seed)
    elif own_reference:
        frozen = frozen_copy(model, dtype)
    set_recompute(model, config.checkpoint_activations)
    return model.train(), frozen, config


def frozen_copy(model: CausalLM, dtype: torch.dtype) -> CausalLM:
    """A frozen copy in evaluation mode, the reference of a model that is trained in float32.

    dtype: of the products (autocast). In bfloat16 the copy's linear layers are stored in it, which changes no number;
    so is the LM head on CUDA, where its products are in bfloat16 too. Embeddings and norms stay in float32.
    """
    memo: dict[int, nn.Parameter] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (name != "lm_head" or module.weight.is_cuda):
            for parameter in module.parameters():
                memo[id(parameter)] = nn.Parameter(parameter.detach().to(dtype, copy=True), requires_grad=False)
    return copy.deepcopy(model, memo).requires_grad_(False).eval()


def choose_precision(tf32: bool, device: torch.device) -> None:
    """Whether products and convolutions of float32 on CUDA are computed in TF32; elsewhere nothing changes."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32


@dataclass(frozen=True)
class Data:
    """The encoded pairs of a run, and what encoded them. processor: None for models that read no images."""

    pairs: Sequence[EncodedPair]
    eval_pairs: list[EncodedPair]
    tokenizer: ChatTokenizer
    processor: Processor | None


def read_data(config: TrainConfig, model: CausalLM, loss: Loss) -> Data:
    """Reads the training and evaluation pairs, and prints statistics; with ``--show-text`` also the first pair as the
    model reads it.

    Every problem of a file is reported before anything trains; with ``--stream`` those that only encoding finds, and
    those of images, come when their pair does.
    """
    assert config.data is not None
    reader = _PairReader(config, model, loss)
    pairs: Sequence[EncodedPair]
    if config.stream:
        pairs, report = reader.stream(config.data)
        some, of = pairs.sample, f"{len(pairs):,} records, of which {pairs.sampled} were encoded: "
    else:
        pairs, report = reader.read(config.data)
        some, of = pairs, ""
    print(f"{config.data}: {of}{summarize_pairs(some, report)}")
    if shows_text():
        print(_shorten(render_pair(pairs[0], reader.tokenizer)))
    warn_of_missing(some, loss, config.data)
    eval_pairs: list[EncodedPair] = []
    if config.eval_data:
        eval_pairs, report = reader.read(config.eval_data)
        print(f"{config.eval_data}: {report}")
    return Data(pairs, eval_pairs, reader.tokenizer, reader.processor)


class _PairReader:
    """Reads files of pairs as a run needs them."""

    def __init__(self, config: TrainConfig, model: CausalLM, loss: Loss):
        self.config, self.needs = config, loss.needs
        self.tokenizer = load_tokenizer(model.source_dir, chat_date=config.chat_date)
        self.processor = processor_of(model, config.max_pixels)
        self.vocabulary = model.decoder.embed_tokens.num_embeddings
        self.by_changes = config.spans == "changes" and loss.needs.spans and loss.needs.rejected
        self.encoding: dict[str, Any] = {
            "tokenizer": self.tokenizer,
            "max_length": min(config.max_length, model.config.max_position_embeddings),
            "overlength": config.overlength,
            "slots": ImageSlots(*model.image_slots, self.processor) if self.processor else None,
            "corrupted": loss.needs.corrupted_answers,
            "fields": loss.needs.fields,
        }

    def read(self, path: str) -> tuple[list[EncodedPair], EncodeReport]:
        """All pairs of a file."""
        records = read_preferences(path, require_rejected=self.needs.rejected, fields=self.needs.fields)
        records = self._prepare(records, path)
        pairs, report = encode_pairs(records, drop_spanless=self.needs.spans, **self.encoding)
        for pair in pairs:
            self._check_ids(pair)
        return pairs, report

    def stream(self, path: str) -> tuple[StreamedPairs, EncodeReport]:
        """The pairs of a file, read when they are asked for; the report is of the sample."""
        encoder, sampled = PairEncoder(**self.encoding), False

        def encode(record: Preference) -> EncodedPair | None:
            if sampled:
                encoder.report = EncodeReport()  # one of all steps would grow with them
            (record,) = self._prepare([record], path)
            if self.by_changes and not record.has_spans:
                encoder.report.spanless.append(record.id)
            elif (pair := encoder(record)) is not None:
                self._check_ids(pair)
                return pair
            return None

        drop_spanless = self.needs.spans and not self.by_changes
        pairs = read_streamed(path, encode, self.needs.rejected, self.needs.fields, drop_spanless)
        report, sampled = encoder.report, True
        report.kept = len(pairs.sample)
        return pairs, report

    def _prepare(self, records: list[Preference], path: str) -> list[Preference]:
        """The records with what the loss reads: rejected answers, spans, and images, which are looked for."""
        if not self.needs.rejected:
            records = [replace(record, rejected=None) for record in records]
        if self.by_changes:
            sides = [mark_changes(p.chosen.text, p.rejected.text if p.rejected else "") for p in records]
            records = [replace(p, chosen=a, rejected=b) for p, (a, b) in zip(records, sides, strict=True)]
        return find_images(records, path, self.config.images_anywhere, self.needs.corrupted_image)

    def _check_ids(self, pair: EncodedPair) -> None:
        largest = max(pair.prompt + pair.chosen + pair.rejected)
        if largest >= self.vocabulary:
            raise InputError(
                f"the tokenizer gives id {largest}, the model knows {self.vocabulary}: they do not belong together"
            )


def _shorten(text: str) -> str:
    left_out = len(text) - sum(SHOWN)
    return text if left_out <= 0 else f"{text[: SHOWN[0]]}\n[... {left_out} characters ...]\n{text[-SHOWN[1] :]}"


def warn_of_missing(pairs: Sequence[EncodedPair], loss: Loss, path: str) -> None:
    """Warns if no pair has the spans or the corrupted images that a term of the loss uses."""
    if loss.needs.spans and all(pair.chosen_span is None for pair in pairs):
        missing = "marks a span: every token carries the reward (--spans changes marks where two answers differ)"
        print(f"warning: no record of {path} {missing}", file=sys.stderr)
    if loss.needs.corrupted_image and all(pair.twin is None for pair in pairs):
        missing = "has corrupted_images: the image term is left out (generate_prefs.py corrupt adds them)"
        print(f"warning: no record of {path} {missing}", file=sys.stderr)


def warn_of_vision(model: CausalLM, loss: Loss) -> None:
    """Warns if a run of FiRe-MPO trains more than the language model, as its authors do not."""
    language = {id(p) for part in (model.decoder, getattr(model, "lm_head", model.decoder)) for p in part.parameters()}
    outside = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in language]
    if outside and loss.function is fire_loss:
        parts = ", ".join(sorted({name.removeprefix("model.").partition(".")[0] for name in outside}))
        print(
            f"warning: this run trains {parts}: the paper of FiRe-MPO adapts the language model alone and freezes the "
            "rest (--lora-targets all-linear, without --full)",
            file=sys.stderr,
        )


def compile_and_shape(
    config: TrainConfig, networks: Sequence[CausalLM], data: Data, order: PairOrder
) -> dict[str, int]:
    """Compiles the decoder blocks of ``networks``, if that is wanted; returns the shape of all batches of the run.

    networks: the model, and the reference where it is a model of its own. Where blocks are compiled, and on CUDA, every
    batch is a single row of tokens, so that only its length varies.
    """
    on_cuda = networks[0].head_weight.device.type == "cuda"
    compiled = on_cuda and not config.shard if config.compile is None else config.compile
    if compiled:
        for network in networks:
            network.compile_blocks()
    pairs: Sequence[EncodedPair] = data.pairs
    if isinstance(data.pairs, StreamedPairs):
        pairs, order = data.pairs.sample, PairOrder(len(data.pairs.sample), config.seed)
    return batch_shape(pairs, order, config.batch_size, compiled or on_cuda, None if on_cuda else SPLIT_FROM)

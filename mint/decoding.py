"""The flags by which commands load a model and decode, and what they come to."""

from __future__ import annotations

import argparse

from torch import nn

from mint.command import choose_device
from mint.data.chat import ChatTokenizer, load_tokenizer
from mint.data.pair_images import ImageReader
from mint.errors import InputError
from mint.image_features import processor_of
from mint.models import load_language_model
from mint.models.lora import load_adapter, merge_lora


def add_decoding_options(
    parser, temperature: float, top_p: float, top_k: int, max_new_tokens: int, batch_size: int
) -> None:
    """How a model is loaded and decoded; the defaults are the task's. Read by :func:`load` and :func:`sampling`."""
    parser.add_argument("--temperature", type=float, default=temperature, help="of --decode sample, as the next two")
    parser.add_argument("--sample-top-p", type=float, default=top_p)
    parser.add_argument("--sample-top-k", type=int, default=top_k)
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--seed", type=int, default=0)
    add_loading_options(parser)


def add_loading_options(parser) -> None:
    """Where and how a model is loaded. Read by :func:`load_merged`."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--chat-date", default="26 Jul 2024", help="today's date in chat templates that print one")


def add_image_options(parser) -> None:
    """How images are read. For the commands that load a vision-language model."""
    parser.add_argument("--max-pixels", type=int, metavar="N", help="most pixels of an image after resizing (Qwen-VL)")


def load(args: argparse.Namespace) -> tuple[nn.Module, ChatTokenizer]:
    """The model with its adapter merged, and its tokenizer."""
    return load_merged(args, args.model, args.adapter)


def load_merged(args: argparse.Namespace, name: str, adapter: str | None = None) -> tuple[nn.Module, ChatTokenizer]:
    """Another model, on the same device."""
    device, dtype = choose_device(args.device, args.dtype)
    model = load_language_model(name, dtype=dtype, device=device)
    if adapter:
        merge_lora(load_adapter(model, adapter), drop=True)
    return model, load_tokenizer(model.source_dir, chat_date=args.chat_date)


def sampling(args: argparse.Namespace) -> dict:
    """What :func:`mint.models.generate.generate` is to be told."""
    settings = {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size, "seed": args.seed}
    if args.decode == "sample":
        settings |= {"temperature": args.temperature, "top_p": args.sample_top_p, "top_k": args.sample_top_k}
    return settings


def load_with_eyes(args: argparse.Namespace) -> tuple[nn.Module, ChatTokenizer, ImageReader]:
    """:func:`load` for models that read images, and what reads their files."""
    model, tokenizer = load(args)
    if model.tower is None:
        raise InputError(f"{args.model} reads no images")
    return model, tokenizer, ImageReader(processor_of(model, args.max_pixels))

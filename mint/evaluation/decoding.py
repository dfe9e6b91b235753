"""Options for loading and decoding models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mint.cli import RANGES, choose_device
from mint.data.chat import ChatTokenizer, load_tokenizer
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.record_images import ImageSlots, encode_with_images
from mint.errors import InputError
from mint.files import read_json
from mint.hub import TOKENIZER_FILES, resolve_dir
from mint.models import load_language_model
from mint.models.generate import Prompt, generate
from mint.models.llama import CausalLM
from mint.models.lora import load_adapter, settle_lora
from mint.ranges import check_number

Loaded = tuple[CausalLM, ChatTokenizer]
LoadedVision = tuple[CausalLM, ChatTokenizer, ImageReader]
GENERATION_CONFIG = "generation_config.json"
# Its fields that are applied: the flag's name here, and transformers' default; without one the flag keeps its own.
APPLIED = {
    "temperature": ("temperature", 1.0),
    "top_p": ("sample_top_p", 1.0),
    "top_k": ("sample_top_k", 50),
    "repetition_penalty": ("repetition_penalty", 1.0),
    "max_new_tokens": ("max_new_tokens", None),
}
# Fields that the tokenizer reads, or that do not change an answer.
ELSEWHERE = {"do_sample", "eos_token_id", "bos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}


class _Given(argparse.Action):
    """Stores the value, and in ``args.given`` that the flag was on the command line."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values)
        namespace.given = [*getattr(namespace, "given", []), self.dest]


def add_decoding_options(
    parser,
    temperature: float,
    top_p: float,
    top_k: int,
    max_new_tokens: int,
    batch_size: int,
    ways: Sequence[str] = ("greedy", "sample"),
    ways_help: str = "greedy takes the likeliest token each time, sample draws (default greedy)",
) -> None:
    """Flags for loading a model and decoding; the defaults are the task's. Read by :func:`settle_decoding`,
    :func:`load` and :func:`sampling`.

    ways: the choices of ``--decode``; the first is the default.
    """
    add = parser.add_argument
    add("--decode", choices=ways, default=ways[0], action=_Given, help=ways_help)
    for flag, kind, default, text in (
        ("--temperature", float, temperature, "of --decode sample, as the next two"),
        ("--sample-top-p", float, top_p, "the smallest set of tokens with this share of the probability"),
        ("--sample-top-k", int, top_k, "the likeliest tokens; 0: all"),
        ("--repetition-penalty", float, 1.0, "above 1: makes tokens of the prompt and the answer so far less likely"),
        ("--max-new-tokens", int, max_new_tokens, "length of an answer"),
    ):
        add(flag, type=kind, default=default, action=_Given, help=f"{text} (default {default})")
    add(
        "--generation-config",
        action="store_true",
        help=f"decode as the model's {GENERATION_CONFIG} says, and sample with transformers' defaults where it is "
        "silent; flags on the command line win",
    )
    add("--batch-size", type=int, default=batch_size)
    add("--seed", type=int, default=0)
    add_loading_options(parser)


def add_loading_options(parser) -> None:
    """Where and how a model is loaded. Read by :func:`load_adapted`."""
    add = parser.add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    add("--chat-date", default="26 Jul 2024", help="today's date in chat templates that print one")


def add_image_options(parser) -> None:
    """How images are read. For the commands that load a vision-language model."""
    parser.add_argument("--max-pixels", type=int, metavar="N", help="most pixels of an image after resizing (Qwen-VL)")


def load(args: argparse.Namespace) -> Loaded:
    """The model with its adapter merged, and its tokenizer."""
    return load_adapted(args, args.model, args.adapter)


def settle_decoding(args: argparse.Namespace) -> None:
    """Applies ``--generation-config`` to ``args``, before anything depends on the decoding flags.

    Raises InputError as :func:`apply_generation_config`, and for a model that does not exist.
    """
    given = vars(args).pop("given", [])
    if args.generation_config and args.model:
        print(apply_generation_config(args, given, resolve_dir(args.model, TOKENIZER_FILES)))


def apply_generation_config(args: argparse.Namespace, given: Sequence[str], folder: Path) -> str:
    """Sets the decoding flags in ``args``, all but those in ``given``, to what ``generation_config.json`` says.

    Fields of sampling that it does not name get transformers' defaults. Returns a line on the flags as they are now and
    the fields that are not applied. Raises InputError if the file is missing, or a field is not of the flag's type.
    """
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        raise InputError(f"--generation-config: {folder} has no {GENERATION_CONFIG}")
    content = {name: value for name, value in read_json(path).items() if value is not None}
    if "decode" not in given:
        args.decode = "sample" if content.get("do_sample") else "greedy"
    for name, (flag, default) in APPLIED.items():
        value = content.get(name, default)
        if value is None or flag in given:
            continue
        whole = isinstance(getattr(args, flag), int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise InputError(f"{path}: {name} is {value!r}, not {'a whole' if whole else 'a'} number")
        check_number(f"{path}: {name}", value, RANGES[flag])
        setattr(args, flag, value)
    flags = ["decode", *(flag for flag, _ in APPLIED.values())]
    settings = " ".join(f"--{flag.replace('_', '-')} {getattr(args, flag)}" for flag in flags)
    ignored = [f"{name} {value}" for name, value in content.items() if name not in ELSEWHERE and name not in APPLIED]
    return f"{GENERATION_CONFIG}: {settings}; ignored: {', '.join(ignored) or 'nothing'}"


def load_adapted(
    args: argparse.Namespace, name: str, adapter: str | None = None, template: str | None = None
) -> Loaded:
    """Another model, on the same device. template: a chat template that replaces the model's own."""
    device, dtype = choose_device(args.device, args.dtype)
    model = load_language_model(name, dtype=dtype, device=device)
    if adapter:
        settle_lora(load_adapter(model, adapter))
    return model, load_tokenizer(model.source_dir, args.chat_date, template)


def sampling(args: argparse.Namespace) -> dict:
    """Keyword arguments for :func:`mint.models.generate.generate`."""
    settings = {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size, "seed": args.seed}
    settings["repetition_penalty"] = args.repetition_penalty
    if args.decode == "sample":
        settings |= {"temperature": args.temperature, "top_p": args.sample_top_p, "top_k": args.sample_top_k}
    return settings


def load_vision_model(args: argparse.Namespace) -> LoadedVision:
    """:func:`load` for models that read images, and what reads their files."""
    model, tokenizer = load(args)
    if model.tower is None:
        raise InputError(f"{args.model} reads no images")
    return model, tokenizer, ImageReader(load_processor(model.source_dir, args.max_pixels))


def answer_prompts(
    loaded: Loaded | LoadedVision, prompts: Sequence[list[dict]], files: Sequence[Sequence[str]] = (), **decoding
) -> list[str]:
    """A model's answer to every prompt. loaded: model, tokenizer and, for prompts with images, their reader.

    files: the images of each prompt. decoding: as for :func:`mint.models.generate.generate`.
    """
    model, tokenizer, *reader = loaded
    asked: Sequence[Prompt] = prompts
    if reader:
        slots = ImageSlots(*model.image_slots, reader[0].processor)
        asked = [
            encode_with_images(tokenizer, messages, some, slots) for messages, some in zip(prompts, files, strict=True)
        ]
        decoding["images"] = lambda places: reader[0]([file for place in places for file in files[place]])
    return generate(model, tokenizer, asked, progress=True, **decoding)

"""Merge a LoRA adapter into its model: a directory that loads without adapter support.

    python -m mint.merge --model DIR|ID --adapter DIR --out DIR

W + s B A is computed in float32 and rounded to the dtype of the model's files, or kept with ``--dtype float32``: twice
the size of bfloat16, but no rounding, which is as large as a small update. Tokenizer, processor and configuration
files are copied.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mint.cli import Parser, guard
from mint.files import check_paths, check_unused


def merge(model: str | Path, adapter: str | Path, out: str | Path, dtype: str = "auto") -> Path:
    """Writes ``model`` (a directory or hub id) with the PEFT adapter in ``adapter`` merged; returns ``out``.

    dtype: ``auto`` (that of the model's files), ``float32`` or ``bfloat16``. Raises InputError if ``out`` exists, and
    for models and adapters that do not load or do not belong together.
    """
    import torch

    from mint.hub import MODEL_FILES, resolve_dir
    from mint.models import load_model, save_model
    from mint.models.checkpoint import stored_tensors
    from mint.models.lora import load_adapter, lora_layers, merge_lora

    check_unused(out)
    stored = (read() for _, _, read in stored_tensors(resolve_dir(model, MODEL_FILES), model))
    of_files = next(tensor.dtype for tensor in stored if tensor.is_floating_point())
    loaded = load_model(model, dtype=of_files if dtype == "auto" else getattr(torch, dtype))
    load_adapter(loaded, adapter)
    layers = len(lora_layers(loaded))
    save_model(merge_lora(loaded, drop=True), out)
    print(f"{model} with the adapter of {layers} layers in {adapter} merged, saved in {out}")
    return Path(out)


def run(args) -> None:
    """Checks the paths, then merges."""
    check_paths(args)
    merge(args.model, args.adapter, args.out, args.dtype)


def make_parser() -> Parser:
    """The command line of ``python -m mint.merge``."""
    parser = Parser(prog="python -m mint.merge", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, metavar="DIR|ID", help="the model that the adapter was trained on")
    parser.add_argument("--adapter", required=True, metavar="DIR", help="a PEFT LoRA adapter")
    parser.add_argument("--out", required=True, metavar="DIR", help="the new model directory")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="default auto: that of the model's files",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return guard(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

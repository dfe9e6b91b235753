"""Pickled checkpoints, and LLaVA's own file form, as a directory of safetensors that everything else reads.

    python -m mint.convert vinid/plip --out plip
    python -m mint.convert teacher.pt --config dandelin/vilt-b32-mlm --labels disease_dict.json --out gestaltmml
    python -m mint.convert microsoft/llava-med-v1.5-mistral-7b --out llava-med \
        --tower openai/clip-vit-large-patch14-336 --tokenizer mistralai/Mistral-7B-Instruct-v0.2

Code in a pickle is never run. Tensors get the names that the models use now and are written one file at a time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from mint.cli import Parser, guard
from mint.errors import InputError
from mint.files import check_unused, check_writable, folder_aside, read_json
from mint.hub import SETTINGS_FILES, resolve_dir
from mint.models.checkpoint import Stored, build_model, copy_companions, placed_tensors, write_shards
from mint.models.llava import OWN_FORMS
from mint.models.llava_med import convert_form
from mint.models.pickled import Source, find_source
from mint.models.vilt import HEADS, Vilt, label_settings


def convert(
    source: str | Path,
    out: str | Path,
    config: str | None = None,
    labels: str | Path | None = None,
    tower: str | None = None,
    tokenizer: str | None = None,
) -> Path:
    """Writes the model in ``source`` (a file, directory or hub id) to the new directory ``out``; returns its path.

    config: the directory or hub id with the ``config.json`` and tokenizer of the weights, where ``source`` has none.
    labels: a JSON file with the classes of a classifier, a list or {"0": name, ...}. tower, tokenizer: for LLaVA's own
    form, see :func:`mint.models.llava_med.convert_form`.
    Raises InputError if ``out`` exists, for files that cannot be read or hold code, and for tensors that are missing,
    too many, or of another shape than ``config.json`` says. ``out`` appears only once it is complete.
    """
    out = Path(out)
    check_unused(out)
    check_writable("--out", out, folder=True)
    found = find_source(source)
    settings = resolve_dir(config, SETTINGS_FILES) if config else found.folder
    if not (settings / "config.json").is_file():
        raise InputError(f"{settings} has no config.json: name a directory or hub id of the same model (--config)")
    raw = read_json(settings / "config.json")
    if labels and raw.get("model_type") != "vilt":
        raise InputError("--labels names the classes of a ViLT (model_type vilt)")
    if raw.get("model_type") in OWN_FORMS:
        raw, companions, tensors = convert_form(found, raw, tower, tokenizer, print)
        copied = []
    elif tower or tokenizer:
        raise InputError(f"--tower and --tokenizer are for LLaVA's own form (model_type {', '.join(OWN_FORMS)}) alone")
    elif not found.pickles:
        raise InputError(f"{source} holds safetensors already: use it as it is")
    else:
        raw, companions = {**raw, **read_labels(labels)}, {}
        tensors = renamed_tensors(found, raw)
        copied = [settings] if Path(source).is_file() else [settings, found.folder]
    with folder_aside(out) as aside:
        for place in copied:
            copy_companions(place, aside)
        for name, content in {"config.json": raw, **companions}.items():
            (aside / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        count = write_shards(tensors, aside)
    print(f"{count} tensors of {source}, saved in {out}")
    return out


def read_labels(path: str | Path | None) -> dict:
    """The settings that name a classifier's classes; none without a file. Raises InputError for other content."""
    if path is None:
        return {}
    if not Path(path).is_file():
        raise InputError(f"--labels {path} is not a file")
    content = read_json(Path(path), kind=(dict, list))
    try:
        names = content if isinstance(content, list) else [content[str(i)] for i in range(len(content))]
    except (KeyError, TypeError):
        raise InputError(f'{path} must hold a list of names, or {{"0": name, "1": name, ...}} without gaps') from None
    return label_settings(names)


def renamed_tensors(source: Source, raw: dict) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors under its own names. A ViLT whose ``config.json`` names no classes is read without a head."""
    model = build_model(raw, source.name)
    stored = source.tensors(model)
    skip: tuple[str, ...] = ()
    if isinstance(model, Vilt) and not raw.get("id2label"):
        stored, skip = _without_classifier(stored), HEADS
    return placed_tensors(model, stored, source.name, skip)


def _without_classifier(stored: Iterable[Stored]) -> Iterator[Stored]:
    for path, name, read in stored:
        if name.startswith("classifier."):
            raise InputError(f"{path} has a classifier, whose classes config.json does not name: give --labels FILE")
        yield path, name, read


def make_parser() -> Parser:
    """The command line of ``python -m mint.convert``."""
    parser = Parser(prog="python -m mint.convert", description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="SOURCE", help="a .bin or .pt file, a directory, or a hub id")
    parser.add_argument("--out", required=True, metavar="DIR", help="the new model directory")
    parser.add_argument("--config", metavar="DIR|ID", help="whose config.json and tokenizer the weights belong to")
    parser.add_argument("--labels", metavar="FILE.json", help="the classes of a ViLT, where config.json names none")
    own = parser.add_argument_group("for LLaVA's own form")
    own.add_argument("--tower", metavar="DIR|ID", help="the CLIP: its weights, or a comparison with the source's own")
    own.add_argument("--tokenizer", metavar="DIR|ID", help="where the source has no tokenizer.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return guard(lambda: convert(**vars(args)))


if __name__ == "__main__":
    sys.exit(main())

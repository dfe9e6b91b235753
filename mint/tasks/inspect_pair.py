"""HTML report on a pair: its answers token by token, images with the lesion outlined, and the terms of the loss."""

from __future__ import annotations

import argparse
import inspect as python
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mint.cli import choose_device
from mint.config import TrainConfig
from mint.data.batch import CHOSEN, REJECTED, collate
from mint.data.chat import ChatTokenizer, load_tokenizer
from mint.data.encode import encode_pairs
from mint.data.image_features import ImageReader
from mint.data.image_files import open_image
from mint.data.images import processor_of
from mint.data.preferences import Preference, read_preferences
from mint.data.record_images import ImageSlots, find_images
from mint.data.spans import mark_changes
from mint.errors import InputError
from mint.evaluation.charts import heat, heat_scale
from mint.evaluation.decoding import add_image_options, add_loading_options
from mint.evaluation.folder import default_folder
from mint.evaluation.html import Html, details, embed_image, html_page, html_table, tag
from mint.files import check_paths, check_unused, make_folder, write_aside
from mint.flags import parse
from mint.losses import AnswerStats, Loss, LossOutput, Needs, load_loss
from mint.models import load_language_model
from mint.models.llama import CausalLM
from mint.models.lora import load_adapter
from mint.objective import answer_stats, predicted_stats, preference_loss
from mint.prefs.corrupt import grow, record_mask
from mint.tasks.attention_on_lesion import attention_map, encode_plain, overlay, seen_mask, token_grid

EVERYTHING = Needs(reference=True, kl_forward=True, kl_reverse=True, kl_over="all", corrupted_image=True)
LOSS_FLAGS = ("beta", "alpha", "gamma", "lam")  # of inspect
WIDEST = 420  # pixels of the images
# Ends of the colour scales, the same on every page: log-ratios and divergences in nats, attention over that under the
# generic question.
LOG_RATIO, DIVERGENCE, ATTENTION = 3.0, 1.0, 3.0
OUTLINE = ((0, 0, 0), (255, 214, 0))  # outer and inner line around the lesion


@dataclass(frozen=True)
class Inspection:
    """One pair's numbers. sides: chosen, rejected, corrupted_chosen, corrupted_rejected, those there are, [1, L] each.

    pieces: the answers' texts by token. loss, output: as in training. pictures: (title, image) of the clean and the
    corrupted image, each followed by the attention on it where that can be told.
    """

    preference: Preference
    pieces: dict[str, list[str]]
    sides: dict[str, AnswerStats]
    loss: Loss
    output: LossOutput
    pictures: list[tuple[str, Image.Image]]

    @property
    def settings(self) -> dict:
        """The settings of the loss, defaults included."""
        parameters = python.signature(self.loss.function).parameters.values()
        plain = {p.name: p.default for p in parameters if isinstance(p.default, (bool, int, float, str))}
        return plain | self.loss.options

    @property
    def terms(self) -> dict[str, float]:
        """The terms of FiRe's loss with their weights, which sum to it; of another loss its value alone."""
        metrics, total, set_to = self.output.metrics, {"loss": float(self.output.loss)}, self.settings
        if "ranking_loss" not in metrics:
            return total
        terms = {"ranking": float(metrics["ranking_loss"])}
        if "visual_loss" in metrics:
            gamma = set_to["gamma"]
            terms[f"visual contrast x gamma {gamma:g}"] = gamma * float(metrics["visual_loss"])
        for direction, share in (("forward", set_to["lam"]), ("reverse", 1 - set_to["lam"])):
            if f"kl/{direction}" in metrics:
                weight = set_to["alpha"] * share
                terms[f"KL {direction} x {weight:g}"] = weight * float(metrics[f"kl/{direction}"])
        return terms | total


def loss_of_run(adapter: str | None, given: dict) -> tuple[Loss, str]:
    """(loss, spans) of the run whose directory or checkpoint holds ``adapter``; FiRe's loss for any other adapter.

    given: settings that win over the run's. Raises InputError as ``load_loss``, and for a damaged config.toml.
    """
    folder, config = Path(adapter or "none").resolve(), TrainConfig(loss="fire")
    run = folder.parents[2] if folder.parent.parent.name == "checkpoints" else folder.parent
    if adapter and (run / "metrics.jsonl").is_file() and (run / "config.toml").is_file():
        config = parse(TrainConfig, ["--config", str(run / "config.toml")], "")
    return load_loss(config.loss, config.loss_options() | given), config.spans


@torch.no_grad()
def inspect(
    model: CausalLM,
    tokenizer: ChatTokenizer,
    reader: ImageReader | None,
    preference: Preference,
    loss: Loss,
    root: Path,
    max_length: int = 4096,
) -> Inspection:
    """The numbers of a record (its images with whole paths) under the model, against the model without its adapter.

    root: the folder of the record's file, which its mask is relative to. Raises InputError if the record does not fit
    into the model.
    """
    slots = ImageSlots(*model.image_slots, reader.processor) if reader else None
    corrupted = ("chosen", "rejected") if preference.corrupted_images else ()
    (pair,), _ = encode_pairs(
        [preference], tokenizer, max_length, "error", slots=slots, corrupted=corrupted, fields=loss.needs.fields
    )
    batch = collate([pair], prompt_targets=loss.requires("prompt"))
    if reader and batch.image_files:
        batch = replace(batch, images=reader(batch.image_files))
    batch = batch.to(model.head_weight.device)
    stats = predicted_stats(model.eval(), batch, EVERYTHING)
    sides = {"chosen": answer_stats(batch, stats, CHOSEN), "rejected": answer_stats(batch, stats, REJECTED)}
    if pair.twin is not None:
        sides["corrupted_chosen"] = answer_stats(batch, stats, CHOSEN, corrupted=True)
        sides["corrupted_rejected"] = answer_stats(batch, stats, REJECTED, corrupted=True)
    if not loss.needs.spans:
        sides = {name: replace(side, span=None) for name, side in sides.items()}
    chat = bool(preference.images) or not isinstance(preference.prompt, str)
    pieces = {
        side: _pieces(tokenizer, getattr(preference, side).text, len(getattr(pair, side)), chat)
        for side in ("chosen", "rejected")
    }
    pictures = _pictures(model, tokenizer, reader, preference, slots, max_length, root) if reader and slots else []
    return Inspection(preference, pieces, sides, loss, preference_loss(model, batch, loss), pictures)


def _pictures(
    model: CausalLM,
    tokenizer: ChatTokenizer,
    reader: ImageReader,
    preference: Preference,
    slots: ImageSlots,
    max_length: int,
    root: Path,
) -> list[tuple[str, Image.Image]]:
    """The clean and the corrupted images; of each first one the attention while the model answers the marked words."""
    found, mask = [], None
    for title, files in (("clean", preference.images), ("corrupted", preference.corrupted_images)):
        pictures = [open_image(file) for file in files]
        if title == "clean":
            mask = record_mask(preference, pictures[0].size, root)[0]
        elif mask is not None and files and pictures[0].size != mask.shape[::-1]:
            mask = None  # cropped, so that the place is not known
        found += [(title, _outline(picture, None if i else mask)) for i, picture in enumerate(pictures)]
        try:
            if files:
                same = replace(preference, images=files, corrupted_images=())
                pair, plain = encode_plain(same, tokenizer, slots, max_length)
                grid = token_grid(reader.processor, files[0], slots.of(files[0]))
                weights = attention_map(model, reader, pair, plain).reshape(grid)
                picture = overlay(files[0], reader.processor, np.clip((weights - 1) / (ATTENTION - 1), 0, 1))
                seen = mask if mask is None else seen_mask(mask, reader.processor, picture.size[::-1]) > 0.5
                found.append((f"attention, {title}", _outline(picture, seen)))
        except InputError:  # a model or processor whose attention is not followed back to the image
            continue
    return found


def _outline(picture: Image.Image, mask: np.ndarray | None) -> Image.Image:
    """The picture at ``WIDEST`` pixels with a line around the mask."""
    scale = WIDEST / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    picture = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    if mask is None:
        return picture
    inside = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    pixels = np.array(picture)
    for colour, width in zip(OUTLINE, (4, 2), strict=True):
        pixels[grow(inside, width) & ~inside] = colour
    return Image.fromarray(pixels)


def _pieces(tokenizer: ChatTokenizer, text: str, count: int, chat: bool) -> list[str]:
    """The characters of each token; what has none, as the end of the turn, is shown by a mark."""
    _, offsets = tokenizer.answer_offsets(text, chat=chat)
    pieces = [text[start:end] or "·" for start, end in offsets]
    return pieces + ["[end]"] * (count - len(pieces))


def page(found: Inspection) -> str:
    """The inspection as an HTML page."""
    record = found.preference
    question = record.prompt if isinstance(record.prompt, str) else record.prompt[-1]["content"]
    parts = [tag("h1", f"Pair {record.id}"), tag("p", question, class_="lead")]
    if found.pictures:
        figures = [
            tag("figure", embed_image(image, title, WIDEST), tag("figcaption", title), style=_share_of_row(image))
            for title, image in found.pictures
        ]
        parts.append(tag("div", *figures, class_="pictures"))
        if any(title.startswith("attention") for title, _ in found.pictures):
            legend = "Attention while answering, over that under a generic question"
            parts.append(heat_scale(legend, "1 or less", f"{ATTENTION:g} or more", "", "red"))
        if any(record.extra.get(field) for field in ("mask", "boxes", "polygons")):
            parts.append(tag("p", "Yellow line: where the record says the evidence is."))
    settings = ", ".join(f"{name} {value}" for name, value in found.settings.items())
    parts += [
        tag("h2", f"Loss: {found.loss.name}"),
        tag("p", settings or "no settings"),
        html_table(["term", "value"], [(name, f"{value:.5f}") for name, value in found.terms.items()]),
        details(
            "Metrics",
            html_table(["metric", "value"], [(n, f"{float(v):.5f}") for n, v in found.output.metrics.items()]),
        ),
        tag("h2", "Tokens"),
        tag(
            "p",
            "The number below a token is its value in nats, and its colour shows the same on a scale that is equal on "
            "all pages. Underlined: the words that the loss and the line's sum are over (all, where none is marked).",
        ),
        heat_scale("log pi - log ref", f"-{LOG_RATIO:g}", f"+{LOG_RATIO:g} nats", "red", "", "blue"),
        heat_scale("KL", "0", f"{DIVERGENCE:g} nats", "", "blue"),
    ]
    for name, side in found.sides.items():
        pieces = found.pieces[name.removeprefix("corrupted_")]
        image = " under the corrupted image" if name.startswith("corrupted") else ""
        parts.append(tag("h2", f"{name.removeprefix('corrupted_').capitalize()}{image}"))
        parts.append(_line("log pi - log ref", pieces, side.log_ratio[0], side, LOG_RATIO))
        for title, values in (("KL(ref || pi)", side.kl_forward), ("KL(pi || ref)", side.kl_reverse)):
            if name == "chosen" and values is not None:
                counted = side if found.loss.needs.kl_over == "span" else replace(side, span=None)
                parts.append(_line(title, pieces, values[0], counted, DIVERGENCE))
    return html_page(f"Pair {record.id}", *parts)


def _share_of_row(image: Image.Image) -> str:
    """A style that gives pictures in a row the same height."""
    return f"flex: {image.width / image.height:.4f} 1 0"


def _line(title: str, pieces: list[str], values: Tensor, side: AnswerStats, top: float) -> Html:
    span, numbers, cells = side.span_or_all[0].tolist(), values.tolist()[: len(pieces)], []
    sign = "+" if top == LOG_RATIO else ""  # divergences have none
    for piece, value, marked in zip(pieces, numbers, span, strict=False):
        style = heat(abs(value) / top, "red" if value < 0 else "blue")
        number = tag("small", f"{value:{sign}.2f}")
        class_ = "token marked" if marked else "token"
        cells.append(tag("span", piece, number, style=style, class_=class_, title=f"{value:{sign}.4f}"))
    total = sum(value for value, marked in zip(numbers, span, strict=False) if marked)
    return tag("p", tag("small", f"{title}: sum {total:{sign}.4f} nats"), tag("br"), *cells)


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """The flags of ``evaluate.py inspect``."""
    add = parser.add_argument
    add("--model", required=True, metavar="DIR|ID")
    add("--adapter", metavar="DIR", help="PEFT adapter, against which the model alone is the reference")
    add("--data", required=True, metavar="FILE", help="pairs as for train.py")
    add("--row", type=int, default=1, help="which record of the file, from 1 (default 1)")
    for name in LOSS_FLAGS:
        add(f"--{name}", type=float, help="of the loss (default: of the adapter's run, or fire's)")
    add("--spans", choices=("tags", "changes"), help="as for train.py (default: as in the run, or tags)")
    add("--images-anywhere", action="store_true", help="let the records name images outside their folder")
    add_loading_options(parser)
    add_image_options(parser)
    add("--out", metavar="FILE.html", help="default runs/eval/inspect-MODEL-ADAPTER-DATA-ROW.html")
    parser.set_defaults(run=run_inspect)


def run_inspect(args: argparse.Namespace) -> None:
    """Computes the pair's numbers and writes the page."""
    check_paths(args)
    out = Path(args.out or f"{default_folder('inspect', args.model, args.adapter, args.data, str(args.row))}.html")
    check_unused(out)
    preferences = read_preferences(args.data)
    if not 1 <= args.row <= len(preferences):
        raise InputError(f"--row {args.row}: {args.data} has {len(preferences)} records")
    preference = preferences[args.row - 1]
    given = {name: getattr(args, name) for name in LOSS_FLAGS if getattr(args, name) is not None}
    loss, spans = loss_of_run(args.adapter, given)
    if (args.spans or spans) == "changes":
        chosen, rejected = mark_changes(preference.chosen.text, preference.rejected.text)
        preference = replace(preference, chosen=chosen, rejected=rejected)
    (preference,) = find_images([preference], args.data, args.images_anywhere, corrupted=True)
    device, dtype = choose_device(args.device, args.dtype)
    model = load_language_model(args.model, dtype=dtype, device=device)
    if args.adapter:
        load_adapter(model, args.adapter)
    tokenizer = load_tokenizer(model.source_dir, chat_date=args.chat_date)
    processor = processor_of(model, args.max_pixels)
    reader = ImageReader(processor) if processor else None
    found = inspect(model, tokenizer, reader, preference, loss, Path(args.data).resolve().parent)
    make_folder(out.parent)
    write_aside(out, page(found))
    print(", ".join(f"{name} {value:.5f}" for name, value in found.terms.items()))
    print(f"saved in {out}")

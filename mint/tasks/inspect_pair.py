"""HTML report on a pair: its answers token by token, the images, and the terms of FiRe's loss."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from mint.data.batch import CHOSEN, REJECTED, collate, encode_pairs
from mint.data.image_features import ImageReader
from mint.data.preferences import Preference
from mint.data.record_images import ImageSlots
from mint.errors import InputError
from mint.evaluation.html import embed_image, embed_picture, html_page, html_table, number_cell, text_cell
from mint.losses import AnswerStats, Loss, Needs, load_loss
from mint.objective import answer_stats, predicted_stats
from mint.tasks.attention_on_lesion import attention_map, encode_plain, overlay, token_grid

EVERYTHING = Needs(reference=True, kl_forward=True, kl_reverse=True, kl_over="all", corrupted_image=True)
SIDES = ("chosen", "rejected", "corrupted_chosen", "corrupted_rejected")
STYLE = "display:inline-block; padding:.1rem .15rem; margin:.08rem; border-radius:3px; white-space:pre;"
WIDEST = 420  # pixels of the images


@dataclass(frozen=True)
class Inspection:
    """One pair's numbers. sides: of SIDES, those there are, [1, L] each. pieces: the answers' texts by token.

    looks: of the clean and the corrupted image, what the model sees and where it looks; empty where that cannot be told.
    """

    preference: Preference
    pieces: dict[str, list[str]]
    sides: dict[str, AnswerStats]
    terms: dict[str, float]
    looks: dict[str, Image.Image] = field(default_factory=dict)


@torch.no_grad()
def inspect(
    model: nn.Module,
    tokenizer,
    reader: ImageReader | None,
    preference: Preference,
    options: dict,
    max_length: int = 4096,
) -> Inspection:
    """The numbers of a record (its images with whole paths) under the model, against the model without its adapter.

    options: beta, alpha, gamma and lam of FiRe's loss. Raises InputError if the record does not fit into the model.
    """
    loss = load_loss("fire", options)
    slots = ImageSlots(*model.image_slots, reader.processor) if reader else None
    corrupted = ("chosen", "rejected") if preference.corrupted_images else ()
    (pair,), _ = encode_pairs([preference], tokenizer, max_length, "error", slots=slots, corrupted=corrupted)
    batch = collate([pair])
    if batch.image_files:
        batch = replace(batch, images=reader(batch.image_files))
    batch = batch.to(model.head_weight.device)
    stats = predicted_stats(model.eval(), batch, Loss("inspect", lambda **_: None, EVERYTHING, {}))
    sides = {"chosen": answer_stats(batch, stats, CHOSEN), "rejected": answer_stats(batch, stats, REJECTED)}
    if pair.twin is not None:
        sides["corrupted_chosen"] = answer_stats(batch, stats, CHOSEN, corrupted=True)
        sides["corrupted_rejected"] = answer_stats(batch, stats, REJECTED, corrupted=True)
    chat = bool(preference.images) or not isinstance(preference.prompt, str)
    pieces = {
        side: _pieces(tokenizer, getattr(preference, side).text, len(getattr(pair, side)), chat)
        for side in ("chosen", "rejected")
    }
    looks = _looks(model, tokenizer, reader, preference, slots, max_length) if reader else {}
    return Inspection(preference, pieces, sides, _terms(loss, sides), looks)


def _looks(
    model: nn.Module, tokenizer, reader: ImageReader, preference: Preference, slots: ImageSlots, max_length: int
) -> dict[str, Image.Image]:
    """Where the model looks for the chosen answer's marked words, on the first clean and corrupted image."""
    found = {}
    for title, files in (("clean", preference.images), ("corrupted", preference.corrupted_images)):
        if not files:
            continue
        try:
            pair, plain = encode_plain(
                replace(preference, images=files, corrupted_images=()), tokenizer, slots, max_length
            )
            grid = token_grid(reader.processor, files[0], slots.of(files[0]))
            weights = attention_map(model, reader, pair, plain).reshape(grid)
            found[f"attention, {title}"] = overlay(files[0], reader.processor, weights)
        except InputError:  # a model or processor whose attention is not followed back to the image
            return {}
    return found


def _pieces(tokenizer, text: str, count: int, chat: bool) -> list[str]:
    """The characters of each token; what has none, as the end of the turn, is shown by a mark."""
    _, offsets = tokenizer.answer_offsets(text, chat=chat)
    pieces = [text[start:end] or "·" for start, end in offsets]
    return pieces + ["[end]"] * (count - len(pieces))


def _terms(loss: Loss, sides: dict[str, AnswerStats]) -> dict[str, float]:
    """The terms of the loss with their weights, which sum to it."""
    settings, output = loss.options, loss(**sides)
    terms = {"ranking": float(output.metrics["ranking_loss"])}
    if "visual_loss" in output.metrics:
        terms[f"visual contrast x gamma {settings['gamma']:g}"] = settings["gamma"] * float(
            output.metrics["visual_loss"]
        )
    weights = {"forward": settings["alpha"] * settings["lam"], "reverse": settings["alpha"] * (1 - settings["lam"])}
    for direction, weight in weights.items():
        terms[f"KL {direction} x {weight:g}"] = weight * float(output.metrics[f"kl/{direction}"])
    return {**terms, "loss": float(output.loss)}


def page(found: Inspection) -> str:
    """The inspection as an HTML page that needs no network."""
    record = found.preference
    question = record.prompt if isinstance(record.prompt, str) else record.prompt[-1]["content"]
    pictures = [
        f"<figure>{embed_picture(Path(name), title, WIDEST)}<figcaption>{escape(title)}</figcaption></figure>"
        for names, title in ((record.images, "clean"), (record.corrupted_images, "corrupted"))
        for name in names
    ]
    pictures += [
        f"<figure>{embed_image(image, title, WIDEST)}<figcaption>{escape(title)}</figcaption></figure>"
        for title, image in found.looks.items()
    ]
    parts = [
        f"<h1>{escape(record.id)}</h1>",
        f"<p>{escape(question)}</p>",
        f'<div class="case figure">{"".join(pictures)}</div>' if pictures else "",
        "<h2>Terms of the loss</h2>",
        html_table(
            ["", "nats"], [[text_cell(name), number_cell(f"{value:.5f}")] for name, value in found.terms.items()]
        ),
        "<p>Token by token: log pi - log ref (green: more likely than under the reference, red: less), and on the chosen "
        "answer the divergence from the reference in both directions (blue). Underlined: the words that carry the reward; "
        "the number is the sum over them.</p>",
    ]
    for name, side in found.sides.items():
        pieces = found.pieces[name.removeprefix("corrupted_")]
        image = " under the corrupted image" if name.startswith("corrupted") else ""
        parts.append(f"<h2>{name.removeprefix('corrupted_').capitalize()}{image}</h2>")
        parts.append(_line("log pi - log ref", pieces, side.log_ratio[0], side, signed=True))
        if name == "chosen":
            parts.append(_line("KL(ref || pi)", pieces, side.kl_forward[0], side, signed=False))
            parts.append(_line("KL(pi || ref)", pieces, side.kl_reverse[0], side, signed=False))
    return html_page(f"Pair {record.id}", "\n".join(parts))


def _line(title: str, pieces: list[str], values: Tensor, side: AnswerStats, signed: bool) -> str:
    span = side.span_or_all[0].tolist()
    numbers = values.tolist()[: len(pieces)]
    largest = max((abs(value) for value in numbers), default=0.0) or 1.0
    cells = []
    for piece, value, marked in zip(pieces, numbers, span, strict=False):
        strength = min(1.0, abs(value) / largest)
        hue = "58, 154, 95" if signed and value >= 0 else "181, 67, 63" if signed else "47, 109, 179"
        line = "border-bottom:2px solid #1c2430;" if marked else ""
        style = f"{STYLE}{line}background:rgba({hue},{0.75 * strength:.2f})"
        cells.append(f'<span style="{style}" title="{value:+.4f}">{escape(piece)}</span>')
    total = sum(value for value, marked in zip(numbers, span, strict=False) if marked)
    return f"<p><small>{escape(title)}: {total:+.4f}</small><br>{''.join(cells)}</p>"

"""Attention to the lesion while a model answers.

The attention of the positions that predict an answer's marked words to the image tokens, averaged over heads and
layers, is divided by the attention under a generic question, so that what every question attends to cancels. The same
is measured in each layer, and there for the last prompt token too, as VGMED does (the metric of arXiv 2606.12590).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mint.data.batch import EncodedPair
from mint.data.chat import ChatTokenizer
from mint.data.encode import encode_pairs
from mint.data.image_features import ImageReader
from mint.data.image_files import image_size, open_image
from mint.data.images import Processor
from mint.data.preferences import Preference
from mint.data.processors.clip import ClipImageProcessor
from mint.data.processors.qwen_vl import QwenVLImageProcessor
from mint.data.record_images import ImageSlots
from mint.errors import FileProblems, InputError
from mint.evaluation.decoding import load_vision_model
from mint.evaluation.folder import EvaluationFolder
from mint.evaluation.scores import geometric_mean_score, mean_score
from mint.models.attention_maps import attention_to
from mint.models.llama import CausalLM
from mint.prefs.corrupt import record_mask
from mint.progress import Progress
from mint.tasks.attention_layers import EVEN, PANELS, QUERIES, layer_means, plot_layers
from mint.tasks.base import Result, groups_of
from mint.tasks.sensitivity import PairTask, contents

PLAIN = "Describe the image."
SMALL = 1e-8
SCORES = {  # score -> heading, unit, meaning
    "share": ("attention on the lesion", "%", "Share of the attention that falls on the lesion."),
    "area": ("area of the lesion", "%", "Share of the image that the lesion covers: the share of even attention."),
    "kl": ("KL (nats)", "nats", "KL divergence from the lesion, evenly spread, to the attention."),
    "js": ("JS (nats)", "nats", "Jensen-Shannon divergence between both; lower is closer to the lesion."),
}
RATIO = "Mean attention on the lesion over the mean elsewhere, a geometric mean; 1 is no preference."


def seen_part(picture: Image.Image, processor: Processor, resample: Image.Resampling) -> Image.Image:
    """What a processor keeps of a picture: all of it, or the middle.

    Raises InputError for a processor that pads, tiles or is none of a model with image tokens.
    """
    if isinstance(processor, QwenVLImageProcessor):
        return picture
    if not isinstance(processor, ClipImageProcessor):
        raise InputError(f"{type(processor).__name__} is not followed back to the image")
    picture = picture.resize(processor.seen_size(*picture.size), resample)
    if processor.crop is None:
        return picture
    height, width = processor.crop
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def seen_mask(mask: np.ndarray, processor: Processor, grid: tuple[int, int]) -> np.ndarray:
    """[rows, columns]: the share of each image token's part of the image that a mask [height, width] covers."""
    part = seen_part(Image.fromarray((mask * 255).astype(np.uint8)), processor, Image.Resampling.BOX)
    return np.asarray(part.resize(grid[::-1], Image.Resampling.BOX), dtype=float) / 255


def overlay(file: str, processor: Processor, heat: np.ndarray) -> Image.Image:
    """What the model sees of an image, reddened by ``heat`` [rows, columns] in 0 to 1."""
    part = seen_part(open_image(file).convert("RGB"), processor, Image.Resampling.BICUBIC)
    cover = Image.fromarray((255 * 0.7 * heat).astype(np.uint8)).resize(part.size, Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", part.size, (220, 40, 30)), part, cover)


def token_grid(processor: Processor, file: str, count: int) -> tuple[int, int]:
    """(rows, columns) of an image's ``count`` tokens. Raises InputError if they are no grid."""
    if isinstance(processor, QwenVLImageProcessor):
        rows, columns = processor.grid(*image_size(file))
        return rows // processor.merge, columns // processor.merge
    side = round(count**0.5)
    if side * side != count:
        raise InputError(f"the {count} tokens of an image are no square")
    return side, side


def compare_maps(attention: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Attention against the lesion, from maps [rows, columns] >= 0. mask: in 0 to 1, neither empty nor full.

    attention_ratio: mean attention on the lesion over the mean elsewhere. share: of the attention, on the lesion; area:
    of the grid. kl: from the lesion, spread evenly, to the attention; js: between both; in nats.
    """
    attention = attention / attention.sum()
    lesion = mask / mask.sum()
    inside, outside = (attention * mask).sum() / mask.sum(), (attention * (1 - mask)).sum() / (1 - mask).sum()
    middle = (attention + lesion) / 2
    return {
        "attention_ratio": float(max(inside, SMALL) / max(outside, SMALL)),
        "share": float((attention * mask).sum()),
        "area": float(mask.mean()),
        "kl": _kl(lesion, attention),
        "js": 0.5 * _kl(lesion, middle) + 0.5 * _kl(attention, middle),
    }


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    there = p > 0
    return float((p[there] * np.log(p[there] / np.maximum(q[there], SMALL))).sum())


def attention_map(model: CausalLM, reader: ImageReader, pair: EncodedPair, plain: EncodedPair) -> np.ndarray:
    """[image tokens of the first image]: ``mean`` of :func:`attention_maps`."""
    return attention_maps(model, reader, pair, plain)["mean"]


def attention_maps(
    model: CausalLM, reader: ImageReader, pair: EncodedPair, plain: EncodedPair
) -> dict[str, np.ndarray]:
    """Attention to the S image tokens of the first image, the mean over heads, over that under a generic question.

    ``prompt``: [layers, S], of the last prompt token. ``span``: [layers, S], the mean of the positions that predict the
    chosen answer's marked words, without marks all its words. ``mean``: [S], the same with attention averaged over
    layers first. plain: the same answer after the generic question.
    """
    own, other = _of_pair(model, reader, pair), _of_pair(model, reader, plain)
    return {name: own[name] / np.maximum(other[name], SMALL) for name in own}


def by_layer(maps: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """query -> metric -> [layers]: ``compare_maps`` in each layer; for ``EVEN`` of even attention, a single number.

    maps: of :func:`attention_maps`. mask: [rows, columns] as in :func:`compare_maps`.
    """
    rows = {query: [compare_maps(row.reshape(mask.shape), mask) for row in maps[query]] for query in QUERIES}
    rows[EVEN] = [compare_maps(np.ones_like(mask), mask)]
    return {query: {metric: [row[metric] for row in found] for metric in PANELS} for query, found in rows.items()}


def _of_pair(model: CausalLM, reader: ImageReader, pair: EncodedPair) -> dict[str, np.ndarray]:
    device, (token, _) = model.head_weight.device, model.image_slots
    tokens = torch.tensor([*pair.prompt, *pair.chosen], device=device)
    keys = (tokens == token).nonzero().flatten()
    count = len(keys) // len(pair.images)
    marked = [i for i, inside in enumerate(pair.chosen_span) if inside] if pair.chosen_span else []
    words = torch.tensor([0, *(marked or range(len(pair.chosen)))], device=device)  # the first: the last prompt token
    images = {name: value.to(device) for name, value in reader(pair.images).items()}
    attended = attention_to(model, tokens[None], words + len(pair.prompt) - 1, keys[:count], images)
    weights = attended.double().cpu().numpy()  # [layers, Q, S]
    span = weights[:, 1:].mean(1)
    return {"prompt": weights[:, 0], "span": span, "mean": span.mean(0)}


def encode_plain(
    preference: Preference, tokenizer: ChatTokenizer, slots: ImageSlots, limit: int
) -> tuple[EncodedPair, EncodedPair]:
    """(the record, the same answers after the prompt ``PLAIN``) as token ids.

    Raises InputError if it does not fit into the model.
    """
    plain = dataclasses.replace(preference, prompt=[{"role": "user", "content": PLAIN}])
    pairs = [encode_pairs([one], tokenizer, limit, "error", slots=slots)[0][0] for one in (preference, plain)]
    return pairs[0], pairs[1]


def look(
    model: CausalLM,
    tokenizer: ChatTokenizer,
    reader: ImageReader,
    preferences: Sequence[Preference],
    file: Path,
    max_length: int = 4096,
    known: Mapping[int, dict] | None = None,
    save: Callable[[dict[int, dict]], None] = lambda _: None,
) -> list[dict | None]:
    """The numbers of :func:`compare_maps` of every record, and as ``layers`` those of :func:`by_layer`; None for a
    record that does not say where its lesion is.

    preferences: with whole image paths (``find_images``); file: what their other names are relative to. save: called
    with the numbers of each record by place; known: such numbers from an earlier run. Raises FileProblems naming every
    record whose fields cannot be used, InputError if none has a lesion that the model sees.
    """
    root, slots, problems = file.resolve().parent, ImageSlots(*model.image_slots, reader.processor), []
    limit = min(max_length, model.config.max_position_embeddings)
    model.eval()
    found = dict(known or {})
    for place, preference in enumerate(Progress(preferences, desc="attention", unit="record")):
        if place in found or not preference.images:
            continue
        try:
            mask, _ = record_mask(preference, image_size(preference.images[0]), root)
        except InputError as error:
            problems.append(f"{file}:{preference.line}: {error}")
            continue
        if mask is None:
            continue
        pair, plain = encode_plain(preference, tokenizer, slots, limit)
        grid = token_grid(reader.processor, preference.images[0], slots.of(preference.images[0]))
        seen = seen_mask(mask, reader.processor, grid)
        if 0 < seen.sum() < seen.size:
            maps = attention_maps(model, reader, pair, plain)
            found[place] = compare_maps(maps["mean"].reshape(grid), seen) | {"layers": by_layer(maps, seen)}
            save({place: found[place]})
    if problems:
        raise FileProblems(file, problems)
    if not found:
        raise InputError(f"{file}: no record with images tells where its evidence is (mask, boxes or polygons)")
    return [found.get(place) for place in range(len(preferences))]


class Attention(PairTask):
    """Attention to the lesion on the grid of image tokens, for models whose images are among their tokens."""

    name = "attention"
    noun = "records"
    field = "attention_ratio"
    columns = {
        "attention_ratio": geometric_mean_score("attention_ratio", "attention ratio", RATIO),
        **{n: mean_score(n, h, u, marked=False, meaning=m) for n, (h, u, m) in SCORES.items()},
    }
    tested = ("attention_ratio", "share", "js")
    file = "looks.jsonl"

    def score(self, numbers: dict, preference: Preference) -> dict:
        return numbers

    def save_more(self, folder: Path, results: Sequence[Result], settings: dict) -> dict:
        *_, result = results
        means = layer_means(result.records, groups_of(self, result.records))
        if not means:
            return {}
        plot_layers(means, f"{result.name}, {len(result.records)} records", folder / "layers.png")
        return {"layers": means}

    def answers(
        self, args: argparse.Namespace, folder: EvaluationFolder, preferences: Sequence[Preference]
    ) -> list[dict | None]:
        loaded = load_vision_model(args)
        ids = [preference.id for preference in preferences]
        with folder.answers(ids, contents(preferences), "scores") as kept:
            return look(*loaded, preferences, Path(args.data), known=kept.known, save=kept.save)

"""A small CLIP from scratch, trained contrastively on tiles and captions of their tissue.

The objective is CLIP's (arXiv 2103.00020): within a batch, every image should find its own caption and every caption
its own image. Tiles of one tissue share their captions, so all of them count as each other's own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mint.data.image_files import open_image
from mint.data.images import load_processor
from mint.data.phrases import train_phrases
from mint.data.splits import hold_out
from mint.data.text_encoder import MARKS, TextEncoder
from mint.data.tiles import Tile
from mint.errors import InputError
from mint.files import write_aside
from mint.models import init_model, save_model
from mint.models.checkpoint import load_clip
from mint.models.clip import Clip
from mint.progress import Progress, epoch_text
from mint.teachers.clip_teacher import TEMPLATES, ZeroShotTeacher
from mint.teachers.fitting import FitSettings, blank_folder, check_folder, save_fit, train_epochs

SIDE, PATCH, TEXT_LENGTH = 64, 8, 32
TOWERS = {
    "text_config": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "vision_config": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4},
}


@dataclass
class ClipSettings(FitSettings):
    """How the CLIP is trained; the accuracy on the tiles held out is reported."""

    epochs: int = 15
    lr: float = 1e-3
    weight_decay: float = 0.1
    adam_beta2: float = 0.98


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, group: Tensor) -> Tensor:
    """The mean of both directions' cross-entropies.

    image, text: [B, D] of length one. scale: the logits' factor. group: [B] int64; members of a group are each other's
    own, and share the target equally (all different: CLIP's loss).
    """
    logits = image @ text.T * scale
    own = (group[:, None] == group[None, :]).float()
    own = own / own.sum(1, keepdim=True)
    return -0.5 * ((own * logits.log_softmax(1)).sum(1) + (own * logits.T.log_softmax(1)).sum(1)).mean()


def fit_clip(
    tiles: Sequence[Tile],
    folder: str | Path,
    settings: ClipSettings,
    tissues: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    device: torch.device | str = "cpu",
) -> ZeroShotTeacher:
    """Trains a CLIP on ``tiles`` and writes it to ``folder``, with ``fit.json``: settings, counts, epochs.

    Raises InputError for settings out of range, fewer than two tissues, an image that cannot be read, a folder in use.
    """
    folder = Path(folder)
    settings.check()
    check_folder(folder)
    found = {tile.tissue for tile in tiles}
    if len(found) < 2:
        raise InputError("a CLIP needs tiles of at least two tissues")
    if unknown := found.difference(tissues):
        raise InputError(f"the tissue {min(unknown)!r} of the tiles to train on is not among those to rank (--tissues)")
    train, held_out = hold_out(tiles, settings.held_out, settings.seed, lambda tile: tile.tissue)
    with blank_folder(folder) as blank:
        captions = [template.format(tissue.lower()) for tissue in tissues for template in templates]
        _write_blank(blank, captions, settings.seed)
        model = load_clip(blank, device)
        epochs = _train(model, train, held_out, blank, settings, tissues, templates)
        counts = {"tiles": len(train), "held_out": len(held_out), "tissues": list(tissues)}
        save_fit(model, folder, settings, epochs, **counts)
    print(f"clip: saved in {folder} after {epoch_text(epochs[-1], settings.epochs)}")
    return ZeroShotTeacher(model, folder, tissues, templates)


def _write_blank(folder: Path, captions: Sequence[str], seed: int) -> None:
    """A CLIP with random weights, and a tokenizer made of the captions, as a model directory."""
    first, last, _ = MARKS[1]
    tokenizer = train_phrases(captions, 1000, (first, last), f"{first} $A {last}")
    ids = {"bos_token_id": tokenizer.token_to_id(first), "eos_token_id": tokenizer.token_to_id(last)}
    text = {
        **TOWERS["text_config"],
        **ids,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": TEXT_LENGTH,
    }
    vision = {**TOWERS["vision_config"], "image_size": SIDE, "patch_size": PATCH}
    raw = {
        "model_type": "clip",
        "projection_dim": 64,
        "initializer_range": 0.05,
        "text_config": text,
        "vision_config": vision,
    }
    save_model(init_model(raw, seed=seed), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    crop = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    write_aside(folder / "preprocessor_config.json", json.dumps({"image_processor_type": "CLIPImageProcessor", **crop}))


def _train(
    model: Clip,
    train: Sequence[Tile],
    held_out: Sequence[Tile],
    folder: Path,
    settings: ClipSettings,
    tissues: Sequence[str],
    templates: Sequence[str],
) -> list[dict]:
    """Trains in place and prints every epoch; returns a row for each."""
    processor, encoder = load_processor(folder), TextEncoder(folder, TEXT_LENGTH)
    reading = Progress(train, desc="clip: images", unit="tile", leave=False)
    pixels = torch.cat([processor([open_image(tile.image)])["pixel_values"] for tile in reading])
    group = torch.tensor([list(tissues).index(tile.tissue) for tile in train])
    device = model.logit_scale.device

    def batches(rng: random.Random) -> list[list[int]]:
        order, size = rng.sample(range(len(train)), len(train)), settings.batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def loss(some: list[int], rng: random.Random) -> Tensor:
        captions = [rng.choice(templates).format(train[i].tissue.lower()) for i in some]
        tokens, _ = encoder.batch([encoder.encode(caption)[0] for caption in captions])
        images = model.encode_image({"pixel_values": _rotate(pixels[some], rng).to(device)})
        scale = model.logit_scale.exp().clamp(max=100)
        return contrastive_loss(images, model.encode_text(tokens.to(device)), scale, group[some].to(device))

    def evaluate() -> dict[str, float]:
        if not held_out:
            return {}
        scores = torch.from_numpy(ZeroShotTeacher(model, folder, tissues, templates).scores(held_out))
        right = [tissues[i] == tile.tissue for i, tile in zip(scores.argmax(1).tolist(), held_out, strict=True)]
        return {"held_out_top_1": sum(right) / len(right)}

    return list(train_epochs(model, settings, "clip", batches, loss, evaluate))


def _rotate(pixels: Tensor, rng: random.Random) -> Tensor:
    """The batch rotated by a random multiple of 90 degrees, and mirrored every second time."""
    turned = pixels.rot90(rng.randrange(4), (2, 3))
    return turned.flip(3) if rng.random() < 0.5 else turned

"""A small CLIP from scratch, trained contrastively on tiles and captions of their tissue.

The objective is CLIP's (arXiv 2103.00020): within a batch, every image should find its own caption and every caption
its own image. Tiles of one tissue share their captions, so all of them count as each other's own.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from mint.models import init_model, load_model, save_model
from mint.models.clip import Clip
from mint.optim import clip_gradients, learning_rate, make_optimizer
from mint.progress import Progress, epoch_text
from mint.teachers.clip_teacher import TEMPLATES, ZeroShotRanker

SIDE, PATCH, TEXT_LENGTH = 64, 8, 32
TOWERS = {
    "text_config": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "vision_config": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4},
}


@dataclass(frozen=True)
class ClipSettings:
    """How the CLIP is trained. held_out: share of the tiles, by patient or slide, whose accuracy is reported."""

    epochs: int = 15
    batch_size: int = 64
    lr: float = 1e-3
    warmup: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 0.1
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    held_out: float = 0.1
    seed: int = 0


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, group: Tensor) -> Tensor:
    """The mean of both directions' cross-entropies.

    image, text: [B, D] of length one. scale: the logits' factor. group: [B] int64; members of a group are each other's
    own, and share the target equally (all different: CLIP's loss).
    """
    logits = image @ text.T * scale
    own = (group[:, None] == group[None, :]).float()
    own = own / own.sum(1, keepdim=True)
    return -0.5 * ((own * logits.log_softmax(1)).sum(1) + (own * logits.T.log_softmax(1)).sum(1)).mean()


def check_folder(folder: str | Path) -> None:
    """Raises InputError if ``folder`` holds a model."""
    if (Path(folder) / "config.json").exists():
        raise InputError(f"{folder} holds a model already: use it with --teacher, or give another folder")


def fit_clip(
    tiles: Sequence[Tile],
    folder: str | Path,
    settings: ClipSettings,
    tissues: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    device: torch.device | str = "cpu",
) -> ZeroShotRanker:
    """Trains a CLIP on ``tiles`` and writes it to ``folder``, with ``fit.json``: settings, counts, epochs.

    Raises InputError for settings out of range, fewer than two tissues, an image that cannot be read, a folder in use.
    """
    folder = Path(folder)
    if min(settings.epochs, settings.batch_size) < 1 or settings.lr <= 0:
        raise InputError("the CLIP's epochs, batch size and learning rate must be positive")
    check_folder(folder)
    found = {tile.tissue for tile in tiles}
    if len(found) < 2:
        raise InputError("a CLIP needs tiles of at least two tissues")
    if unknown := found.difference(tissues):
        raise InputError(f"the tissue {min(unknown)!r} of the tiles to train on is not among those to rank (--tissues)")
    train, held_out = hold_out(tiles, settings.held_out, settings.seed, lambda tile: tile.tissue)
    aside = folder.with_name(f".fitting-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    _write_blank(
        aside, [template.format(tissue.lower()) for tissue in tissues for template in templates], settings.seed
    )
    model = load_model(aside, device=device)
    epochs = _train(model, train, held_out, aside, settings, tissues, templates)
    save_model(model, folder)
    shutil.rmtree(aside, ignore_errors=True)
    record = {"settings": asdict(settings), "tiles": len(train), "held_out": len(held_out), "tissues": list(tissues)}
    (folder / "fit.json").write_text(json.dumps({**record, "epochs": epochs}, indent=2) + "\n", encoding="utf-8")
    print(f"clip: saved in {folder} after {epoch_text(epochs[-1], settings.epochs)}")
    return ZeroShotRanker(model, folder, tissues, templates)


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
    processor = {"image_processor_type": "CLIPImageProcessor", **crop}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


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
    optimizer, device = make_optimizer(model, settings), model.logit_scale.device
    total, step, epochs = -(-len(train) // settings.batch_size) * settings.epochs, 0, []
    bar = Progress(total=total, desc="clip", unit="step")
    for epoch in range(settings.epochs):
        rng = random.Random(f"{settings.seed}/{epoch}")
        order = rng.sample(range(len(train)), len(train))
        model.train()
        losses = []
        for start in range(0, len(order), settings.batch_size):
            some = order[start : start + settings.batch_size]
            captions = [rng.choice(templates).format(train[i].tissue.lower()) for i in some]
            tokens, _ = encoder.batch([encoder.encode(caption)[0] for caption in captions])
            images = {"pixel_values": _turn(pixels[some], rng).to(device)}
            scale = model.logit_scale.exp().clamp(max=100)
            loss = contrastive_loss(
                model.encode_image(images), model.encode_text(tokens.to(device)), scale, group[some].to(device)
            )
            for parameters in optimizer.param_groups:
                parameters["lr"] = learning_rate(step, total, settings)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            clip_gradients(model, settings.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
            step += 1
            bar.update(values={"loss": f"{losses[-1]:.3f}"})
        row = {"epoch": epoch + 1, "loss": sum(losses) / len(losses)}
        if held_out:
            scores = torch.from_numpy(ZeroShotRanker(model, folder, tissues, templates).scores(held_out))
            right = [tissues[i] == tile.tissue for i, tile in zip(scores.argmax(1).tolist(), held_out, strict=True)]
            row["held_out_top_1"] = sum(right) / len(right)
        epochs.append(row)
        bar.write(f"clip: {epoch_text(row, settings.epochs)}")
    bar.close()
    return epochs


def _turn(pixels: Tensor, rng: random.Random) -> Tensor:
    """The batch turned by a quarter, and mirrored, or not: a microscope slide has no right way up."""
    turned = pixels.rot90(rng.randrange(4), (2, 3))
    return turned.flip(3) if rng.random() < 0.5 else turned

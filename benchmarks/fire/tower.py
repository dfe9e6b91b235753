"""Teaching a CLIP image tower to see: to tell the facts that the descriptions of its images state.

The classifier that teaches it is linear in the features that a LLaVA's projector receives, so what the tower learns is
what a linear probe can read, and a language model behind the projector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mint.data.processors.clip import ClipImageProcessor
from mint.models.llava import Llava
from mint.progress import Progress
from mint.synthetic.populations import BALANCED
from mint.synthetic.radiographs import DEGREES, KINDS, SIDE, SIDES, ZONES, Radiograph, draw_radiograph

FACTS = {"present": 2, "side": len(SIDES), "degree": len(DEGREES), "zone": len(ZONES)}  # of each kind: classes
UNKNOWN = -100  # of a finding that is absent, or has no zone
BATCH, RATE, WARMUP, DECAY = 64, 1e-3, 100, 0.05


def facts(drawn: Radiograph) -> list[list[int]]:
    """[kinds][FACTS]: the class of each fact."""
    rows = [[0, *[UNKNOWN] * (len(FACTS) - 1)] for _ in KINDS]
    for finding in drawn.findings:
        zone = UNKNOWN if finding.zone is None else ZONES.index(finding.zone)
        rows[KINDS.index(finding.kind)] = [1, SIDES.index(finding.side), DEGREES.index(finding.degree), zone]
    return rows


def draw_facts(images: int) -> tuple[Tensor, Tensor]:
    """(grey pixels [N, SIDE, SIDE] uint8, labels [N, kinds, FACTS]) of drawn radiographs."""
    pixels = torch.empty(images, SIDE, SIDE, dtype=torch.uint8)
    labels = torch.empty(images, len(KINDS), len(FACTS), dtype=torch.int64)
    for i in Progress(range(images), desc="drawing", unit="image", leave=False):
        drawn = draw_radiograph(f"tower/0/{i}", BALANCED)
        pixels[i] = torch.from_numpy(np.asarray(drawn.image)[..., 0].copy())
        labels[i] = torch.tensor(facts(drawn))
    return pixels, labels


def teach_radiographs(model: Llava, processor: ClipImageProcessor, images: int, steps: int) -> None:
    """Teaches the image tower of ``model`` in place, on drawn radiographs of balanced patients, kept as grey pixels."""
    device = model.head_weight.device
    pixels, labels = (x.to(device) for x in draw_facts(images))

    def shown(some: Tensor) -> Tensor:
        return (pixels[some, None] * processor.scale - processor.mean.to(device)) / processor.std.to(device)

    teach_tower(model, shown, labels, FACTS, steps)


def teach_tower(
    model: Llava, shown: Callable[[Tensor], Tensor], labels: Tensor, facts: Mapping[str, int], steps: int, seed: int = 0
) -> None:
    """Teaches the image tower of ``model`` in place, in steps of 64 images.

    shown: indices of images -> their pixels [B, 3, H, W] as the tower reads them. labels: [N, kinds, facts], classes of
    each image, or UNKNOWN. facts: name -> number of classes.
    """
    device = model.head_weight.device
    width = model.image_slots[1] * model.config.vision.hidden_size * len(model.config.feature_layers)
    heads = nn.Linear(width, labels.shape[1] * sum(facts.values()), device=device)
    nn.init.zeros_(heads.weight)
    nn.init.zeros_(heads.bias)
    parameters = [*model.tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    generator = torch.Generator().manual_seed(0)
    model.tower.train()
    for _ in Progress(range(steps), desc="tower", unit="step", leave=False):
        some = torch.randint(len(labels), (BATCH,), generator=generator)
        found = model.encode_images({"pixel_values": shown(some)})
        assert found is not None
        loss = fact_loss(heads(found["features"].flatten(1)), labels[some], facts)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def fact_loss(logits: Tensor, labels: Tensor, facts: Mapping[str, int]) -> Tensor:
    """The sum over ``facts`` of the mean cross-entropy, where any is known.

    logits: [B, kinds * classes]. labels: [B, kinds, facts].
    """
    parts = logits.view(*labels.shape[:2], -1).split(list(facts.values()), -1)
    losses = [
        F.cross_entropy(part.flatten(0, 1), labels[..., i].flatten(), ignore_index=UNKNOWN)
        for i, part in enumerate(parts)
        if (labels[..., i] != UNKNOWN).any()
    ]
    return torch.stack(losses).sum()

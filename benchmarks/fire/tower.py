"""A CLIP image tower that sees what is drawn: taught on balanced radiographs to tell every fact of their descriptions.

The classifier that teaches it is linear in the features that a LLaVA's projector receives, so what the tower learns is
what a linear probe can read, and a language model behind the projector.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.fire.probe import probe, tower_features
from mint.data.image_features import ImageReader
from mint.data.processors.clip import ClipImageProcessor
from mint.models.llava import Llava
from mint.progress import Progress
from mint.synthetic.populations import BALANCED
from mint.synthetic.radiographs import DEGREES, KINDS, SIDES, ZONES, Radiograph, draw_radiograph

FACTS = {"present": 2, "side": len(SIDES), "degree": len(DEGREES), "zone": len(ZONES)}  # of each kind: classes
UNKNOWN = -100  # of a finding that is absent, or has no zone
IMAGES, STEPS, BATCH, RATE, WARMUP, DECAY = 20_000, 3000, 64, 1e-3, 100, 0.05
PROBED = (2400, 600)  # radiographs to fit the probes to, and to test them on


def facts(drawn: Radiograph) -> list[list[int]]:
    """[kinds][FACTS]: the class of each fact."""
    rows = [[0, *[UNKNOWN] * (len(FACTS) - 1)] for _ in KINDS]
    for finding in drawn.findings:
        zone = UNKNOWN if finding.zone is None else ZONES.index(finding.zone)
        rows[KINDS.index(finding.kind)] = [1, SIDES.index(finding.side), DEGREES.index(finding.degree), zone]
    return rows


def teach_tower(model: Llava, processor: ClipImageProcessor, seed: int = 0) -> None:
    """Teaches the image tower of ``model`` in place. Radiographs are drawn, and kept in memory as grey pixels."""
    drawn = [draw_radiograph(f"tower/{seed}/{i}", BALANCED) for i in Progress(range(IMAGES), desc="drawing")]
    pixels = torch.from_numpy(np.stack([np.asarray(one.image)[..., 0] for one in drawn]))
    labels = torch.tensor([facts(one) for one in drawn])
    width = model.image_slots[1] * model.projector.linear_1.in_features
    heads = nn.Linear(width, len(KINDS) * sum(FACTS.values()))
    nn.init.zeros_(heads.weight)
    parameters = [*model.tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / STEPS)) / 2
    )
    generator = torch.Generator().manual_seed(seed)
    model.tower.train()
    for _ in Progress(range(STEPS), desc="tower", unit="step"):
        some = torch.randint(len(pixels), (BATCH,), generator=generator)
        x = (pixels[some, None] * processor.scale - processor.mean) / processor.std
        found = model.encode_images({"pixel_values": x})
        assert found is not None
        loss = fact_loss(heads(found["features"].flatten(1)), labels[some])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def fact_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over FACTS of the mean cross-entropy. logits: [B, kinds * classes]. labels: [B, kinds, FACTS]."""
    parts = logits.view(len(labels), len(KINDS), -1).split(list(FACTS.values()), -1)
    losses = [
        F.cross_entropy(part.flatten(0, 1), labels[..., i].flatten(), ignore_index=UNKNOWN)
        for i, part in enumerate(parts)
    ]
    return torch.stack(losses).sum()


def probe_tower(model: Llava, reader: ImageReader, folder: Path) -> dict[str, dict[str, float]]:
    """kind -> fact -> accuracy, in 0 to 1, of a linear probe on other radiographs than it was fitted to.

    folder: the radiographs are written there.
    """
    fitted, tested = PROBED
    drawn = [draw_radiograph(f"probe/{i}", BALANCED) for i in range(fitted + tested)]
    folder.mkdir(parents=True, exist_ok=True)
    files = [str(folder / f"{i}.png") for i in range(len(drawn))]
    for one, file in zip(drawn, files, strict=True):
        one.image.save(file)
    features, labels = tower_features(model, reader, files), torch.tensor([facts(one) for one in drawn])
    found: dict[str, dict[str, float]] = {}
    for k, kind in enumerate(KINDS):
        for f, name in enumerate(FACTS):
            known = labels[:, k, f] != UNKNOWN
            if known.any():
                fit, test = (
                    (known & (torch.arange(len(drawn)) < fitted)),
                    (known & (torch.arange(len(drawn)) >= fitted)),
                )
                right = probe(features[fit], labels[fit, k, f], features[test], labels[test, k, f])
                found.setdefault(kind, {})[name] = right.float().mean().item()
    return found


def probes_table(found: dict[str, dict[str, float]]) -> str:
    """A Markdown table, in per cent."""
    lines = [f"| probe (%) | {' | '.join(FACTS)} |", "|---" * (len(FACTS) + 1) + "|"]
    for kind, some in found.items():
        cells = [f"{100 * some[name]:.1f}" if name in some else "" for name in FACTS]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)

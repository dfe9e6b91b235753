"""The teacher of MINT's second task: a CLIP ranks tissues by how well their descriptions fit the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mint.data.image_files import open_image
from mint.data.images import load_processor
from mint.data.text_encoder import TextEncoder
from mint.data.tiles import Tile
from mint.errors import InputError
from mint.models.checkpoint import load_clip
from mint.models.clip import Clip

TEMPLATES = (
    "an H&E image of {} tissue",
    "a histology slide of the {}",
    "a microscope image of {} cells",
    "nuclei of {} tissue, stained with haematoxylin and eosin",
)
BATCH = 64  # images encoded at a time


class ZeroShotTeacher:
    """Scores tissues by the cosine of image and text features, the text's being the mean over several templates."""

    name = "zero-shot CLIP"

    def __init__(self, model: Clip, folder: str | Path, tissues: Sequence[str], templates: Sequence[str] = TEMPLATES):
        """folder: the tokenizer and image processor. Raises InputError for a template without its place, ``{}``."""
        if bad := [template for template in templates if template.count("{}") != 1]:
            raise InputError(f"the template {bad[0]!r} must hold {{}} once, where the tissue's name goes")
        if len(set(tissues)) < 2:
            raise InputError(f"a ranking needs at least two tissues, not {len(set(tissues))}")
        self.model, self.classes = model.eval(), tuple(tissues)
        self.processor = load_processor(folder)
        self._encoder = TextEncoder(folder, model.config.text.max_position_embeddings)
        self._texts = torch.stack([self._describe(tissue, templates) for tissue in self.classes])  # [tissues, D]

    @torch.no_grad()
    def _describe(self, tissue: str, templates: Sequence[str]) -> Tensor:
        """[D], of length one."""
        tokens, _ = self._encoder.batch([self._encoder.encode(text.format(tissue.lower()))[0] for text in templates])
        return F.normalize(self.model.encode_text(tokens.to(self.model.logit_scale.device)).mean(0), dim=0)

    @torch.no_grad()
    def scores(self, tiles: Sequence[Tile], own: Sequence[Tile] | None = None) -> np.ndarray:
        """[tiles, tissues] logits: cosine times the model's scale; ``own`` has no effect.

        Raises InputError for an image that cannot be read.
        """
        rows = []
        for start in range(0, len(tiles), BATCH):
            images = self.processor([open_image(tile.image) for tile in tiles[start : start + BATCH]])
            features = self.model.encode_image({name: value.to(self._texts.device) for name, value in images.items()})
            rows.append((features @ self._texts.T * self.model.logit_scale.exp()).float().cpu())
        return torch.cat(rows).numpy() if rows else np.zeros((0, len(self.classes)), dtype=np.float32)


def load_zero_shot(
    name: str | Path, tissues: Sequence[str], templates: Sequence[str] = TEMPLATES, device: torch.device | str = "cpu"
) -> ZeroShotTeacher:
    """A CLIP directory or hub id as a teacher. Raises InputError if it is no CLIP."""
    model = load_clip(name, device)
    return ZeroShotTeacher(model, model.source_dir, tissues, templates)

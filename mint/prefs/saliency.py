"""CLIP phrase localisation: how well each image patch's own features match a phrase.

The last layer's attention mixes the patches; its values alone keep each in its place (MaskCLIP, arXiv 2112.01071). The
match with ``PLAIN``, a generic phrase, is subtracted.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mint.data.image_files import to_rgb
from mint.data.images import load_processor
from mint.data.processors.clip import ClipImageProcessor
from mint.data.text_encoder import TextEncoder
from mint.errors import InputError
from mint.models.checkpoint import load_clip
from mint.models.clip import Clip, Layer

PLAIN = "a medical image"
SHARE = 0.1  # of the patches that make the mask


class ClipSaliency:
    """``saliency(image, phrase)`` -> [height, width] bool, the tenth of the patches that fit the phrase best."""

    def __init__(self, name: str | Path, device: torch.device | str = "cpu"):
        """name: a CLIP's directory or hub id. Raises InputError for another model or image processor."""
        self.model = load_clip(name, device)
        folder = self.model.source_dir
        processor = load_processor(folder)
        if not isinstance(processor, ClipImageProcessor):
            raise InputError(f"{name} has no CLIP image processor")
        self.processor = processor
        self._length = self.model.config.text.max_position_embeddings
        self._encoder = TextEncoder(folder, self._length)
        self._plain = self._text(PLAIN)

    @torch.no_grad()
    def _text(self, phrase: str) -> Tensor:
        ids = self._encoder.encode(phrase)[0]
        if len(ids) > self._length:
            ids = [*ids[: self._length - 1], ids[-1]]
        tokens, _ = self._encoder.batch([ids])
        return self.model.encode_text(tokens.to(self.model.logit_scale.device))[0]

    @torch.no_grad()
    def heat(self, image: Image.Image, phrase: str) -> np.ndarray:
        """[rows, columns] of patches: the cosine to the phrase less that to ``PLAIN``."""
        device = self.model.logit_scale.device
        pixels = self.processor([image])["pixel_values"].to(device)
        features = F.normalize(patch_features(self.model, pixels)[0], dim=-1)
        fit = features @ (self._text(phrase) - self._plain)
        side = round(len(fit) ** 0.5)
        return fit.view(side, side).float().cpu().numpy()

    def __call__(self, image: Image.Image, phrase: str) -> np.ndarray:
        heat = self.heat(image, phrase)
        least = np.sort(heat.flatten())[-max(1, round(SHARE * heat.size))]
        inside = Image.fromarray(((heat >= least) * 255).astype(np.uint8))
        return np.asarray(self._onto(inside, to_rgb(image).size)) > 127

    def _onto(self, inside: Image.Image, size: tuple[int, int]) -> Image.Image:
        """A map of what the processor kept of an image, as a map of the whole image of this size."""
        whole = self.processor.seen_size(*size)
        kept = (whole[0], whole[1]) if self.processor.crop is None else self.processor.crop[::-1]
        canvas = Image.new("L", whole)
        corner = ((whole[0] - kept[0]) // 2, (whole[1] - kept[1]) // 2)
        canvas.paste(inside.resize(kept, Image.Resampling.NEAREST), corner)
        return canvas.resize(size, Image.Resampling.NEAREST)


def patch_features(model: Clip, pixels: Tensor) -> Tensor:
    """[B, P, D] features of the patches in the space of the text's, from the last layer's values alone."""
    tower = model.vision_model
    layers = tower.encoder.layers
    hidden = tower.hidden_states(pixels, (len(layers) - 1,))[0][:, 1:]
    last = cast(Layer, layers[-1])
    values = last.self_attn["out_proj"](last.self_attn["v_proj"](last.layer_norm1(hidden)))
    return model.visual_projection(tower.post_layernorm(values))

"""A frozen image tower reads each image once: for policy and reference together, and for a whole run."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mint.data.batch import Batch
from mint.data.feature_store import FeatureStore, fingerprint
from mint.data.images import Processor
from mint.data.pair_images import ImageReader
from mint.errors import InputError
from mint.models.llama import CausalLM


def tower_is_frozen(model: CausalLM) -> bool:
    """Whether the model has an image tower in which nothing is trained."""
    return model.tower is not None and not any(parameter.requires_grad for parameter in model.tower.parameters())


def share_features(model: CausalLM, batch: Batch) -> Batch:
    """The batch with its images encoded, where the tower is frozen: the same features for policy and reference."""
    if batch.images is None or not tower_is_frozen(model):
        return batch
    with torch.no_grad():
        return replace(batch, images=model.encode_images(batch.images))


def image_reader(model: CausalLM, processor: Processor, folder: str | None = None) -> ImageReader:
    """Reads the images of batches for ``model``: pixels for a tower that is trained, features of one that is frozen.

    folder: keeps the features from one run to the next. Raises InputError for a folder and a tower that is trained.
    """
    if not tower_is_frozen(model):
        if folder:
            raise InputError("--image-features: the image tower is trained, so what it makes of an image changes; leave it out")
        return ImageReader(processor)
    device = model.head_weight.device

    @torch.no_grad()
    def encode(images: dict[str, Tensor]) -> dict[str, Tensor]:
        seen = model.encode_images({name: value.to(device) for name, value in images.items()})
        return {name: value.cpu() for name, value in seen.items() if name != "pixel_values"}

    store = FeatureStore(folder, fingerprint(model.tower.state_dict().items(), processor)) if folder else None
    return ImageReader(processor, encode, store)

"""A frozen image tower reads each image once: for policy and reference together, and for a whole run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mint.data.batch import Batch
from mint.data.feature_store import FeatureStore, fingerprint
from mint.data.images import Processor, load_processor
from mint.data.pair_images import ImageReader
from mint.errors import InputError
from mint.models.llama import CausalLM


def processor_of(model: CausalLM, max_pixels: int | None = None) -> Processor | None:
    """The image processor of a loaded model; None if it reads no images.

    max_pixels: as for ``load_processor``. Raises InputError for a limit on a model that reads no images.
    """
    if model.tower is not None:
        return load_processor(model.source_dir, max_pixels)
    if max_pixels is not None:
        raise InputError("--max-pixels is for models that read images")
    return None


def tower_is_frozen(model: CausalLM) -> bool:
    """Whether the model has an image tower in which nothing is trained."""
    return model.tower is not None and not any(parameter.requires_grad for parameter in model.tower.parameters())


def share_features(model: CausalLM, batch: Batch) -> Batch:
    """The batch with its images encoded, where the tower is frozen: the same features for policy and reference."""
    if batch.images is None or not tower_is_frozen(model):
        return batch
    with torch.no_grad():
        return replace(batch, images=model.encode_images(batch.images))


def check_image_features(model: CausalLM) -> None:
    """Raises InputError if there are no features to keep: without an image tower, or with one that is trained."""
    if model.tower is None:
        raise InputError("--image-features is for models that read images")
    if not tower_is_frozen(model):
        raise InputError("--image-features: the vision encoder is trained, so its features change; leave the flag out")


def image_reader(model: CausalLM, processor: Processor, folder: str | Path | None, run: Path) -> ImageReader:
    """Reads the images of batches for ``model``: pixels for a tower that is trained, features of one that is frozen.

    folder: keeps the features from one run to the next. run: the run's folder, where features that do not fit
    into memory are kept in ``features-overflow`` until training ends.
    """
    if not tower_is_frozen(model):
        return ImageReader(processor)
    device = model.head_weight.device

    @torch.no_grad()
    def encode(images: dict[str, Tensor]) -> dict[str, Tensor]:
        seen = model.encode_images({name: value.to(device) for name, value in images.items()})
        return {name: value.cpu() for name, value in seen.items() if name != "pixel_values"}

    def tower() -> str:
        return fingerprint(model.tower.state_dict().items(), processor)

    return ImageReader(processor, encode, FeatureStore(folder or run / "features-overflow", tower), overflow=not folder)

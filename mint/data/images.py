"""The image processor that a model's directory describes."""

from __future__ import annotations

import json
from pathlib import Path

from mint.data.processors.clip import ClipImageProcessor
from mint.data.processors.mllama import MllamaImageProcessor
from mint.data.processors.qwen_vl import QwenVLImageProcessor
from mint.data.processors.vilt import ViltImageProcessor
from mint.errors import InputError

Processor = ClipImageProcessor | MllamaImageProcessor | QwenVLImageProcessor | ViltImageProcessor
PROCESSORS = {
    "CLIP": ClipImageProcessor,
    "Llava": ClipImageProcessor,
    "Mllama": MllamaImageProcessor,
    "Qwen2VL": QwenVLImageProcessor,
    "Vilt": ViltImageProcessor,
}
SPELLINGS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")  # of one thing, over the years


def load_processor(folder: str | Path) -> Processor:
    """The processor that the ``preprocessor_config.json`` of a model directory describes.

    It is called with a list of images (PIL, any mode) and returns the tensors that ``model(tokens, images=...)`` takes,
    under the family's own names. Raises InputError if it is missing, unreadable, or of an unsupported kind.
    """
    path = Path(folder) / "preprocessor_config.json"
    newer = Path(folder) / "processor_config.json"  # holds it as one part of several
    try:
        if path.is_file() or not newer.is_file():
            raw = json.loads(path.read_text(encoding="utf-8"))
        else:
            path, raw = newer, json.loads(newer.read_text(encoding="utf-8")).get("image_processor") or {}
    except FileNotFoundError:
        raise InputError(f"{folder} has no preprocessor_config.json") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    kind = raw.get("image_processor_type") or raw.get("feature_extractor_type")
    known = {family + spelling: processor for family, processor in PROCESSORS.items() for spelling in SPELLINGS}
    if kind not in known:
        names = ", ".join(f"{family}ImageProcessor" for family in PROCESSORS)
        raise InputError(f"{path}: image_processor_type {kind!r} is not supported; known are {names}")
    try:
        return known[kind](raw)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds a setting of the wrong form: {error}") from None

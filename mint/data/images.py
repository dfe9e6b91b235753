"""Step 3 of 4 from a record to image features: the image processor of a model directory, from images to tensors."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from mint.data.processors.clip import ClipImageProcessor
from mint.data.processors.mllama import MllamaImageProcessor
from mint.data.processors.qwen_vl import QwenVLImageProcessor
from mint.data.processors.vilt import ViltImageProcessor
from mint.errors import InputError
from mint.files import read_json
from mint.ranges import Range, check_number, check_numbers, shown

Processor = ClipImageProcessor | MllamaImageProcessor | QwenVLImageProcessor | ViltImageProcessor
PROCESSORS: dict[str, Callable[[dict], Processor]] = {
    "CLIP": ClipImageProcessor,
    "Llava": ClipImageProcessor,
    "Mllama": MllamaImageProcessor,
    "Qwen2VL": QwenVLImageProcessor,
    "Qwen2_5_VL": QwenVLImageProcessor,
    "Vilt": ViltImageProcessor,
}
SPELLINGS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")  # endings of one class
OF_MODELS = {  # by the model's type, where the file names no class
    "clip": "CLIPImageProcessor",
    "llava": "LlavaImageProcessor",
    "mllama": "MllamaImageProcessor",
    "qwen2_5_vl": "Qwen2VLImageProcessor",
    "qwen3_vl": "Qwen2VLImageProcessor",
    "vilt": "ViltImageProcessor",
}
MOST_SIDE, MOST_PIXELS = 20_000, 1_000_000_000  # Qwen-VL's "edges" are numbers of pixels
NUMBERS = {
    **dict.fromkeys(("patch_size", "size_divisor"), Range(1, MOST_SIDE)),
    **dict.fromkeys(("merge_size", "temporal_patch_size", "max_image_tiles"), Range(1, 100)),
    **dict.fromkeys(("min_pixels", "max_pixels"), Range(1, MOST_PIXELS)),
    "rescale_factor": Range(1e-9, 1e3, whole=False),
    "resample": Range(0, 5),
}
SIZES, COLOURS = ("size", "crop_size"), ("image_mean", "image_std")


class VisionModel(Protocol):
    """What is read of a model here and in ``image_features`` (``mint.models.llama.CausalLM``)."""

    source_dir: Path

    @property
    def tower(self) -> nn.Module | None: ...
    @property
    def vision_is_frozen(self) -> bool: ...
    @property
    def head_weight(self) -> Tensor: ...
    def encode_images(self, images: dict[str, Tensor] | None) -> dict[str, Tensor] | None: ...


def load_processor(folder: str | Path, max_pixels: int | None = None) -> Processor:
    """The image processor of a model directory.

    It is called with a list of images (PIL, any mode) and returns the tensors that ``model(tokens, images=...)`` takes,
    under the family's own names. Settings come from the image processor's part of ``processor_config.json``, or from
    ``preprocessor_config.json``. Where they name no class, ``config.json`` decides by its ``model_type``.

    max_pixels: limit of the pixels of an image, for processors that keep an image's size (Qwen-VL). Raises InputError
    for one that does not, for a limit below its minimum, and if the settings are missing, unreadable, or of an
    unsupported kind.
    """
    path, raw = _read_settings(Path(folder))
    _check_settings(path, raw)
    if own := _own_processor(Path(folder)):
        return own(raw)
    kind = raw.get("image_processor_type") or raw.get("feature_extractor_type") or _class_of_model(Path(folder), path)
    known = {family + spelling: processor for family, processor in PROCESSORS.items() for spelling in SPELLINGS}
    if not isinstance(kind, str) or kind not in known:
        names = ", ".join(f"{family}ImageProcessor" for family in PROCESSORS)
        raise InputError(f"{path}: image_processor_type {shown(kind)} is not supported; known are {names}")
    try:
        processor = known[kind](raw)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path} holds a setting of the wrong form: {error}") from None
    if max_pixels is not None:
        if not isinstance(processor, QwenVLImageProcessor):
            raise InputError(f"--max-pixels is for Qwen-VL models; with {kind} all images have as many tokens")
        processor.limit(max_pixels)
    return processor


def processor_of(model: VisionModel, max_pixels: int | None = None) -> Processor | None:
    """The image processor of a loaded model; None if it reads no images.

    max_pixels: as for ``load_processor``. Raises InputError for a limit on a model that reads no images.
    """
    if model.tower is not None:
        return load_processor(model.source_dir, max_pixels)
    if max_pixels is not None:
        raise InputError("--max-pixels is for models that read images")
    return None


def _own_processor(folder: Path) -> type | None:
    """``PROCESSOR`` of ``mint/data/processors/KIND.py``, KIND being the ``model_type``; None if there is none."""
    kind = str(read_json(folder / "config.json", optional=True).get("model_type"))
    name = f"mint.data.processors.{kind}"
    if not kind.isidentifier() or importlib.util.find_spec(name) is None:
        return None
    return getattr(importlib.import_module(name), "PROCESSOR", None)


def _read_settings(folder: Path) -> tuple[Path, dict]:
    """(the file, the image processor's settings in it)."""
    path, nested = folder / "preprocessor_config.json", folder / "processor_config.json"
    if settings := read_json(nested, optional=True).get("image_processor"):
        return nested, settings
    if not path.is_file():
        raise InputError(f"{folder} has no preprocessor_config.json")
    return path, read_json(path)


def _check_settings(path: Path, raw: dict) -> None:
    """Raises InputError for a number out of the range of any image processor, and a list of colours that is none."""
    check_numbers(path, raw, NUMBERS)
    for name in SIZES:
        sizes = raw.get(name)
        for key, value in (sizes if isinstance(sizes, dict) else {"": sizes}).items():
            if value is not None:
                most = MOST_PIXELS if key in ("shortest_edge", "longest_edge") else MOST_SIDE
                check_number(f"{path}: {name} {key}".rstrip(), value, Range(1, most))
    for name in COLOURS:
        colours = raw.get(name)
        if colours is not None and not (isinstance(colours, list) and len(colours) == 3):
            raise InputError(f"{path}: {name} must be a list of three numbers, not {shown(colours)}")
        for colour in colours or ():
            check_number(f"{path}: {name}", colour, Range(0 if name == "image_mean" else 1e-6, 1e3, whole=False))


def _class_of_model(folder: Path, path: Path) -> str:
    """The class of image processor that the ``model_type`` of config.json implies. InputError if there is none."""
    kind = read_json(folder / "config.json", optional=True).get("model_type")
    if not isinstance(kind, str) or kind not in OF_MODELS:
        known = ", ".join(OF_MODELS)
        raise InputError(f"{path} has no image_processor_type, and config.json no model_type that implies one: {known}")
    return OF_MODELS[kind]

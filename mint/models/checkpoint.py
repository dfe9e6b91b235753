"""Model directories in Hugging Face's form: reading them onto a device, and writing them.

A directory holds ``config.json`` and ``*.safetensors`` (one file, or shards with an index), and beside them the
tokenizer's files. Parameters carry the checkpoint's names, so reading is a copy by name, one tensor at a time.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mint.errors import InputError
from mint.hub import MODEL_FILES, resolve_dir
from mint.models.clip import Clip, ClipConfig
from mint.models.llama import MODEL_TYPES, CausalLM, Llama, LlamaConfig
from mint.models.llava import Llava, LlavaConfig
from mint.models.lora import lora_layers
from mint.models.mllama import Mllama, MllamaConfig
from mint.models.qwen3_vl import Qwen3VL, Qwen3VLConfig
from mint.models.qwen_vl import QwenVL, QwenVLConfig
from mint.models.vilt import Vilt, ViltConfig

ARCHITECTURES: dict[str, tuple[type[nn.Module], Callable]] = {
    **dict.fromkeys(MODEL_TYPES, (Llama, LlamaConfig.from_dict)),
    "clip": (Clip, ClipConfig.from_dict),
    "llava": (Llava, LlavaConfig.from_dict),
    "mllama": (Mllama, MllamaConfig.from_dict),
    "qwen2_5_vl": (QwenVL, QwenVLConfig.from_dict),
    "qwen3_vl": (Qwen3VL, Qwen3VLConfig.from_dict),
    "vilt": (Vilt, ViltConfig.from_dict),
}
TRANSFORMERS_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "clip": "CLIPModel",
    "llava": "LlavaForConditionalGeneration",
    "mllama": "MllamaForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "vilt": "ViltForQuestionAnswering",
}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Files that make a directory complete for other programs, copied as they are.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def load_model(
    name: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    settings: dict | None = None,
    fresh: tuple[str, ...] = (),
    seed: int = 0,
) -> nn.Module:
    """The model in a directory or hub repository, in ``dtype`` on ``device``, in evaluation mode.

    Tensors stream from the files one at a time, so the peak is the model itself and one tensor. ``model.source_dir``
    tells where it came from. settings: replace those of ``config.json``. fresh: beginnings of names: these parameters are
    drawn from ``seed`` as in :func:`init_model`, whatever the files hold (a new head).
    Raises InputError for an unsupported architecture, missing, unexpected or misshapen tensors, damaged files, and weights
    that are not safetensors.
    """
    folder = resolve_dir(name, MODEL_FILES)
    raw = read_json(folder / "config.json")
    if settings and isinstance(raw, dict):
        raw = {**raw, **settings}
    model = _build(raw, folder)
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    seen: set[str] = set()
    for path, stored, read in stored_tensors(folder):
        key = current_name(model, stored)
        if fresh and key.startswith(fresh):
            continue
        if key not in expected:
            if _is_harmless(key, raw):
                continue
            raise InputError(f"{path} holds {stored!r}, which this {raw['model_type']} model has no place for")
        tensor = read()
        if tensor.shape != expected[key]:
            raise InputError(f"{path}: {key} is {tuple(tensor.shape)}, config.json asks for {tuple(expected[key])}")
        _assign(model, key, tensor.to(device=device, dtype=dtype))
        seen.add(key)
    missing = [key for key in expected if key not in seen]
    if fresh:
        generator = torch.Generator().manual_seed(seed)
        for key in (key for key in missing if key.startswith(fresh)):
            tensor = _draw(key, torch.empty(expected[key]), model.config.initializer_range, generator)
            _assign(model, key, tensor.to(device=device, dtype=dtype))
        missing = [key for key in missing if not key.startswith(fresh)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(f"{folder} lacks weights: {', '.join(missing[:5])}{more}")
    model.source_dir = folder
    return model.eval()


def load_language_model(name: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> CausalLM:
    """:func:`load_model` for models that write text. Raises InputError for others too."""
    model = load_model(name, dtype=dtype, device=device)
    if not isinstance(model, CausalLM):
        raise InputError(f"{name} is a {model.config.raw.get('model_type')} model, which writes no text")
    return model


def init_model(config: dict, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model of the given ``config.json`` content with random weights: matrices normal, biases 0, norms 1.

    What a model names in ``initial_values`` begins there.
    """
    model = _build(config, Path("the given configuration"))
    model.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            _draw(key, parameter, model.config.initializer_range, generator)
            if key in getattr(model, "initial_values", {}):
                parameter.fill_(model.initial_values[key])
    model.source_dir = None
    return model.eval()


def save_model(model: nn.Module, folder: str | Path, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes ``model`` as a directory that ``load_model`` and ``transformers`` read.

    The files of the directory it was loaded from that belong to it (tokenizer, chat template, generation settings)
    come along. A merged adapter is part of the weights. Everything is written to a directory beside the target, which
    then takes its place. Raises InputError if an adapter is not merged, or if the target holds something else than a
    model, which replacing it would destroy.
    """
    if any(not layer.merged for layer in lora_layers(model).values()):
        raise InputError("the model has an adapter: merge it before saving the model, or save the adapter alone")
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / "config.json").is_file() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not a model directory; saving would replace it: choose another place")
    aside = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write_model(model, aside, max_shard_bytes)
        old = folder.with_name(f".old-{folder.name}")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_model(model: nn.Module, aside: Path, max_shard_bytes: int) -> None:
    aside.mkdir(parents=True)
    tensors = {key: t for key, t in model.state_dict().items() if ".lora_A." not in key and ".lora_B." not in key}
    first = next(iter(tensors.values()))
    config = {**model.config.raw, "torch_dtype": str(first.dtype).removeprefix("torch.")}
    config.pop("dtype", None)  # the newer spelling of the same
    config.setdefault("architectures", [TRANSFORMERS_CLASSES[config["model_type"]]])
    (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    source = getattr(model, "source_dir", None)
    for name in COMPANIONS:
        if source is not None and (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, aside / name)
    _write_shards(tensors, aside, max_shard_bytes)


def _draw(key: str, parameter: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Fills a new parameter: matrices and embeddings normal, biases 0, norms 1."""
    if parameter.dim() >= 2 or key.endswith("_embedding"):
        return parameter.normal_(0.0, std, generator=generator)
    return parameter.fill_(0.0 if key.endswith(".bias") else 1.0)


def current_name(model: nn.Module, name: str) -> str:
    """The model's own name of a parameter that an older checkpoint calls ``name``."""
    for pattern, replacement in getattr(model, "older_names", ()):
        name = re.sub(pattern, replacement, name)
    return name


def _build(raw: dict, where: Path) -> nn.Module:
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if str(kind).startswith("llava_"):
        raise InputError(f"{where} has LLaVA's own form ({kind}): convert it first (python -m mint.models.llava_med)")
    if kind not in ARCHITECTURES:
        raise InputError(f"{where}: model_type {kind!r} is not supported; known are {', '.join(ARCHITECTURES)}")
    architecture, read_config = ARCHITECTURES[kind]
    with torch.device("meta"):
        return architecture(read_config(raw))


def read_json(path: Path) -> dict:
    """The content of a model directory's file. Raises InputError if it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} is not a model directory: {path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def stored_tensors(folder: Path) -> Iterator[tuple[Path, str, Callable[[], Tensor]]]:
    """(file, name, function that reads it) of every tensor of a directory. Raises InputError for missing or damaged files."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        placed = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
            raise InputError(f"{folder / INDEX} has no weight_map that says which file holds a tensor")
        files = sorted({folder / Path(name).name for name in placed.values()})
    else:
        files = [folder / SINGLE]
    for path in files:
        if not path.is_file():
            pickled = [*folder.glob("*.bin"), *folder.glob("*.pth")]
            hint = "; its weights are pickled, which can run code: convert them to safetensors" if pickled else ""
            raise InputError(f"{path} is missing{hint}")
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():
                    yield path, key, lambda file=file, key=key: file.get_tensor(key)
        except SafetensorError as error:
            raise InputError(f"{path} is damaged or not a safetensors file: {error}") from None


def _is_harmless(key: str, raw: dict) -> bool:
    """Tensors some checkpoints store though they follow from others: a tied head, rotary frequencies, places in a text."""
    tied = key == "lm_head.weight" and raw.get("tie_word_embeddings", False)
    return tied or key.endswith(("rotary_emb.inv_freq", ".position_ids"))


def _assign(model: nn.Module, key: str, tensor: Tensor) -> None:
    module, _, name = key.rpartition(".")
    owner = model.get_submodule(module)
    if name in owner._parameters:
        owner._parameters[name] = nn.Parameter(tensor)
    else:
        owner._buffers[name] = tensor


def _write_shards(tensors: dict[str, Tensor], folder: Path, limit: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    names = [SINGLE] if len(shards) == 1 else [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]  # fmt: skip
    for name, shard in zip(names, shards, strict=True):
        save_file({k: t.detach().cpu().contiguous() for k, t in shard.items()}, folder / name, {"format": "pt"})
    if len(shards) > 1:
        placed = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": placed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

"""Model directories in Hugging Face's format: loading them onto a device, and saving them.

A directory holds ``config.json`` and ``*.safetensors`` (one file, or shards with an index), and the tokenizer's files.
Parameters have the checkpoint's names, so loading copies by name, one tensor at a time.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mint.errors import InputError
from mint.files import folder_aside, read_json
from mint.hub import MODEL_FILES, SETTINGS_FILES, check_name, list_files, local_dir, pickled_weights, resolve_dir
from mint.models.adapter_files import some
from mint.models.clip import Clip, ClipConfig
from mint.models.llama import CausalLM, Llama
from mint.models.llama_config import LlamaConfig
from mint.models.llava import OWN_FORMS, Llava, LlavaConfig
from mint.models.lora import lora_layers
from mint.models.mllama import Mllama, MllamaConfig
from mint.models.names import Pretrained, current_name
from mint.models.quantized import QuantizedLinear, quantize_layers
from mint.models.qwen3_vl import Qwen3VL, Qwen3VLConfig
from mint.models.qwen_vl import QwenVL, QwenVLConfig
from mint.models.settings import check_config
from mint.models.vilt import Vilt, ViltConfig

Config = type[LlamaConfig] | type[ClipConfig] | type[ViltConfig]
FAMILIES: dict[str, tuple[type[Pretrained], Config, str]] = {  # model_type: network, settings, transformers' class
    "llama": (Llama, LlamaConfig, "LlamaForCausalLM"),
    "mistral": (Llama, LlamaConfig, "MistralForCausalLM"),
    "qwen2": (Llama, LlamaConfig, "Qwen2ForCausalLM"),
    "qwen3": (Llama, LlamaConfig, "Qwen3ForCausalLM"),
    "clip": (Clip, ClipConfig, "CLIPModel"),
    "llava": (Llava, LlavaConfig, "LlavaForConditionalGeneration"),
    "mllama": (Mllama, MllamaConfig, "MllamaForConditionalGeneration"),
    "qwen2_5_vl": (QwenVL, QwenVLConfig, "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": (Qwen3VL, Qwen3VLConfig, "Qwen3VLForConditionalGeneration"),
    "vilt": (Vilt, ViltConfig, "ViltForQuestionAnswering"),
}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SHARD_BYTES = 5_000_000_000
Stored = tuple[Path, str, Callable[[], Tensor]]  # the file that holds a tensor, its name there, and how it is read
# Files that make a directory complete for other programs, copied as they are.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
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
    quantize: str | None = None,
) -> Pretrained:
    """The model in a directory or hub repository, in ``dtype`` on ``device``, in evaluation mode.

    Tensors stream from the files one at a time, so the peak is the model itself and one tensor. ``model.source_dir`` is
    the directory that was read, ``model.source_name`` the hub id or directory as given. settings: replace those of
    ``config.json``. fresh: prefixes of names: these parameters are drawn from ``seed`` as in :func:`init_model`,
    even if the files have them (a new head). quantize: number format of the weights of a decoder's linear layers
    (``mint.models.quantized``), each of which is quantised when it has been read.
    Raises InputError for an unsupported architecture, missing, unexpected or misshapen tensors, damaged files, and
    weights that are not safetensors.
    """
    folder = resolve_dir(name, MODEL_FILES)
    raw = read_json(folder / "config.json")
    raw |= settings or {}
    model = build_model(raw, name)
    if quantize:
        quantize_layers(_language_model(model, name).decoder, quantize)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    for key, tensor in placed_tensors(model, stored_tensors(folder, name), name, fresh):
        _assign(model, key, tensor.to(device=device, dtype=dtype))
    generator = torch.Generator().manual_seed(seed)
    for key in (key for key in shapes if key.startswith(fresh)):
        tensor = _draw(key, torch.empty(shapes[key]), model.config.initializer_range, generator)
        _assign(model, key, tensor.to(device=device, dtype=dtype))
    model.source_dir, model.source_name = folder, str(name)
    return model.eval()


def load_language_model(
    name: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
) -> CausalLM:
    """:func:`load_model` for models that write text. Raises InputError for others too."""
    return _language_model(load_model(name, dtype=dtype, device=device, quantize=quantize), name)


def load_structure(
    name: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "meta"
) -> CausalLM:
    """:func:`load_language_model` on the meta device, without the weights: parameters have shapes and no values.

    Of a hub repository only the settings are fetched; in a directory the tensors' names and shapes are checked too.
    """
    folder = resolve_dir(name, SETTINGS_FILES)
    model = _language_model(build_model(read_json(folder / "config.json"), name).to(dtype), name)
    if local_dir(name) is not None:
        for _ in placed_tensors(model, stored_tensors(folder, name, shapes_only=True), name):
            pass
    model.source_dir, model.source_name = folder, str(name)
    return model.eval()


def _language_model(model: Pretrained, name: str | Path) -> CausalLM:
    if not isinstance(model, CausalLM):
        raise InputError(f"{name} is a {model.config.raw.get('model_type')} model, which writes no text")
    return model


def load_clip(name: str | Path, device: torch.device | str = "cpu") -> Clip:
    """:func:`load_model` for CLIPs. Raises InputError for other models too."""
    model = load_model(name, device=device)
    if not isinstance(model, Clip):
        raise InputError(f"{name} is no CLIP (model_type clip)")
    return model


def init_model(
    config: dict, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Pretrained:
    """A model of the given ``config.json`` content with random weights: matrices normal, biases 0, norms 1.

    A model's ``initial_values`` override these. The weights are drawn on ``device``; each kind of device draws others.
    """
    model = build_model(config, "the given configuration")
    model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            _draw(key, parameter, model.config.initializer_range, generator)
            if key in model.initial_values:
                parameter.fill_(model.initial_values[key])
    return model.eval()


def save_model(
    model: Pretrained,
    folder: str | Path,
    max_shard_bytes: int = SHARD_BYTES,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes ``model`` as a directory that ``load_model`` and ``transformers`` read. tensors: replace its weights.

    The other files of the directory it was loaded from (tokenizer, chat template, generation settings) are copied. A
    merged adapter is part of the weights. Everything is written to a directory beside the target, which then takes its
    place. Raises InputError if an adapter is not merged, or if the target exists and is not a model directory.
    """
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise InputError("the weights of the model are quantised: load it without that to save it")
    if any(not layer.merged for layer in lora_layers(model).values()):
        raise InputError("the model has an adapter: merge it before saving the model, or save the adapter alone")
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / "config.json").is_file() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not a model directory; saving would replace it: choose another place")
    with folder_aside(folder) as aside:
        _write_model(model, aside, max_shard_bytes, model.state_dict() if tensors is None else tensors)


def _write_model(model: Pretrained, aside: Path, max_shard_bytes: int, tensors: Mapping[str, Tensor]) -> None:
    tensors = {key: t for key, t in tensors.items() if ".lora_A." not in key and ".lora_B." not in key}
    first = next(iter(tensors.values()))
    config = {**model.config.raw, "torch_dtype": str(first.dtype).removeprefix("torch.")}
    config.pop("dtype", None)  # the newer spelling of the same
    if "architectures" not in config:
        config["architectures"] = [FAMILIES[config["model_type"]][2]]
    (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    source = getattr(model, "source_dir", None)
    if source is not None:
        copy_companions(Path(source), aside)
    write_shards(tensors.items(), aside, max_shard_bytes)


def copy_companions(source: Path, folder: Path) -> None:
    """Copies the files that belong to a model beside its weights, those that ``source`` has."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _draw(key: str, parameter: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Fills a new parameter: matrices and embeddings normal, biases 0, norms 1."""
    if parameter.dim() >= 2 or key.endswith("_embedding"):
        return parameter.normal_(0.0, std, generator=generator)
    return parameter.fill_(0.0 if key.endswith(".bias") else 1.0)


def build_model(raw: dict, where: str | Path) -> Pretrained:
    """The network of a ``config.json`` on the meta device, without memory for its parameters.

    where: names the configuration in errors. Raises InputError for a family or setting that is not supported.
    """
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(kind, str):
        raise InputError(f"{where}: config.json names no model_type")
    if kind in OWN_FORMS:
        raise InputError(
            f"{where} has LLaVA's own form ({kind}): convert it first, with python -m mint.convert {where} --out DIR"
        )
    if kind not in FAMILIES and not _add_family(kind):
        known = ", ".join(FAMILIES)
        raise InputError(f"{where}: model_type {kind!r} is not supported; the supported families are {known}")
    network, settings, _ = FAMILIES[kind]
    checked = check_config(raw, where)
    try:
        config = settings.from_dict(checked)
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:  # a setting of another form
        raise InputError(f"{where}: config.json does not describe a {kind} model ({error!r:.200})") from None
    with torch.device("meta"):
        return network(config)


def _add_family(kind: str) -> bool:
    """Adds ``FAMILY`` of ``mint/models/KIND.py`` to ``FAMILIES``; returns False if there is none."""
    name = f"mint.models.{kind}"
    if not kind.isidentifier() or importlib.util.find_spec(name) is None:
        return False
    family = getattr(importlib.import_module(name), "FAMILY", None)
    if family is not None:
        FAMILIES[kind] = family
    return family is not None


def placed_tensors(
    model: Pretrained, stored: Iterable[Stored], where: str | Path, skip: tuple[str, ...] = ()
) -> Iterator[tuple[str, Tensor]]:
    """(the model's name, the tensor) of every stored tensor, read one at a time.

    where: names the checkpoint in errors. skip: prefixes of names that are not read and may be missing.
    Raises InputError for a tensor that the model has no place for or of another shape, and after the last one if any
    of the model's is missing.
    """
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    seen: set[str] = set()
    for path, name, read in stored:
        key = current_name(model, name)
        if key.startswith(skip):
            continue
        if key not in expected:
            if _is_harmless(key, model):
                continue
            kind = model.config.raw["model_type"]
            raise InputError(f"{path} holds {name!r}, which this {kind} model has no place for")
        try:
            tensor = read()
        except SafetensorError as error:
            raise InputError(f"{path}: {key} cannot be read: {error}") from None
        if not tensor.dtype.is_floating_point:
            raise InputError(f"{path}: {key} holds {tensor.dtype}, not floating-point numbers")
        if tensor.shape != expected[key]:
            raise InputError(f"{path}: {key} is {tuple(tensor.shape)}, config.json asks for {tuple(expected[key])}")
        seen.add(key)
        yield key, tensor
    missing = [key for key in expected if key not in seen and not key.startswith(skip)]
    if missing:
        raise InputError(f"{where} lacks weights: {some(missing, 5)}")


def stored_tensors(folder: Path, name: str | Path | None = None, shapes_only: bool = False) -> Iterator[Stored]:
    """Every tensor of a directory's safetensors files.

    name: the hub id that the directory is a copy of, for errors. shapes_only: the tensors are on the meta device, and
    only the headers of the files are read. Raises InputError for missing or damaged files.
    """
    if (folder / INDEX).is_file():
        files = indexed_files(folder / INDEX)
    else:
        files = [folder / SINGLE]
        pickled = [] if files[0].is_file() else pickled_weights(list_files(name or folder))
        if pickled:
            raise InputError(
                f"{name or folder} has pickled weights only ({', '.join(pickled[:3])}), which can run code and are not "
                f"loaded: convert them with python -m mint.convert {name or folder} --out DIR, then load DIR"
            )
    for path in files:
        if not path.is_file():
            raise InputError(f"{path} is missing")
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():
                    if shapes_only:
                        yield path, key, functools.partial(torch.empty, file.get_slice(key).get_shape(), device="meta")
                        continue
                    yield path, key, functools.partial(file.get_tensor, key)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged or not a safetensors file: {error}") from None


def indexed_files(path: Path) -> list[Path]:
    """The files beside an index that it names. Raises InputError if it is no index."""
    placed = read_json(path).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise InputError(f"{path} has no weight_map that says which file holds a tensor")
    files = sorted({path.parent / Path(name).name for name in placed.values()})
    for file in files:
        check_name(f"{path} names a file", file)
    return files


def _is_harmless(key: str, model: Pretrained) -> bool:
    """Tensors that follow from others and that some files store: a tied head, rotary frequencies, positions."""
    tied = key == "lm_head.weight" and getattr(model.config, "tie_word_embeddings", False)
    return tied or key.endswith(("rotary_emb.inv_freq", ".position_ids"))


def _assign(model: nn.Module, key: str, tensor: Tensor) -> None:
    module, _, name = key.rpartition(".")
    owner = model.get_submodule(module)
    if isinstance(owner, QuantizedLinear) and name == "weight":
        owner.load(tensor)
    elif name in owner._parameters:
        owner._parameters[name] = nn.Parameter(tensor)
    else:
        owner._buffers[name] = tensor


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, limit: int = SHARD_BYTES) -> int:
    """Writes (name, tensor) pairs as safetensors files of at most ``limit`` bytes, with an index if there are several.

    At most one file's tensors are in memory at a time. Returns how many tensors were written.
    """
    sizes: list[dict[str, int]] = []  # of each shard's tensors
    for shard in _shards(tensors, limit):
        save_file(shard, folder / f"shard-{len(sizes)}", {"format": "pt"})
        sizes.append({key: tensor.nbytes for key, tensor in shard.items()})
    names = [f"model-{i:05d}-of-{len(sizes):05d}.safetensors" for i in range(1, len(sizes) + 1)]
    if len(sizes) == 1:
        names = [SINGLE]
    for number, name in enumerate(names):
        (folder / f"shard-{number}").rename(folder / name)
    if len(sizes) > 1:
        placed = {key: name for name, shard in zip(names, sizes, strict=True) for key in shard}
        index = {"metadata": {"total_size": sum(sum(shard.values()) for shard in sizes)}, "weight_map": placed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return sum(map(len, sizes))


def _shards(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    """Groups of at most ``limit`` bytes, on the CPU; tensors that share memory are copied, as safetensors needs."""
    shard: dict[str, Tensor] = {}
    size = 0
    memory: set[int] = set()
    for key, tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size, memory = {}, 0, set()
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in memory:
            tensor = tensor.clone()
        shard[key] = tensor
        memory.add(tensor.untyped_storage().data_ptr())
        size += tensor.nbytes
    yield shard

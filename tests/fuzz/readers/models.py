"""Model directories: settings, weights, adapters, tokenizers, chat templates."""

from __future__ import annotations

import functools
import io
import json
import random
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from mint.data.chat import load_tokenizer
from mint.data.text_encoder import TextEncoder
from mint.files import read_json
from mint.models import init_model, load_model
from mint.models.checkpoint import build_model
from mint.models.lora import add_lora, load_adapter, save_adapter
from mint.models.pickled import find_source
from tests.data.test_chat import CHATML, write_tokenizer
from tests.fuzz.damage import damage_bytes, damage_json, damage_text, damage_value, dump
from tests.fuzz.readers.inputs import write
from tests.fuzz.readers.registry import reader
from tests.reference import bert_inputs, clip_inputs, llava_inputs, mllama_inputs, qwen3_vl_inputs, qwen_vl_inputs
from tests.reference.vilt_inputs import TINY as VILT
from tests.reference.weights import TINY_LLAMA

CONFIGS = (TINY_LLAMA, clip_inputs.TINY, VILT, llava_inputs.TINY, mllama_inputs.TINY, qwen_vl_inputs.TINY)
CONFIGS += (qwen3_vl_inputs.TINY, bert_inputs.TINY)


@reader
def configs(rng: random.Random, folder: Path):
    write(folder, "config.json", damage_json(rng, rng.choice(CONFIGS)))
    return build_model(read_json(folder / "config.json"), folder)


@functools.cache
def small_model() -> tuple[dict, dict[str, torch.Tensor]]:
    config = {**TINY_LLAMA, "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 16}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    return config, init_model(config).state_dict()


@reader
def weights(rng: random.Random, folder: Path):
    config, tensors = small_model()
    write(folder, "config.json", dump(config))
    kind = rng.randrange(3)
    if kind == 0:
        save_file(tensors, folder / "model.safetensors")
        path = folder / "model.safetensors"
        path.write_bytes(damage_bytes(rng, path.read_bytes()))
    elif kind == 1:
        save_file(tensors, folder / "part.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "part.safetensors")}
        write(folder, "model.safetensors.index.json", damage_json(rng, index))
    else:
        file = io.BytesIO()
        torch.save({"state_dict": tensors}, file, _use_new_zipfile_serialization=rng.random() < 0.7)
        path = write(folder, "pytorch_model.bin", damage_bytes(rng, file.getvalue()))
        return [read() for _, _, read in find_source(path).tensors()]
    return load_model(folder)


@reader
def adapters(rng: random.Random, folder: Path):
    config, _ = small_model()
    torch.manual_seed(0)
    model = add_lora(init_model(config), rank=2)
    save_adapter(model, folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        path = folder / name
        if rng.random() < 0.6:
            json_file = path.suffix == ".json"
            path.write_bytes(
                damage_json(rng, json.loads(path.read_bytes()))
                if json_file
                else damage_bytes(rng, path.read_bytes(), 1)
            )
    return load_adapter(init_model(config), folder)


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is <|im_end|> it?"}]


@functools.cache
def good_tokenizer(folder: str) -> tuple[dict, dict]:
    place = Path(folder)
    place.mkdir(exist_ok=True)
    write_tokenizer(place, "chatml", chat_template=CHATML, eos_token="<|im_end|>")
    return tuple(json.loads((place / name).read_bytes()) for name in ("tokenizer.json", "tokenizer_config.json"))


@reader
def tokenizers(rng: random.Random, folder: Path):
    content, settings = good_tokenizer(str(Path(tempfile.gettempdir()) / "mint-fuzz-tokenizer"))
    if rng.random() < 0.5:
        content = {
            **content,
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "x"}]},
        }
        content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    both = rng.randrange(3)
    damaged = dump(content)
    if both != 1 and rng.random() < 0.7:  # all but the vocabulary, which would take most of the damage
        model = {key: value for key, value in content["model"].items() if key != "vocab"}
        changed = damage_value(rng, {**content, "model": model}, 2)
        if isinstance(changed, dict) and isinstance(changed.get("model"), dict):
            changed["model"].setdefault("vocab", content["model"]["vocab"])
        damaged = dump(changed, rng)
    elif both != 1:
        damaged = damage_json(rng, content)
    write(folder, "tokenizer.json", damaged)
    write(folder, "tokenizer_config.json", damage_json(rng, settings) if both != 0 else dump(settings))
    if rng.random() < 0.2:
        return TextEncoder(folder, 16).encode("a cyst")
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode_prompt(MESSAGES) + tokenizer.encode_answer("A cyst.")
    return tokenizer.decode(ids)


PIECES = (
    "{% for i in range(9) %}{{ m.content }}{% endfor %}",
    "{% set x = 'ab' * 99 %}{{ x }}",
    "{{ messages }}",
    "{{ messages | tojson(indent=4) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ raise_exception('no') }}",
    "{{ 9 ** 9 ** 3 }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{{ undefined.name }}",
    "{{ '%99999d' % 1 }}",
    "{{ '\\ud800' }}",
    "{% if m %}{% break %}{% endif %}",
    "{{ m.content | center(99999) | upper }}",
    "{{ [messages] * 99 | length }}",
    "{% include 'x' %}",
    "{{ cycler.__init__.__globals__ }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(20) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
)


@reader
def templates(rng: random.Random, folder: Path):
    content, settings = good_tokenizer(str(Path(tempfile.gettempdir()) / "mint-fuzz-tokenizer"))
    write(folder, "tokenizer.json", dump(content))
    write(folder, "tokenizer_config.json", dump(settings))
    places = [i + 2 for i in range(len(CHATML)) if CHATML[i : i + 2] in ("%}", "}}")]
    at = rng.choice([0, *places])
    text = CHATML[:at] + rng.choice(PIECES) + CHATML[at:] if rng.random() < 0.7 else damage_text(rng, CHATML, PIECES, 2)
    write(folder, "chat_template.jinja", damage_bytes(rng, text.encode(), 1) if rng.random() < 0.1 else text.encode())
    return load_tokenizer(folder).encode_chat(MESSAGES)

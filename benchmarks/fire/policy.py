"""The policies that all rows start from: LLaVAs whose tower sees, taught on balanced patients and then on the ward.

The tower learns first (``tower``); what a linear probe reads from it is written to ``probes.md``. Then all weights
learn to describe balanced patients, and to answer questions about those of the ward. The decoder is a tiny one that
gives short answers, or a pretrained Llama that writes sentences of some 13 words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer

from benchmarks.fire.probe import probe_radiographs, probes_table
from benchmarks.fire.tower import FACTS, teach_radiographs
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.processors.clip import ClipImageProcessor
from mint.data.template import LLAMA3_TEMPLATE
from mint.demo.arms import load_train
from mint.demo.radiograph_demo import TEACH, write_lessons
from mint.demo.stages import CPU, Hardware, load_student, teach
from mint.demo.tiny_model import IMAGE
from mint.errors import InputError
from mint.files import folder_aside, read_json, write_aside
from mint.models import init_model, load_language_model, save_model
from mint.models.checkpoint import copy_companions
from mint.models.llava import Llava
from mint.synthetic.populations import BALANCED, WARD
from mint.synthetic.radiograph_set import LONG, SHORT

CHATML_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}"
    "{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|image|>' }}{%- else %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
TEMPLATES = {"<|im_start|>": CHATML_TEMPLATE, "<|start_header_id|>": LLAMA3_TEMPLATE}  # by a token of the decoder
SIGHT = 20_000, 3000  # radiographs that the tower learns from, and steps
# Of a pretrained decoder, in both stages; the projector starts from random weights.
PRETRAINED: dict[str, Any] = {"batch_size": 16, "lr": 3e-4, "warmup": 0.05, "save_every": 50}
STEPS, PRETRAINED_STEPS = (1500, 300), (300, 80)  # describing, answering; of the tiny decoder, of a pretrained one


def teach_policy(folder: Path, decoder: Path | None = None, hardware: Hardware = CPU) -> Path:
    """The policy's directory. What was finished in ``folder`` before is not done again; a stopped stage goes on.

    decoder: a pretrained, instruction-tuned Llama. Raises InputError as ``read_decoder``.
    """
    model = folder / "model"
    if model.is_dir():
        return model
    if not (folder / "lessons.jsonl").is_file():
        with folder_aside(folder) as aside:
            write_lessons(aside, BALANCED, WARD, LONG if decoder else SHORT)
    sighted = give_sight(folder / "blank", folder, hardware.device)
    start = join(sighted, decoder, folder / "joined") if decoder else sighted
    recipe, lengths = (PRETRAINED, PRETRAINED_STEPS) if decoder else (TEACH, STEPS)
    first, second = (recipe | {"steps": steps} | hardware._asdict() for steps in lengths)
    described = folder / "described"
    if not described.is_dir():
        teach(start, folder / "descriptions.jsonl", first, load_train(), described)
    return teach(described, folder / "lessons.jsonl", second, load_train(), model)


def give_sight(blank: Path, folder: Path, device: str) -> Path:
    """The model ``blank`` with a tower that has learned to see; writes ``probes.md``."""
    sighted = folder / "sighted"
    if not sighted.is_dir():
        model, processor = cast(Llava, load_student(str(blank), None, Hardware(device))), load_processor(blank)
        teach_radiographs(model, cast(ClipImageProcessor, processor), *SIGHT)
        table = probes_table(probe_radiographs(model, ImageReader(processor), folder / "probes"), list(FACTS))
        print(table, flush=True)
        write_aside(folder / "probes.md", table + "\n")
        save_model(model, sighted)
    return sighted


def read_decoder(decoder: Path) -> tuple[Tokenizer, dict, str]:
    """(tokenizer, config.json, a chat template for turns with images) of a pretrained decoder.

    Raises InputError for a directory without them, or a decoder whose chat template is not known.
    """
    raw, file = read_json(decoder / "config.json"), decoder / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"--decoder {decoder} has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))
    templates = [template for token, template in TEMPLATES.items() if tokenizer.token_to_id(token) is not None]
    if not templates:
        raise InputError(f"--decoder {decoder}: its tokenizer has none of the tokens {', '.join(TEMPLATES)}")
    return tokenizer, raw, templates[0]


def join(sighted: Path, decoder: Path, target: Path) -> Path:
    """Writes a LLaVA of the tower of ``sighted``, a random projector, and a pretrained decoder; returns ``target``.

    Raises InputError as ``read_decoder``.
    """
    if target.is_dir():
        return target
    tokenizer, raw, template = read_decoder(decoder)
    tokenizer.add_special_tokens([IMAGE])
    tower, words = cast(Llava, load_language_model(sighted)), load_language_model(decoder)
    size = max(raw["vocab_size"], tokenizer.get_vocab_size())
    config = {
        **{"model_type": "llava", "image_token_index": tokenizer.token_to_id(IMAGE)},
        **{"tie_word_embeddings": words.config.tie_word_embeddings, "text_config": {**raw, "vocab_size": size}},
        "vision_config": tower.config.raw["vision_config"],
    }
    model = cast(Llava, init_model(config))
    model.tower.load_state_dict(tower.tower.state_dict())
    with torch.no_grad():
        for name, tensor in words.state_dict().items():
            target_name = name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name
            model.get_parameter(target_name)[: len(tensor)] = tensor  # the vocabulary may have grown
    with folder_aside(target) as aside:
        save_model(model, aside)
        write_companions(aside, sighted, decoder, tokenizer, template)
    return target


def write_companions(target: Path, sighted: Path, decoder: Path, tokenizer: Tokenizer, template: str) -> None:
    """The tokenizer's and the image processor's files."""
    copy_companions(decoder, target)
    (target / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {**read_json(decoder / "tokenizer_config.json"), "chat_template": template}
    for name, content in (
        ("tokenizer_config.json", settings),
        ("preprocessor_config.json", read_json(sighted / "preprocessor_config.json")),
    ):
        (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

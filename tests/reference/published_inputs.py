"""Model directories in their published layout, complete with drawn weights, and the inputs they are compared on.

The configuration, processor, tokenizer and template files come from the folder of real data beside the project; the
weights are drawn and stored under the names that the published files use, which are older than today's.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.reference.mllama_inputs import picture
from tests.reference.weights import draw

HERE = Path(__file__).parent
SEED, RANK, ALPHA = 89, 4, 8
MODEL_OLD = [(r"^lm_head\.", "language_model.lm_head."), (r"^model\.language_model\.", "language_model.model.")]
WRITERS = {  # folder -> from today's parameter names to the published ones, in order
    "qwen25": [(r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")],
    "qwen3": [],
    "llava": [*MODEL_OLD, (r"^model\.vision_tower\.", "model.vision_tower.vision_model."), (r"^model\.", "")],
    "mllama": [*MODEL_OLD, (r"^model\.", "")],
}
ENCODERS = ("clip", "clip_dict", "vilt")
TOKENIZERS = {"qwen3": "qwen25"}  # folders that share another's tokenizer.json
PICTURE = (150, 97)  # width, height
NEW_TOKENS = 8
EVERY = 97  # every so many logits are kept
QUESTION = "Which organ is shown?"
CHOSEN, REJECTED = "The liver, seen from below.", "The left lung."
TURNS = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "What is a nevus?"},
    {"role": "assistant", "content": "A mole."},
    {"role": "user", "content": "And a naevus?"},
]


def copy_files(source: Path, name: str, folder: Path) -> None:
    """The published files of ``name`` in ``folder``, with an unpacked tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (source / name).iterdir():
        if path.suffix != ".gz":
            shutil.copyfile(path, folder / path.name)
    packed = source / TOKENIZERS.get(name, name) / "tokenizer.json.gz"
    if packed.is_file():
        (folder / "tokenizer.json").write_bytes(gzip.decompress(packed.read_bytes()))


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Norms around 1, open gates, matrices large enough for the image to matter."""
    if "norm" in name and name.endswith("weight") or re.search(r"layrnorm|layernorm", name) and name.endswith("weight"):
        return draw(name, shape, SEED, std=0.1, mean=1.0)
    is_gate = "gate" in name and "proj" not in name
    return draw(name, shape, SEED, std=0.06, mean=0.7 if is_gate else 0.0)


def write_weights(folder: Path, shapes: dict[str, list[int]], rename: list[tuple[str, str]]) -> None:
    """model.safetensors with drawn weights, ``shapes`` by today's names, under the published ones."""
    tensors = {}
    for name, shape in shapes.items():
        value, stored = drawn(name, tuple(shape)), name
        for pattern, replacement in rename:
            stored = re.sub(pattern, replacement, stored)
        tensors[stored] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def vilt_shapes(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """Those of the published file: the encoder's, and a head for masked words that classifiers have no use for."""
    return {f"vilt.{name}": shape for name, shape in shapes.items()} | {"mlm_score.bias": [30522]}


def sample(pixels: Tensor) -> Tensor:
    """About 2,000 of the values."""
    flat = pixels.float().flatten()
    return flat[:: max(1, flat.numel() // 2000)].contiguous()


def image():
    return picture(PICTURE)


def questions() -> list[dict]:
    """The conversation with an image, as lists of parts."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]


def record_lines(folder: Path) -> Path:
    """A preference file with one pair on the image, written to ``folder``."""
    image().save(folder / "image.png")
    pair = {"id": "liver", "prompt": [{"role": "user", "content": QUESTION}], "images": ["image.png"]}
    path = folder / "pairs.jsonl"
    path.write_text(json.dumps({**pair, "chosen": CHOSEN, "rejected": REJECTED}) + "\n")
    return path


def adapter(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Factors of an adapter, both non-zero."""
    return {name: draw(name, tuple(shape), SEED + 1, std=0.05) for name, shape in shapes.items()}


def orpo_and_dpo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Both losses in plain float64 from token log-probabilities [L] of one pair, beta 0.1 (ORPO's NLL: the answer)."""
    chosen, rejected, ref_chosen, ref_rejected = (x.double() for x in (chosen, rejected, ref_chosen, ref_rejected))
    means = chosen.mean(), rejected.mean()
    odds = [mean - torch.log1p(-mean.exp()) for mean in means]
    orpo = -means[0] - 0.1 * torch.nn.functional.logsigmoid(odds[0] - odds[1])
    margin = (chosen.sum() - ref_chosen.sum()) - (rejected.sum() - ref_rejected.sum())
    return orpo, -torch.nn.functional.logsigmoid(0.1 * margin)

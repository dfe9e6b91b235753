"""recipes/: every file is a valid configuration with the values that the papers state, its commands have real flags."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from mint.config import TrainConfig
from mint.data.cases import HEADER, SYSTEM, diagnosis_messages
from mint.data.prompts import read_prompt
from mint.flags import parse
from mint.losses import load_loss
from mint.models import init_model
from mint.models.lora import add_lora, lora_layers
from tests.reference import mllama_inputs, qwen_vl_inputs
from tests.test_docs import check_command

FOLDER = Path(__file__).parents[1] / "recipes"
COSINE = {"schedule": "cosine"}
# What the papers state, by recipe, written down here a second time.
MINT = COSINE | {"lr": 5e-5, "warmup": 0.1, "weight_decay": 0.0, "max_grad_norm": 0.3, "checkpoint_activations": True}
MINT_LORA = {"lora_rank": 256, "lora_alpha": 128.0, "lora_dropout": 0.05}
DISEASE = MINT | {"model": "meta-llama/Llama-3.2-3B-Instruct", "batch_size": 9, "epochs": 50.0, "max_length": 1400}
FIRE = COSINE | {"lr": 1e-6, "warmup": 0.0, "weight_decay": 0.0, "epochs": 1.0, "rslora": True, "beta": 0.1}
FIRE |= {"lora_rank": 128, "lora_alpha": 256.0, "lora_dropout": 0.05, "lora_targets": "all-linear", "pairs a step": 8}
FULL = FIRE | {"loss": "fire", "alpha": 0.01, "gamma": 0.1, "lam": 0.5}
PAPERS = {
    "mint_disease": DISEASE | MINT_LORA | {"loss": "orpo", "beta": 0.1, "grad_accum": 1, "nll_over": "sequence"},
    "mint_disease_sft": DISEASE | MINT_LORA | {"loss": "sft", "grad_accum": 2},
    "mint_disease_dpo": DISEASE | {"loss": "dpo", "beta": 0.1, "grad_accum": 4},
    "mint_disease_fire": DISEASE
    | {"loss": "fire", "beta": 0.1, "alpha": 0.01, "gamma": 0.0, "lam": 0.5, "grad_accum": 4, "epochs": 1.0},
    "mint_tissue": MINT | MINT_LORA | {"loss": "orpo", "beta": 0.1, "grad_accum": 8, "nll_over": "sequence"},
    "fire_slake": FULL,
    "fire_vqa_rad": FULL,
    "fire_iu_xray": FULL,
    "fire_mask_dpo": FIRE | {"loss": "mask-dpo"},
    "fire_rrpo": FULL | {"gamma": 0.0, "lam": 1.0},
    "fire_mdpo": FIRE | {"loss": "mdpo"},
    "rrpo": COSINE
    | {"loss": "rrpo", "beta": 0.1, "alpha": 0.01, "lr": 5e-6, "lora_rank": 128, "lora_alpha": 256.0, "epochs": 1.0},
}


def recipe(name):
    return parse(TrainConfig, ["--config", str(FOLDER / f"{name}.toml")], "")


def test_every_recipe_is_checked():
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(PAPERS)


@pytest.mark.parametrize("name", PAPERS)
def test_values_are_those_of_the_paper(name):
    config = recipe(name)
    values = vars(config) | {"pairs a step": config.batch_size * config.grad_accum}
    assert {key: values[key] for key in PAPERS[name]} == PAPERS[name]


@pytest.mark.parametrize("name", PAPERS)
def test_the_loss_takes_its_settings(name):
    config = recipe(name)
    needs = load_loss(config.loss, config.loss_options()).needs
    assert needs.corrupted_image == (config.data == "corrupted.jsonl")
    assert config.nll_over == "response" or needs.prompt


@pytest.mark.parametrize("name", PAPERS)
def test_the_header_has_source_data_and_command(name):
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    assert re.search(r"^# .*arXiv \d{4}\.\d{5}", text) and "\n# Data: " in text
    assert f"\n# Run: python train.py --config recipes/{name}.toml " in text
    assert max(map(len, text.splitlines())) <= 120


FILES = sorted(FOLDER.rglob("*.toml"))


def comment_commands(path):
    """The calls of Python in a file's comments, as words; a backslash continues a line."""
    lines = [
        line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    ]
    text = re.sub(r"\\\n", "", "\n".join(lines))
    return [shlex.split(found) for found in re.findall(r"(?m)^(?:[A-Z][a-z]+: )?python (.+)$", text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_commands_in_comments_parse(path, monkeypatch, capsys):
    found = comment_commands(path)
    text = "".join(line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    assert len(found) == len(re.findall(r"\w+\.py\b", text)) >= 1  # no program is named without a complete command
    for words in found:
        check_command(words[0], words, monkeypatch, capsys)


def test_lists_are_as_long_as_the_papers():
    """Ten likely and fifteen unlikely diseases, five and five tissues, for pairs and scores alike."""
    for name, lengths in (("mint_disease", ["10", "15"]), ("mint_tissue", ["5", "5"])):
        pairs, _, scores = comment_commands(FOLDER / f"{name}.toml")
        for words in (pairs, scores):
            assert [words[words.index(flag) + 1] for flag in ("--top-k", "--bottom-q")] == lengths


def test_the_prompt_of_the_paper():
    prompt = read_prompt(FOLDER / "prompts" / "mint_disease.toml", "", ("note", "genes", "passages"), ("note",))
    system, user = diagnosis_messages("A note.", prompt=prompt)
    assert system == {"role": "system", "content": SYSTEM} and prompt.header == HEADER
    assert user["content"].startswith("A note.\n\n") and f"\n\n{HEADER}\n1. 'Disease1'\n2. " in user["content"]


def test_a_rate_given_on_the_command_line_wins():
    argv = ["--config", str(FOLDER / "rrpo.toml"), "--lr", "2e-5", "--beta", "0.9", "--model", "M"]
    config = parse(TrainConfig, argv, "")
    assert (config.lr, config.beta, config.model, config.alpha) == (2e-5, 0.9, "M", 0.01)


@pytest.mark.parametrize("name", [name for name in PAPERS if name.startswith("fire_")])
def test_adapters_of_fire_leave_tower_and_projector_alone(name):
    model = init_model(qwen_vl_inputs.TINY)
    covered = lora_layers(add_lora(model, rank=2, targets=recipe(name).lora_targets))
    assert covered and all(".language_model." in name for name in covered)


def test_the_tissue_adapter_covers_decoder_tower_projector_and_head():
    """As the names of the paper's targets do: the tower's attention as well as its feed-forward layers."""
    config = recipe("mint_tissue")
    model = init_model(mllama_inputs.TINY)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    covered = set(lora_layers(add_lora(model, rank=2, targets=config.lora_targets)))
    assert covered == linear
    tower = [name.removeprefix("model.vision_model.") for name in covered if "vision_model" in name]
    depths = {"transformer": range(mllama_inputs.VISION["num_hidden_layers"])}
    depths["global_transformer"] = range(mllama_inputs.VISION["num_global_layers"])
    layers = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.fc1", "mlp.fc2")
    blocks = [f"{part}.layers.{depth}" for part, found in depths.items() for depth in found]
    assert sorted(tower) == sorted(f"{block}.{layer}" for block in blocks for layer in layers)
    for part in ("cross_attn.o_proj", "mlp.down_proj", "multi_modal_projector", "lm_head"):
        assert any(name.endswith(part) for name in covered), part

"""The model card of a result."""

# ruff: noqa: F811

import json

import torch

import mint
from mint.models import load_model
from mint.models.lora import load_adapter
from tests.test_train import rows, run, setting, settings  # noqa: F401 (a fixture)


def read_card(folder):
    """(metadata, text) of a README.md; a value is JSON, which YAML contains, or a plain word."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    metadata = dict(line.split(": ", 1) for line in front.splitlines())
    return {key: json.loads(value) if value[0] in '["' else value for key, value in metadata.items()}, text


def test_the_card_of_an_adapter(setting, tmp_path):
    more = ("--loss", "dpo", "--beta", "0.2", "--steps", "2", "--eval-data", f"{setting}/eval.jsonl")
    run(*settings(setting, tmp_path / "run", *more))
    metadata, text = read_card(tmp_path / "run" / "adapter")
    assert metadata == {
        "base_model": f"{setting}/model",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "preference-optimization", "dpo"],
    }
    assert "* loss: dpo, beta 0.2, label_smoothing 0.0, kind sigmoid\n" in text
    assert "* data: 24 preference pairs of `pairs.jsonl`, evaluated on `eval.jsonl`\n" in text
    assert f"| eval/loss | {rows(tmp_path / 'run')[-1]['eval/loss']:.4g} |\n" in text
    assert f"mint {mint.__version__}, PyTorch {torch.__version__}" in text
    for part in ("PeftModel.from_pretrained(", "load_adapter(load_model(", "vllm serve ", "lora_rank = 4\n"):
        assert part in text
    trained, bounds = text.index("## What it was trained on"), text.index("## What it must not be used for")
    assert trained < text.index("* base model: ") < text.index("* data: ") < bounds < text.index("## How to load it")
    for part in ("no medical device", "Do not use it to diagnose", "can repeat texts that it was trained on"):
        assert bounds < text.index(part) < text.index("## How to load it")
    load_adapter(load_model(setting / "model"), tmp_path / "run" / "adapter")


def test_the_card_of_a_model(setting, tmp_path):
    run(*settings(setting, tmp_path / "run", "--loss", "sft", "--full", "--steps", "1"))
    metadata, text = read_card(tmp_path / "run" / "model")
    assert metadata["library_name"] == "transformers" and metadata["tags"] == ["preference-optimization", "sft"]
    assert "* loss: sft\n" in text and 'load_model("DIR")' in text and "vllm" not in text
    load_model(tmp_path / "run" / "model")

"""The result of a run: the adapter or model of the last or the best step, with a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import mint
from mint import parallel
from mint.config import TrainConfig
from mint.files import write_aside
from mint.flags import loss_settings, to_toml
from mint.hub import is_dataset_id
from mint.models.llama import CausalLM
from mint.models.lora import lora_layers
from mint.models.serving import vllm_command
from mint.training.checkpoints import check_checkpoint, step_of
from mint.training.run_directory import RunDirectory, load_weights
from mint.training.summary import summarize

BOUNDS = (
    "* It is for research. It is no medical device, and nobody has approved it as one.",
    "* Do not use it to diagnose, to rule out a disease, to treat or to triage. Its answers can be wrong.",
    "* Do not show its answers to patients, or to clinicians as advice about a patient.",
    "* Preference pairs teach the habits of the teacher or editor that made them, its mistakes included.",
    "* It can repeat texts that it was trained on. If the pairs are of patients, share the weights only under the",
    "  terms of the pairs (`python -m mint.privacy scan FILE` warns of identifiers in them).",
    "* It was not tested on other populations, hospitals, languages or devices than those of its evaluation.",
)


def save_result(run: RunDirectory, config: TrainConfig, model: CausalLM, pairs: int, step: int) -> None:
    """Saves the weights of the last step, or those of the best with ``--best``, and prints where and how to serve them.

    pairs: number of training pairs. step: the last one. ``model`` has the saved weights afterwards.
    """
    best, rows = parallel.on_main(lambda: run.best_checkpoint(config.best)), run.rows()
    if best is not None:
        step = step_of(best)
        check_checkpoint(best)
        load_weights(best, model)
    result = run.save_result(model)
    if not parallel.is_main():
        return
    serve = vllm_command(model, result) if lora_layers(model) else None
    write_model_card(result, config, pairs, rows, step, model.tower is not None, serve)
    of_best = f" (of step {step}, the best by {config.best})" if best else ""
    print("\n".join(filter(None, [summarize(rows), f"saved {result}{of_best}, metrics and curves in {run.path}"])))
    if serve:
        print(f"serve it with {serve}")


def write_model_card(
    folder: Path,
    config: TrainConfig,
    pairs: int,
    rows: Sequence[Mapping],
    step: int,
    reads_images: bool,
    serve: str | None,
) -> None:
    """Writes ``README.md`` into the folder of an adapter or model.

    pairs: number of training pairs. rows: of ``metrics.jsonl``. step: the one whose weights were saved. reads_images:
    whether the model does. serve: the vLLM command of an adapter, None where there is none.
    """
    assert config.model is not None and config.data is not None  # of a run that has trained
    adapter = not config.full
    settings = {**loss_settings().get(config.loss, {}), **config.loss_options()}
    loss = config.loss + "".join(f", {name} {value}" for name, value in settings.items())
    evaluation: Mapping = next((row for row in reversed(rows) if row["step"] == step and "eval/loss" in row), {})
    metrics = {name: value for name, value in evaluation.items() if name.startswith("eval/") and value is not None}
    tags = [*(["lora"] if adapter else []), "preference-optimization", Path(config.loss).stem]
    data, held_out = (
        name if is_dataset_id(name) else Path(name).name for name in (config.data, config.eval_data or "")
    )
    lines = [
        "---",
        f"base_model: {json.dumps(config.model)}",
        f"library_name: {'peft' if adapter else 'transformers'}",
        f"pipeline_tag: {'image-text-to-text' if reads_images else 'text-generation'}",
        f"tags: {json.dumps(tags)}",
        "---",
        f"# {'Adapter' if adapter else 'Model'} of a preference optimisation run",
        "",
        "## What it was trained on",
        "",
        f"* base model: `{config.model}`",
        f"* loss: {loss}",
        f"* data: {pairs} preference pairs of `{data}`" + (f", evaluated on `{held_out}`" if held_out else ""),
        f"* saved at step {step}; {summarize([row for row in rows if row['step'] <= step]) or 'no metrics'}",
        f"* versions: mint {mint.__version__}, PyTorch {torch.__version__}",
        *(["", "| metric | value |", "|---|---|"] if metrics else []),
        *(f"| {name} | {value:.4g} |" for name, value in metrics.items()),
        "",
        "## What it must not be used for",
        "",
        *BOUNDS,
        "",
        "## How to load it",
        "",
        *_loading(config.model, adapter, reads_images, serve),
        "## Settings",
        "",
        "```toml",
        to_toml(config).rstrip(),
        "```",
    ]
    write_aside(folder / "README.md", "\n".join(lines) + "\n")


def _loading(base: str, adapter: bool, reads_images: bool, serve: str | None) -> list[str]:
    if not adapter:
        return ["```python", "from mint import load_model", "", 'model = load_model("DIR")', "```", ""]
    family = "AutoModelForImageTextToText" if reads_images else "AutoModelForCausalLM"
    blocks = {
        "With this project": [
            "from mint import load_adapter, load_model",
            "",
            f'model = load_adapter(load_model("{base}"), "DIR")',
        ],
        "With PEFT": [
            "from peft import PeftModel",
            f"from transformers import {family}",
            "",
            f'model = PeftModel.from_pretrained({family}.from_pretrained("{base}"), "DIR")',
        ],
    }
    lines = []
    for title, code in blocks.items():
        lines += [f"{title}, where `DIR` is this folder:", "", "```python", *code, "```", ""]
    return lines + ([f"With vLLM: `{serve}`", ""] if serve else [])

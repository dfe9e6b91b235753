"""The command that serves a trained adapter with vLLM."""

from __future__ import annotations

import shlex
from pathlib import Path

from mint.models.llama import CausalLM
from mint.models.lora import lora_layers

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what every vLLM with LoRA accepts as --max-lora-rank


def vllm_command(model: CausalLM, folder: str | Path) -> str | None:
    """``vllm serve`` with the adapter of ``model`` that was saved in ``folder``, under the name of its run.

    ``--max-lora-rank`` is the smallest accepted value that holds the largest rank. An adapter that reaches the image
    tower or the projector needs ``--enable-tower-connector-lora`` too. None for ranks beyond those that vLLM serves.
    """
    layers, folder = lora_layers(model), Path(folder)
    largest = max(layer.rank for layer in layers.values())
    rank = next((rank for rank in RANKS if rank >= largest), None)
    if rank is None:
        return None
    parts = filter(None, (model.decoder, getattr(model, "lm_head", None)))
    text = {id(module) for part in parts for module in part.modules()}
    name = folder.parent.name if folder.name == "adapter" else folder.name
    command = ["vllm", "serve", model.source_name, "--enable-lora", "--max-lora-rank", str(rank)]
    if any(id(layer) not in text for layer in layers.values()):
        command.append("--enable-tower-connector-lora")
    return shlex.join([*command, "--lora-modules", f"{name}={folder}"])

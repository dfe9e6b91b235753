"""Writes adapters as PEFT saves them, with the logits PEFT computes under them; checks adapters that we saved.

    python tests/reference/make_peft.py                     writes peft_adapters/*/ and peft.safetensors
    python tests/reference/make_peft.py --check DIR         loads DIR, an adapter for the tiny Llama written by
                                                            ``mint.models.lora.save_adapter``, in PEFT and in ours,
                                                            and prints the largest difference of their logits
    python tests/reference/make_peft.py --round-trip        does so with ours saving each adapter of peft_adapters/

Needs torch, transformers and peft; the two checks also need what the project itself needs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from peers import HERE, WEIGHTS_SEED, lora_config, set_adapter, tiny_llama, versions
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from weights import TINY_LLAMA, draw, linear_shapes, reference_adapter, reference_weights

FOLDER = HERE / "peft_adapters"
ADAPTER_SEED = 21
ADAPTERS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"down_proj": 6, "layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"down_proj": 3, "layers.1.self_attn.q_proj": 16},
    },
}


def tokens() -> torch.Tensor:
    """[2, 12] token ids, fixed."""
    return (draw("tokens", (2, 12), 0, std=1000.0).long() % TINY_LLAMA["vocab_size"]).abs()


def ranks(options: dict) -> dict[str, int]:
    """The rank of every adapted layer, worked out here by hand and not by PEFT."""
    targets = options.get("target_modules")
    pattern = options.get("rank_pattern", {})
    names = [n for n in linear_shapes(TINY_LLAMA) if targets is None or n.rpartition(".")[2] in targets]
    return {n: next((r for key, r in pattern.items() if n.endswith("." + key)), 4) for n in names}


@torch.no_grad()
def logits_in_peft(folder: Path) -> torch.Tensor:
    """[2, 12, V] of the tiny Llama under the adapter in ``folder``; fails if PEFT finds no tensor for a layer."""
    model = PeftModel.from_pretrained(tiny_llama(TINY_LLAMA), folder, low_cpu_mem_usage=False).eval()
    unset = [name for name, p in model.named_parameters() if "lora_B" in name and not p.any()]
    if unset:
        raise ValueError(f"PEFT found no tensors for {unset}")
    return model(tokens()).logits


@torch.no_grad()
def logits_in_ours(folder: Path, save_to: Path | None = None) -> torch.Tensor:
    """The same from this project's model, LoRA and loader, which also saves the adapter again to ``save_to``."""
    from mint.models import init_model
    from mint.models.lora import load_adapter, save_adapter

    model = init_model(TINY_LLAMA)
    model.load_state_dict(reference_weights(TINY_LLAMA, WEIGHTS_SEED))
    load_adapter(model, folder)
    if save_to is not None:
        save_adapter(model, save_to)
    return model.eval()(tokens())


def make() -> None:
    """Saves every adapter of ADAPTERS with PEFT, and the logits after loading it back."""
    logits = {"tokens": tokens()}
    for name, options in ADAPTERS.items():
        model = get_peft_model(tiny_llama(TINY_LLAMA), lora_config(4, 8, **options))
        set_adapter(model, reference_adapter(TINY_LLAMA, ADAPTER_SEED, ranks=ranks(options)))
        model.eval().save_pretrained(FOLDER / name)
        (FOLDER / name / "README.md").unlink(missing_ok=True)
        logits[name] = logits_in_peft(FOLDER / name)
        with torch.no_grad():
            if not torch.equal(model(tokens()).logits, logits[name]):
                raise ValueError(f"PEFT's own round trip of {name} changed the logits")
    with torch.no_grad():
        logits["base"] = tiny_llama(TINY_LLAMA)(tokens()).logits
    found = versions("torch", "transformers", "peft")
    metadata = {"versions": json.dumps(found), "weights_seed": str(WEIGHTS_SEED), "adapter_seed": str(ADAPTER_SEED)}
    save_file(logits, HERE / "peft.safetensors", metadata=metadata)
    print(json.dumps(found))


def check(folder: Path) -> float:
    """Prints and returns the largest difference between PEFT's logits and ours."""
    difference = float((logits_in_peft(folder) - logits_in_ours(folder)).abs().max())
    print(f"{folder}: largest difference of logits, PEFT against ours: {difference:.1e}")
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", type=Path, metavar="DIR")
    parser.add_argument("--round-trip", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.check:
        check(arguments.check)
    elif arguments.round_trip:
        with tempfile.TemporaryDirectory() as scratch:
            for name in ADAPTERS:
                logits_in_ours(FOLDER / name, Path(scratch) / name)
                check(Path(scratch) / name)
    else:
        make()


if __name__ == "__main__":
    main()

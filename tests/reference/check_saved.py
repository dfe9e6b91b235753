"""Checks that transformers and PEFT load what this project saves of the vision models, with equal logits.

    python -m tests.reference.check_saved        in an environment with torch, transformers, peft and requirements.txt

For every family: a merged directory through transformers, an adapter on every part through PEFT. Prints the largest
difference of the logits; raises AssertionError beyond 1e-4.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import transformers
from peft import PeftModel

from mint.models import init_model, save_model
from mint.models.lora import add_lora, lora_layers, merge_lora, save_adapter
from tests.reference import llava_inputs, mllama_inputs, qwen3_vl_inputs, qwen_vl_inputs
from tests.reference.make_mllama import cross_mask

ROWS = "rows"
FAMILIES = {
    "LlavaForConditionalGeneration": (llava_inputs, "llama", lambda: {"pixel_values": llava_inputs.pixels()}),
    "MllamaForConditionalGeneration": (mllama_inputs, ROWS, lambda: mllama_inputs.images(ROWS)),
    "Qwen2_5_VLForConditionalGeneration": (qwen_vl_inputs, ROWS, lambda: qwen_vl_inputs.images(ROWS)),
    "Qwen3VLForConditionalGeneration": (qwen3_vl_inputs, ROWS, lambda: qwen3_vl_inputs.images(ROWS)),
}


@torch.no_grad()
def check(kind: str, folder: Path) -> None:
    inputs, name, images = FAMILIES[kind]
    ids, given = inputs.tokens(name), images()
    model = init_model(inputs.TINY)
    model.load_state_dict(inputs.weights({key: parameter.shape for key, parameter in model.named_parameters()}))
    save_model(model, folder / "base")
    add_lora(model, rank=2, alpha=4, targets=inputs.ADAPTED)
    for number, layer in enumerate(lora_layers(model).values()):
        torch.nn.init.normal_(layer.lora_B.weight, std=0.2, generator=torch.Generator().manual_seed(number))
    save_adapter(model, folder / "adapter")
    expected = model(ids, given)
    merge_lora(model, drop=True)
    save_model(model, folder / "merged")
    extra = {"mm_token_type_ids": (ids == inputs.IMAGE).int()} if "Qwen" in kind else {}
    extra |= {"cross_attention_mask": cross_mask(name)} if "Mllama" in kind else {}
    theirs = getattr(transformers, kind)
    merged, base = (
        theirs.from_pretrained(folder / part, dtype=torch.float32, attn_implementation="eager").eval()
        for part in ("merged", "base")
    )
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    for what, network in (("merged", merged), ("adapter", adapted)):
        difference = (network(input_ids=ids, **given, **extra).logits - expected).abs().max().item()
        print(f"{kind} {what}: {difference:.1e} of {expected.abs().max():.1f}")
        assert difference < 1e-4


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            check(kind, Path(place))

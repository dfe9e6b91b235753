"""Writes published.json and published.safetensors: what transformers and PEFT compute from published model directories.

    python -m tests.reference.make_published FOLDER     with torch, transformers, peft and requirements.txt

FOLDER holds the published files (configuration, processor, tokenizer, template), one directory per model. Weights are
drawn (published_inputs.py). For each vision-language model: ids of a conversation with an image and of one without,
pixel values, logits, greedy answers, ORPO's and DPO's loss of a pair under an adapter, the norm of DPO's gradient, and
its loss after one step of gradient descent. For CLIP and ViLT: pixel values and features.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from tests.reference.peers import adapter_parameters
from tests.reference.published_inputs import (
    ALPHA,
    CHOSEN,
    ENCODERS,
    EVERY,
    HERE,
    NEW_TOKENS,
    RANK,
    REJECTED,
    TURNS,
    WRITERS,
    adapter,
    copy_files,
    image,
    orpo_and_dpo,
    questions,
    sample,
    vilt_shapes,
    write_weights,
)

CLASSES = {
    "qwen25": transformers.Qwen2_5_VLForConditionalGeneration,
    "qwen3": transformers.Qwen3VLForConditionalGeneration,
    "llava": transformers.LlavaForConditionalGeneration,
    "mllama": transformers.MllamaForConditionalGeneration,
}
QWEN = {"qwen25": Qwen2_5_VLProcessor, "qwen3": Qwen3VLProcessor}
LEARNING_RATE = {"qwen25": 0.02, "qwen3": 0.02, "llava": 0.02, "mllama": 0.02}
DATE = "26 Jul 2024"  # ours by default
LEAST_GAP = 5e-4  # between the two likeliest tokens, so that rounding cannot change a greedy answer


def parameter_shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


def empty_model(kind: type, folder: Path) -> torch.nn.Module:
    with torch.device("meta"):
        return kind(transformers.AutoConfig.from_pretrained(folder))


def language_model(name: str, source: Path, folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    kind = CLASSES[name]
    copy_files(source, name, folder)
    shapes = parameter_shapes(empty_model(kind, folder))
    write_weights(folder, shapes, WRITERS[name])
    model, loading = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if loading["missing_keys"] or loading["unexpected_keys"]:
        raise ValueError(f"{name}: transformers does not find its weights: {loading}")
    model.eval()
    processor = load_processor(name, folder)
    record, results = {"shapes": shapes}, {}
    # llava's template reads lists of parts alone, mllama's only a string as the system message
    prompts = {"image": questions(), "text": [as_parts(message) for message in TURNS] if name == "llava" else TURNS}
    for what, messages in prompts.items():
        inputs = encode(processor, messages, what == "image")
        record[f"{what}_ids"] = inputs["input_ids"][0].tolist()
        with torch.no_grad():
            results[f"{name}.{what}.logits"] = model(**inputs).logits[0, -1, ::EVERY].contiguous()
        record[f"{what}_answer"], gap = greedy(model, processor, inputs)
        print(f"{name} {what}: {inputs['input_ids'].shape[1]} tokens, {record[f'{what}_answer']!r}, gap {gap:.4f}")
        if what == "image":
            pixels = inputs["pixel_values"].float()
            results[f"{name}.pixels"] = sample(pixels)
            record["pixel_shape"] = list(pixels.shape)
    record |= pair_losses(name, model, processor)
    return record, results


def load_processor(name: str, folder: Path):
    """transformers' processor; of Qwen's, whose loading needs torchvision for videos, only the part for images."""
    if name not in QWEN:
        return transformers.AutoProcessor.from_pretrained(folder)

    class ImagesOnly(QWEN[name]):
        def check_argument_for_proper_class(self, argument_name, argument):
            return type(argument)

    return ImagesOnly(
        image_processor=transformers.AutoImageProcessor.from_pretrained(folder),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        video_processor=None,
        chat_template=json.loads((folder / "chat_template.json").read_text())["chat_template"],
    )


def as_parts(message: dict) -> dict:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def encode(processor, messages: list[dict], with_image: bool, answer: str | None = None) -> dict[str, torch.Tensor]:
    """The processor's tensors for a conversation that is ready to answer, or that ends with ``answer``."""
    if answer is not None:
        messages = [*messages, as_parts({"role": "assistant", "content": answer})]
    opens = answer is None
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens, date_string=DATE)
    text = text if opens else text.rstrip()  # a space that llava's template writes after an answer is no part of it
    bos = processor.tokenizer.bos_token
    doubled = bool(bos) and text.startswith(bos)  # the template writes it, so the tokenizer must not
    return dict(processor(
        text=text, images=[image()] if with_image else None, return_tensors="pt", add_special_tokens=not doubled
    ))  # fmt: skip


@torch.no_grad()
def greedy(model, processor, inputs: dict[str, torch.Tensor]) -> tuple[str, float]:
    out = model.generate(
        **inputs,
        do_sample=False,
        repetition_penalty=1.0,
        temperature=None,
        top_p=None,
        max_new_tokens=NEW_TOKENS,
        output_scores=True,
        return_dict_in_generate=True,
    )
    new = out.sequences[0, inputs["input_ids"].shape[1] :]
    best = torch.stack([scores[0].topk(2).values for scores in out.scores])
    gap = float((best[:, 0] - best[:, 1]).min())
    if gap < LEAST_GAP:
        raise ValueError(f"two tokens are nearly as likely ({gap}): draw other weights")
    return processor.tokenizer.decode(new, skip_special_tokens=True), gap


def answer_ids(processor, answer: str) -> list[int]:
    """Ids of an answer after the image's prompt, with the token that ends the turn (by default end of sequence)."""
    prompt = encode(processor, questions(), True)["input_ids"][0].tolist()
    whole = encode(processor, questions(), True, answer)["input_ids"][0].tolist()
    if whole[: len(prompt)] != prompt:
        raise ValueError("the conversation does not begin with its prompt")
    rest, control = whole[len(prompt) :], set(processor.tokenizer.all_special_ids)
    ends = [place for place, token in enumerate(rest) if token in control]
    return rest[: ends[0] + 1] if ends else [*rest, processor.tokenizer.eos_token_id]


def pair_losses(name: str, model, processor) -> dict:
    inputs = encode(processor, questions(), True)
    sides = [answer_ids(processor, answer) for answer in (CHOSEN, REJECTED)]
    targets = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".language_model." in f".{n}"]
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)).eval()
    parameters = adapter_parameters(adapted)
    with torch.no_grad():
        for key, value in adapter({key: p.shape for key, p in parameters.items()}).items():
            parameters[key].copy_(value)

    def logps(ids: list[int]) -> torch.Tensor:
        prompt = inputs["input_ids"]
        whole = torch.cat([prompt, torch.tensor([ids])], 1)
        given = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in given:
                given[key] = torch.cat([given[key], torch.zeros(1, len(ids), dtype=given[key].dtype)], 1)
        if "cross_attention_mask" in given:
            mask = given["cross_attention_mask"]
            given["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, len(ids), -1, -1)], 1)
        logits = adapted(input_ids=whole, attention_mask=torch.ones_like(whole), **given).logits[0]
        scores = logits[prompt.shape[1] - 1 : -1].log_softmax(-1)
        return scores.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)

    with torch.no_grad(), adapted.disable_adapter():
        reference = [logps(ids) for ids in sides]
    orpo, dpo = orpo_and_dpo(*(logps(ids) for ids in sides), *reference)
    dpo.backward()
    norm = torch.stack([p.grad.norm() for p in parameters.values()]).norm()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter -= LEARNING_RATE[name] * parameter.grad
        _, after = orpo_and_dpo(*(logps(ids) for ids in sides), *reference)
        plain, _ = orpo_and_dpo(*reference, *reference)
    print(f"{name}: orpo {plain:.5f}, under the adapter {orpo:.5f}; dpo {dpo:.5f} -> {after:.5f}, gradient {norm:.4f}")
    return {
        "chosen_ids": sides[0],
        "rejected_ids": sides[1],
        "adapter_shapes": {key: list(p.shape) for key, p in parameters.items()},
        "learning_rate": LEARNING_RATE[name],
        "orpo_plain": float(plain),
        "orpo": float(orpo.detach()),
        "dpo": float(dpo.detach()),
        "dpo_after": float(after),
        "gradient_norm": float(norm),
    }


@torch.no_grad()
def encoder(name: str, source: Path, folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    copy_files(source, name, folder)
    kind = transformers.ViltModel if name == "vilt" else transformers.CLIPModel
    model = empty_model(kind, folder)
    shapes = parameter_shapes(model)
    write_weights(folder, vilt_shapes(shapes) if name == "vilt" else shapes, [])
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    made = processor([image()], return_tensors="pt")
    ids = torch.tensor([[101, 2054, 5812, 102]] if name == "vilt" else [[49406, 320, 1125, 49407]])
    out = model(input_ids=ids, **made)
    if name == "vilt":
        features = {"pooled": out.pooler_output}
    else:
        features = {"image": out.image_embeds, "text": out.text_embeds}
    results = {f"{name}.{key}": value.contiguous() for key, value in features.items()}
    results[f"{name}.pixels"] = sample(made["pixel_values"])
    print(f"{name}: pixels {list(made['pixel_values'].shape)}")
    return {"shapes": shapes, "ids": ids.tolist(), "pixel_shape": list(made["pixel_values"].shape)}, results


def main(source: Path) -> None:
    torch.set_num_threads(1)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    records, results = {"versions": versions}, {}
    for name in (*WRITERS, *ENCODERS):
        with tempfile.TemporaryDirectory() as place:
            made = encoder if name in ENCODERS else language_model
            records[name], found = made(name, source, Path(place) / name)
            results |= found
    save_file(results, HERE / "published.safetensors")
    (HERE / "published.json").write_text(json.dumps(records) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""One variant of the vision benchmark in a process of its own, on the same pairs of images, prompts and answers.

``vision_step.py`` starts it and reads the JSON line it prints. The sides:

* ``ours``: a step as ``train.py`` does it; a pair's prompt and image are computed once for both answers.
* ``kept``: the same with the features of a frozen tower from an earlier epoch.
* ``twice``: the plain way with our own model: one sequence for each answer, each with its prompt and image.
* ``plain``: FiRe as in its equations: one sequence for each answer given the clean and the corrupted image, for policy
  and reference, with the logits of every position.
* ``trl``: TRL's DPOTrainer on transformers' LLaVA with PEFT.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from step_worker import BETA, BOS, CLIP, EOS, LEARNING_RATE, Clock, fill, report, stopwatch
from torch import Tensor

IMAGE, PAIRS, SIDE, PATCH, VOCABULARY = 5, 2, 336, 14, 32_000
PROMPT, CHOSEN, REJECTED = 80, 60, 60  # tokens on average, without the image's 576
TEXT = {
    "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 1376,
    "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8,
    "num_attention_heads": 8, "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
CONFIG = {"model_type": "llava", "text_config": TEXT, "vision_config": VISION, "image_token_index": IMAGE}
TARGETS = {"frozen": ("language_model",), "trained": ("language_model", "vision_tower")}


@dataclass(frozen=True)
class Variant:
    """What is measured. tower: frozen, or trained by adapters."""

    side: str
    objective: str
    tower: str
    rank: int
    warmup: int
    repeats: int
    threads: int


def make_pairs() -> list[dict[str, list[int]]]:
    """PAIRS random pairs, one image token in each prompt; the same in every process."""
    draw = random.Random(0)

    def ids(length: int) -> list[int]:
        return [draw.randrange(10, VOCABULARY) for _ in range(round(length * draw.uniform(0.9, 1.1)) - 1)]

    return [
        {"prompt": [BOS, IMAGE, *ids(PROMPT)], "chosen": [*ids(CHOSEN), EOS], "rejected": [*ids(REJECTED), EOS]}
        for _ in range(PAIRS)
    ]


def make_pixels(count: int = PAIRS) -> Tensor:
    """Processed images, [count, 3, side, side]: one for each pair; those after ``PAIRS`` are corrupted."""
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def ours(variant: Variant, clock: Clock, before_model: Callable[[], None]) -> tuple[float, int]:
    """Times this project's step, or the plain way with this project's parts."""
    from mint.config import TrainConfig
    from mint.data.batch import CHOSEN as FIRST
    from mint.data.batch import EncodedPair, collate
    from mint.losses import AnswerStats, load_loss
    from mint.models import init_model
    from mint.models.lora import add_lora, reference
    from mint.objective import answer_stats, predicted_stats, preference_loss
    from mint.optim import clip_gradients, make_optimizer

    count = (SIDE // PATCH) ** 2
    pairs = []
    for number, pair in enumerate(make_pairs()):
        prompt = [token for i in pair["prompt"] for token in ([i] * count if i == IMAGE else [i])]
        spans = [[5 <= place < 15 for place in range(len(pair[side]))] for side in ("chosen", "rejected")]
        encoded = EncodedPair(str(number), prompt, pair["chosen"], pair["rejected"], images=(str(number),))
        if variant.objective == "fire":
            encoded = replace(encoded, chosen_span=spans[0], rejected_span=spans[1])
            encoded = replace(encoded, twin=replace(encoded, images=(str(PAIRS + number),)))
        pairs.append(encoded)
    images = {"pixel_values": make_pixels(2 * PAIRS if variant.objective == "fire" else PAIRS)}
    before_model()
    model = init_model(CONFIG)
    add_lora(model, rank=variant.rank, alpha=2 * variant.rank, targets=",".join(TARGETS[variant.tower]))
    fill(model)
    model.train()
    if variant.side == "kept":
        with torch.no_grad():
            images = {"features": model.encode_images(images)["features"]}
    config = TrainConfig(lr=LEARNING_RATE, max_grad_norm=CLIP)
    optimizer, loss = make_optimizer(model, config), load_loss(variant.objective, {"beta": BETA})

    def with_images(batch):
        return replace(batch, images={**images, "order": torch.tensor([int(file) for file in batch.image_files])})

    def together():
        return preference_loss(model, with_images(collate(pairs, rows=1)), loss)

    def apart():
        sides = {}
        for side in ("chosen", "rejected"):
            alone = [replace(pair, chosen=getattr(pair, side), rejected=[]) for pair in pairs]
            batch = with_images(collate(alone))
            sides[side] = answer_stats(batch, predicted_stats(model, batch, loss.needs), FIRST)
        return loss(**sides)

    def plain():
        """Sequences of equal length, padded behind; [pairs, answer] numbers of each kind."""
        sides = {}
        for offset, prefix in ((0, ""), (PAIRS, "corrupted_")):
            pixels = {"pixel_values": images["pixel_values"][offset : offset + PAIRS]}
            for side in ("chosen", "rejected"):
                rows = [pair.prompt + getattr(pair, side) for pair in pairs]
                longest = max(map(len, rows))
                tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
                logps = model(tokens, pixels)[:, :-1].log_softmax(-1)
                with torch.no_grad(), reference(model):
                    ref = model(tokens, pixels)[:, :-1].log_softmax(-1)
                lengths = [len(pair.prompt) for pair in pairs]
                mask = torch.tensor(
                    [
                        [a - 1 <= i < len(row) - 1 for i in range(longest - 1)]
                        for a, row in zip(lengths, rows, strict=True)
                    ]
                )
                span = torch.tensor([[5 <= i - a + 1 < 15 for i in range(longest - 1)] for a in lengths])
                chosen = tokens[:, 1:, None]
                numbers = {"mask": mask, "span": span & mask}
                numbers |= {"logps": logps.gather(2, chosen)[..., 0], "ref_logps": ref.gather(2, chosen)[..., 0]}
                if prefix + side == "chosen":
                    numbers["kl_forward"] = (ref.exp() * (ref - logps)).sum(-1)
                    numbers["kl_reverse"] = (logps.exp() * (logps - ref)).sum(-1)
                sides[prefix + side] = AnswerStats(**numbers)
        return loss(**sides)

    first, step = None, {"twice": apart, "plain": plain}.get(variant.side, together)
    for _ in range(variant.warmup + variant.repeats):
        clock.start()
        output = step()
        output.loss.backward()
        clip_gradients(model, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.stop()
        first = float(output.loss.detach()) if first is None else first
    return first, sum(p.numel() for p in model.parameters() if p.requires_grad)


def trl(variant: Variant, clock: Clock, before_model: Callable[[], None]) -> tuple[float, int]:
    """Times ``Trainer.train`` of TRL's DPOTrainer, from its step-begin to its step-end callback."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from PIL import Image
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from trl import DPOConfig, DPOTrainer
    from word_tokenizer import as_text, word_tokenizer

    class Pixels(CLIPImageProcessor):
        """Gives the pixels of the image whose number is its size's remainder: no time is spent on reading files."""

        def __call__(self, images, **_):
            numbers = [
                image.width - SIDE for batch in images for image in (batch if isinstance(batch, list) else [batch])
            ]
            return {"pixel_values": make_pixels()[numbers]}

    disable_progress_bars()
    folder = tempfile.TemporaryDirectory()
    arguments = DPOConfig(
        output_dir=folder.name, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, beta=BETA,
        gradient_checkpointing=False, save_strategy="no", per_device_train_batch_size=PAIRS, logging_steps=10_000,
        max_steps=variant.warmup + variant.repeats, learning_rate=LEARNING_RATE, max_grad_norm=CLIP,
        dataloader_pin_memory=False, max_length=None,
    )  # fmt: skip
    processor = LlavaProcessor(
        Pixels(crop_size={"height": SIDE, "width": SIDE}), word_tokenizer(VOCABULARY), patch_size=PATCH,
        vision_feature_select_strategy="default", image_token=f"<{IMAGE}>", num_additional_image_tokens=1,
    )  # fmt: skip
    rows = [
        {**row, "images": [Image.new("RGB", (SIDE + number, SIDE))]} for number, row in enumerate(as_text(make_pairs()))
    ]
    before_model()
    settings = {key: value for key, value in CONFIG.items() if key != "model_type"}
    model = LlavaForConditionalGeneration(LlavaConfig(**settings))
    inside = "|".join(TARGETS[variant.tower])
    adapter = LoraConfig(
        r=variant.rank, lora_alpha=2 * variant.rank, lora_dropout=0.0,
        target_modules=rf".*\.({inside})\..*(q_proj|k_proj|v_proj|o_proj|out_proj|gate_proj|up_proj|down_proj|fc1|fc2)",
    )  # fmt: skip
    trainer = DPOTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=processor,
        peft_config=adapter, callbacks=[stopwatch(clock)],
    )  # fmt: skip
    fill(trainer.model)
    trainer.model.train()
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(PAIRS)]))
    with torch.no_grad(), trainer.compute_loss_context_manager():
        first = float(trainer.compute_loss(trainer.model, batch))
    trainer.train()
    folder.cleanup()
    return first, sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)


if __name__ == "__main__":
    report(Variant, {"ours": ours, "kept": ours, "twice": ours, "plain": ours, "trl": trl})

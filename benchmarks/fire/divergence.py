"""How far a policy has moved from its reference, measured on answers about images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from mint.data.batch import CHOSEN, make_batches
from mint.data.chat import load_tokenizer
from mint.data.encode import encode_pairs
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.preferences import read_preferences
from mint.data.record_images import ImageSlots, find_images
from mint.demo.stages import CPU, Hardware, load_student
from mint.losses import Needs
from mint.models.lora import load_adapter
from mint.objective import answer_stats, predicted_stats

BATCH = 32
NEEDS = Needs(rejected=False, reference=True, kl_forward=True, kl_over="all")


@torch.no_grad()
def divergences(model_dir: str, adapter: Path | None, file: Path, hardware: Hardware = CPU) -> Iterator[dict]:
    """KL(reference || policy) in nats per token of each answer of ``file``; the reference is the model without adapter.

    file: records with ``images`` and ``chosen``, an answer of the reference. Yields ``id``, ``images`` and ``kl``.
    """
    records = find_images(read_preferences(file, require_rejected=False), file)
    if adapter is None:
        yield from ({"id": record.id, "images": record.images, "kl": 0.0} for record in records)
        return
    model = load_student(model_dir, None, hardware)
    load_adapter(model, adapter).eval()
    tokenizer, reader = load_tokenizer(model.source_dir), ImageReader(load_processor(model.source_dir))
    slots, images = ImageSlots(*model.image_slots, reader.processor), {record.id: record.images for record in records}
    for batch in make_batches(
        encode_pairs(records, tokenizer, model.config.max_position_embeddings, slots=slots)[0], BATCH
    ):
        batch = replace(batch, images=reader(batch.image_files)).to(model.head_weight.device)
        answers = answer_stats(batch, predicted_stats(model, batch, NEEDS), CHOSEN)
        assert answers.kl_forward is not None
        means = answers.total(answers.kl_forward) / answers.mask.sum(-1)
        yield from (
            {"id": name, "images": images[name], "kl": mean.item()} for name, mean in zip(batch.ids, means, strict=True)
        )

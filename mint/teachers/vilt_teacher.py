"""The multimodal teacher of MINT's first task: a ViLT that ranks diseases from a portrait and a line of text.

A teacher is a model directory like any other: ``config.json`` with the diseases as labels, ``model.safetensors``, the
tokenizer and the image processor. Several that were fitted on parts of one cohort (``folds.json``) rank its cases so
that none is ranked by a model that has seen it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mint.data.cases import EXCLUDED_LIMIT, Case
from mint.data.image_files import open_image
from mint.data.images import load_processor
from mint.data.processors.vilt import ViltImageProcessor
from mint.data.text_encoder import TextEncoder
from mint.errors import InputError
from mint.files import read_json
from mint.models import load_model
from mint.models.vilt import Vilt
from mint.teachers.fitting import FOLDS

NO_TEXT = "*"  # the text of a case seen through its image alone
VIEWS = ("both", "image", "text")
BATCH = 64  # cases scored at a time


def describe(case: Case) -> str:
    """The line of text a case is seen by: sex, age, ethnicity, findings present, findings absent.

    ``case.text`` where it has one. ``case.summary`` stands where a case without findings has none to show. Labels lose
    commas, full stops, brackets and the word "and", as in GestaltMML; a comma then sets them apart.
    """
    summary = [_plain(case.summary)] if case.summary else []
    if case.text is not None:
        return " ".join([case.text, *summary])
    parts = [f"Sex {case.sex}"] if case.sex else []
    if case.age_years is not None:
        years, months = divmod(round(case.age_years * 12), 12)
        parts.append(f"Age {years} years {months} months")
    parts += [f"Ethnicity {_plain(case.ethnicity)}"] if case.ethnicity else []
    parts += [_plain(term.label) for term in case.observed] + summary
    parts += [f"no {_plain(term.label)}" for term in case.excluded[:EXCLUDED_LIMIT]]
    return ", ".join(parts) or NO_TEXT


def _plain(label: str) -> str:
    return " ".join(re.sub(r"[,.()\[\]]|\band\b", " ", label).split())


class FusionInputs:
    """Cases as the network sees them. ``cut``: how many texts were longer than the network's limit so far."""

    def __init__(self, folder: str | Path, text_limit: int):
        self.text = TextEncoder(folder, text_limit)
        processor = load_processor(folder)
        if not isinstance(processor, ViltImageProcessor):
            raise InputError(f"{folder} has no ViLT image processor")
        self.processor = processor
        # The image of a case seen through its text: one grey patch, so that the network has little to read.
        self.no_image = torch.full((3, processor.divisor, processor.divisor), 128, dtype=torch.uint8)
        self.cut = 0

    def read_image(self, case: Case) -> Tensor | None:
        """[3, H, W] uint8 at the size the network sees, or None. Raises InputError if the file cannot be read."""
        return None if case.image is None else self.processor.resize(open_image(case.image))

    def batch(self, texts: Sequence[str | None], images: Sequence[Tensor | None]) -> tuple[Tensor, dict, Tensor | None]:
        """(tokens, images, attention mask) for the network; None stands for a modality that is missing."""
        encoded = [self.text.encode(NO_TEXT if text is None else text) for text in texts]
        self.cut += sum(cut for _, cut in encoded)
        tokens, mask = self.text.batch([ids for ids, _ in encoded])
        pictures = self.processor.batch([self.no_image if image is None else image for image in images])
        if pictures["pixel_mask"].all():
            del pictures["pixel_mask"]
        return tokens, pictures, mask


class FusionTeacher:
    """Ranks the diseases that are its network's labels.

    view: ``both`` modalities, the ``image`` alone or the ``text`` alone; a case that lacks one is seen by the other.
    """

    def __init__(self, model: Vilt, inputs: FusionInputs, view: str = "both"):
        self.model, self.inputs, self.view = model, inputs, view
        self.classes = model.config.labels
        self.name = "fusion" if view == "both" else f"fusion, {view} only"

    @torch.no_grad()
    def scores(self, cases: Sequence[Case], own: Sequence[Case] | None = None) -> np.ndarray:
        """[cases, diseases] logits. ``own`` makes no difference: what a network has learned cannot be taken out."""
        device = next(self.model.parameters()).device
        self.model.eval()
        rows = []
        for start in range(0, len(cases), BATCH):
            some = cases[start : start + BATCH]
            texts = [None if self.view == "image" else describe(case) for case in some]
            images = [None if self.view == "text" else self.inputs.read_image(case) for case in some]
            tokens, pictures, mask = self.inputs.batch(texts, images)
            pictures = {name: value.to(device) for name, value in pictures.items()}
            mask = None if mask is None else mask.to(device)
            rows.append(self.model(tokens.to(device), pictures, mask).float().cpu())
        return torch.cat(rows).numpy() if rows else np.zeros((0, len(self.classes)))


class FoldedTeacher:
    """Teachers of the folds of one cohort: its own cases are ranked by the one that has not seen them, new ones by all.

    fold_of: case id -> the fold that left it out.
    """

    def __init__(self, teachers: Sequence[FusionTeacher], fold_of: dict[str, int]):
        self.teachers, self.fold_of = teachers, fold_of
        self.classes = teachers[0].classes
        self.name = f"{teachers[0].name}, cross-fitted"

    def scores(self, cases: Sequence[Case], own: Sequence[Case] | None = None) -> np.ndarray:
        """[cases, diseases] logits; the mean over the folds for cases of no ``own``, or of one that no fold knows."""
        folds = np.array([self.fold_of.get(case.id, -1) for case in own] if own else [-1] * len(cases))
        result = np.zeros((len(cases), len(self.classes)), dtype=np.float32)
        for fold, teacher in enumerate(self.teachers):
            for members, weight in ((folds == fold, 1), (folds < 0, 1 / len(self.teachers))):
                result[members] += weight * teacher.scores([cases[i] for i in range(len(cases)) if members[i]])
        return result


def load_teacher(
    folder: str | Path, device: torch.device | str = "cpu", view: str = "both"
) -> FusionTeacher | FoldedTeacher:
    """The teacher in a directory that ``mint.teachers.vilt_training`` or transformers has written.

    Raises InputError if it holds no fusion classifier, or a part of it cannot be read.
    """
    folder = Path(folder)
    if (folder / FOLDS).is_file():
        try:
            record = read_json(folder / FOLDS)
            fold_of, count = dict(record["cases"]), int(record["folds"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{folder / FOLDS} cannot be read") from None
        return FoldedTeacher([_load_one(folder / f"fold-{k + 1}", device, view) for k in range(count)], fold_of)
    return _load_one(folder, device, view)


def _load_one(folder: Path, device: torch.device | str, view: str) -> FusionTeacher:
    model = load_model(folder, device=device)
    if not isinstance(model, Vilt):
        raise InputError(f"{folder} holds no fusion classifier (model_type vilt)")
    return FusionTeacher(model, FusionInputs(model.source_dir, model.config.max_position_embeddings), view)

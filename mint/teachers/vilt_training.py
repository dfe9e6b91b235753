"""Training of the multimodal teacher: every case is seen three times, so that the teacher works with either modality.

The recipe of MINT's teacher (GestaltMML, arXiv 2312.15320): (image, text), (image, "*") and (one fixed image, text);
BCE over the diseases, times their number; AdamW. Early stopping on patients held out; the best epoch is kept.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mint.data.cases import Case, vary
from mint.data.phrases import train_phrases
from mint.data.splits import hold_out
from mint.errors import InputError
from mint.files import write_aside
from mint.hub import MODEL_FILES, resolve_dir
from mint.models import init_model, load_model, save_model
from mint.models.vilt import HEADS, Vilt, label_settings, small_config
from mint.progress import Progress, epoch_text
from mint.teachers.fitting import FOLDS, FitSettings, blank_folder, check_folder, save_fit, train_epochs
from mint.teachers.vilt_teacher import NO_TEXT, FoldedTeacher, FusionInputs, FusionTeacher, describe

CONTROL = ("[PAD]", "[CLS]", "[SEP]")
# Of a network trained from scratch: with a few thousand aligned portraits, large patches learn faster and better.
IMAGE_SIZE, PATCH_SIZE, TEXT_LENGTH, VOCABULARY = 112, 28, 64, 8000
LabelsOf = Callable[[Case], Sequence[str]]


@dataclass
class FusionSettings(FitSettings):
    """How the teacher is trained. The defaults are the recipe's for a pretrained network, ``from_scratch`` ours.

    drop_terms: mean share of findings left out of a text, anew in every epoch (0: none). patience: epochs without a
    better loss on the patients held out before training stops.
    """

    drop_terms: float = 0.0
    patience: int = 3

    @classmethod
    def from_scratch(cls, **changes) -> FusionSettings:
        recipe = {"epochs": 25, "lr": 3e-3, "weight_decay": 0.1, "adam_beta2": 0.98, "drop_terms": 0.2, "patience": 5}
        return cls(**{**recipe, **changes})

    def check(self) -> None:
        super().check()
        if self.patience < 1 or not 0 <= self.drop_terms <= 0.5:
            raise InputError("the teacher's patience must be positive, its share of dropped findings at most 0.5")


class View(NamedTuple):
    """One of the three ways a case is seen."""

    case: int
    text: bool
    image: bool


def write_blank(folder: Path, cases: Sequence[Case], diseases: Sequence[str], seed: int) -> None:
    """A small network with random weights, and a tokenizer made of the cases' findings, as a model directory."""
    tokenizer = train_phrases(map(describe, cases), VOCABULARY, CONTROL, "[CLS] $A [SEP]")
    vocabulary = -(-tokenizer.get_vocab_size() // 64) * 64
    raw = small_config(list(diseases), vocabulary, IMAGE_SIZE, PATCH_SIZE, text_length=TEXT_LENGTH)
    save_model(init_model(raw, seed=seed), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "image_processor_type": "ViltImageProcessor",
        "size": {"shortest_edge": IMAGE_SIZE},
        "size_divisor": PATCH_SIZE,
    }
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "resample": 3}
    write_aside(folder / "preprocessor_config.json", json.dumps(settings, indent=2) + "\n")


def fit_teacher(
    cases: Sequence[Case],
    folder: str | Path,
    settings: FusionSettings,
    base: str | None = None,
    device: torch.device | str = "cpu",
    diseases: Sequence[str] | None = None,
    title: str = "teacher",
    labels_of: LabelsOf = lambda case: [case.disease],
) -> FusionTeacher:
    """Trains a teacher on ``cases`` and writes it to ``folder``, with ``fit.json``: settings, counts, epochs.

    base: a ViLT directory or hub id to start from, with a new head; None: a small network from scratch.
    diseases: the labels; by default the cases' own, in alphabetical order. labels_of: those that are true of a case.
    Raises InputError for settings out of range, fewer than two diseases, an image that cannot be read, a folder in use.
    """
    settings.check()
    check_folder(folder)
    folder = Path(folder)
    diseases = sorted({label for case in cases for label in labels_of(case)}) if diseases is None else list(diseases)
    if len(diseases) < 2:
        raise InputError("a teacher needs cases of at least two diseases")
    torch.manual_seed(settings.seed)
    with blank_folder(folder) as blank:
        if base is None:
            write_blank(blank, cases, diseases, settings.seed)
            model = load_model(blank, device=device)
        else:
            source, new = resolve_dir(base, MODEL_FILES), label_settings(diseases)
            model = load_model(source, device=device, settings=new, fresh=HEADS, seed=settings.seed)
        if not isinstance(model, Vilt):
            raise InputError(f"{base} is no ViLT")
        bias = model.classifier.get_parameter("3.bias")
        torch.nn.init.constant_(bias, -float(np.log(len(diseases))))  # one in that many is true
        inputs = FusionInputs(model.source_dir, model.config.max_position_embeddings)
        epochs = _Fit(model, inputs, cases, settings, title, labels_of).run()
        save_fit(model, folder, settings, epochs, base=base, **count(cases), texts_cut=inputs.cut)
    model.source_dir = folder
    return FusionTeacher(model.eval(), FusionInputs(folder, model.config.max_position_embeddings))


def fit_folds(
    cases: Sequence[Case], folder: str | Path, folds: int, settings: FusionSettings, **options
) -> FoldedTeacher:
    """``folds`` teachers, each fitted on all patients but its own share; ``options`` as :func:`fit_teacher`.

    All know all diseases; of a disease with one patient, the fold that leaves that patient out has seen nothing.
    """
    folder = Path(folder)
    if folds < 2:
        raise InputError(f"cross-fitting needs at least two folds, not {folds}")
    check_folder(folder)
    diseases = sorted({case.disease for case in cases})
    patients = sorted({case.subject or case.id for case in cases})
    place = {name: i % folds for i, name in enumerate(random.Random(settings.seed).sample(patients, len(patients)))}
    fold_of = {case.id: place[case.subject or case.id] for case in cases}
    teachers = []
    for fold in range(folds):
        part = [case for case in cases if fold_of[case.id] != fold]
        target, title = folder / f"fold-{fold + 1}", f"teacher {fold + 1}/{folds}"
        teachers.append(fit_teacher(part, target, settings, diseases=diseases, title=title, **options))
    write_aside(folder / FOLDS, json.dumps({"folds": folds, "cases": fold_of}) + "\n")
    return FoldedTeacher(teachers, fold_of)


def count(cases: Sequence[Case]) -> dict[str, int]:
    """What a cohort offers to a multimodal teacher."""
    patients: dict[str, set[str]] = {}
    for case in cases:
        patients.setdefault(case.disease, set()).add(case.subject or case.id)
    return {
        "cases": len(cases),
        "diseases": len(patients),
        "diseases_of_one_patient": sum(len(found) == 1 for found in patients.values()),
        "with_image": sum(case.image is not None for case in cases),
        "with_text": sum(describe(case) != NO_TEXT for case in cases),
    }


class _Fit:
    """The training loop."""

    def __init__(
        self,
        model: Vilt,
        inputs: FusionInputs,
        cases: Sequence[Case],
        settings: FusionSettings,
        title: str,
        labels_of: LabelsOf,
    ):
        self.model, self.inputs, self.settings, self.title, self.labels_of = model, inputs, settings, title, labels_of
        self.device = next(model.parameters()).device
        self.label = {name: i for i, name in enumerate(model.config.labels)}
        train, held_out = hold_out(cases, settings.held_out, settings.seed)
        self.train, self.held_out = train, held_out
        reading = Progress([*train, *held_out], desc=f"{title}: images", unit="case", leave=False)
        self.images = {case.id: self.inputs.read_image(case) for case in reading}  # bytes: 38 KB each at 112 x 112
        self.views = [view for i, case in enumerate(train) for view in self._views(i, case)]

    @staticmethod
    def _views(place: int, case: Case) -> list[View]:
        """Those of the three for which the case has something to show."""
        text, image = describe(case) != NO_TEXT, case.image is not None
        views = [View(place, True, True)] * (text and image)
        return views + [View(place, False, True)] * image + [View(place, True, False)] * (text or not image)

    def run(self) -> list[dict]:
        """Trains, prints every epoch, loads the best epoch's weights, and returns a row for each epoch."""
        best, best_row, best_state, epochs = float("inf"), {}, {}, []

        def loss(batch: list[View], rng: random.Random) -> Tensor:
            return self._loss(self.train, batch, rng)[0]

        for row in train_epochs(self.model, self.settings, self.title, self._batches, loss, self._evaluate):
            epochs.append(row)
            criterion = row.get("held_out_loss", -row["epoch"])  # without held-out patients the last epoch counts
            if criterion < best:
                best, best_row, best_state = criterion, row, copy.deepcopy(self.model.state_dict())
            elif row["epoch"] - best_row["epoch"] >= self.settings.patience:
                break
        print(f"{self.title}: kept the weights of {epoch_text(best_row, self.settings.epochs)}")
        self.model.load_state_dict(best_state)
        return epochs

    def _batches(self, rng: random.Random) -> list[list[View]]:
        """An epoch's views in random order, those without an image in batches of their own, which are short to read."""
        size, batches = self.settings.batch_size, []
        for pictured in (True, False):
            views = [view for view in self.views if view.image == pictured]
            rng.shuffle(views)
            batches += [views[start : start + size] for start in range(0, len(views), size)]
        rng.shuffle(batches)
        return batches

    def _loss(self, cases: Sequence[Case], views: Sequence[View], rng: random.Random | None) -> tuple[Tensor, Tensor]:
        """(the loss, [B] whether what is first is true). rng: varies the texts; None leaves them as they are."""
        texts, images = [], []
        truth = torch.zeros(len(views), len(self.label))
        for row, view in enumerate(views):
            case = cases[view.case]
            if rng is not None and self.settings.drop_terms and case.observed:
                case = vary(case, rng, self.settings.drop_terms)
            texts.append(describe(case) if view.text else None)
            images.append(self.images[case.id] if view.image else None)
            truth[row, [self.label[name] for name in self.labels_of(case)]] = 1
        tokens, pictures, mask = self.inputs.batch(texts, images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model(
                tokens.to(self.device),
                {name: value.to(self.device) for name, value in pictures.items()},
                None if mask is None else mask.to(self.device),
            ).float()
        truth = truth.to(self.device)
        # BCE averaged over the diseases, times their number, is their sum.
        loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(views)
        return loss, truth.gather(1, logits.argmax(1, keepdim=True)).squeeze(1) > 0

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Loss and accuracy on those held out, by all they show."""
        if not self.held_out:
            return {}
        self.model.eval()
        losses, hits = 0.0, 0
        for start in range(0, len(self.held_out), self.settings.batch_size):
            some = self.held_out[start : start + self.settings.batch_size]
            loss, right = self._loss(some, [View(i, True, True) for i in range(len(some))], None)
            losses += loss.item() * len(some)
            hits += int(right.sum())
        return {"held_out_loss": losses / len(self.held_out), "held_out_top_1": hits / len(self.held_out)}

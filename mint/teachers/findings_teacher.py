"""A teacher of two parts: a network that names what a face shows, and naive Bayes over these findings and the note's.

Where few patients have a diagnosis, the two need different data. The network learns to see from any faces whose
findings are annotated; only the counts of naive Bayes need diagnosed patients.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mint.data.cases import Case, Term
from mint.data.image_files import open_image
from mint.errors import InputError
from mint.files import read_json, write_aside
from mint.models import load_model, save_model
from mint.models.face_reader import FaceReader, FaceReaderConfig
from mint.teachers.fitting import FitSettings, train_epochs
from mint.teachers.naive_bayes import NaiveBayesTeacher
from mint.teachers.vilt_teacher import VIEWS

SHAPE = {"image_size": 112, "widths": [16, 32, 64, 96], "hidden_size": 256}
READING = FitSettings(epochs=10, batch_size=32, lr=1e-3, warmup=0.2, weight_decay=0.01, held_out=0.0)
SHIFT = 4  # pixels by which a face is moved at most, in every epoch anew
NAMED = 0.3  # probability from which a finding counts as seen
BATCH = 256  # portraits read at a time
COUNTS = "counts.json"


def fit_reader(
    faces: Sequence[Case], settings: FitSettings = READING, device: torch.device | str = "cpu"
) -> FaceReader:
    """A network that names the ``facial`` findings of portraits, trained on ``faces`` by binary cross-entropy.

    Raises InputError for settings out of range, faces without an image or without findings.
    """
    settings.check()
    terms = sorted({term for face in faces for term in face.facial}, key=lambda term: term.id)
    if not terms:
        raise InputError("no face has a finding: there is nothing to learn to see")
    torch.manual_seed(settings.seed)
    findings = [[term.id, term.label] for term in terms]
    raw = {"model_type": "face_reader", "architectures": ["FaceReader"], **SHAPE, "findings": findings}
    model = FaceReader(FaceReaderConfig.from_dict(raw)).to(device)
    place = {term: column for column, term in enumerate(terms)}
    images = torch.stack([_read(face, model.config.image_size) for face in faces])
    truth = torch.zeros(len(faces), len(terms))
    for row, face in enumerate(faces):
        truth[row, [place[term] for term in face.facial]] = 1

    def batches(rng: random.Random) -> list[list[int]]:
        order = rng.sample(range(len(faces)), len(faces))
        return [order[start : start + settings.batch_size] for start in range(0, len(order), settings.batch_size)]

    def loss(batch: list[int], rng: random.Random) -> Tensor:
        moved = _shift(images[batch], rng.randint(-SHIFT, SHIFT), rng.randint(-SHIFT, SHIFT)).to(device)
        return F.binary_cross_entropy_with_logits(model(_scale(moved)), truth[batch].to(device))

    for _ in train_epochs(model, settings, "learning to read faces", batches, loss, dict):
        pass
    return model.eval()


def _read(case: Case, size: int) -> Tensor:
    """[3, size, size] uint8."""
    if case.image is None:
        raise InputError(f"{case.id} has no portrait")
    return _pixels(case.image, size)


def _pixels(file: Path, size: int) -> Tensor:
    return torch.from_numpy(np.array(open_image(file).resize((size, size)))).permute(2, 0, 1)


def _scale(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def _shift(images: Tensor, down: int, right: int) -> Tensor:
    """Moved images; what leaves at one side is repeated from the border at the other."""
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="replicate")
    size = images.shape[-1]
    return padded[..., SHIFT - down : SHIFT - down + size, SHIFT - right : SHIFT - right + size]


class FindingsTeacher:
    """Ranks diseases by naive Bayes over the note's findings and those that the network sees in the portrait.

    view: ``both``, or the findings of the ``text`` or the ``image`` alone. Every view has its own counts, of the same
    diagnosed patients. counts: view -> naive Bayes.
    """

    name = "findings"

    def __init__(self, reader: FaceReader, counts: Mapping[str, NaiveBayesTeacher], view: str = "both"):
        self.reader, self.counts, self.view = reader, counts, view
        self.classes = counts[view].classes
        self._seen: dict[Path, tuple[Term, ...]] = {}  # portrait -> its findings

    @classmethod
    def fit(cls, reader: FaceReader, cases: Sequence[Case]) -> FindingsTeacher:
        """Counts the findings of diagnosed patients. Raises InputError for fewer than two diseases."""
        teacher = cls(reader, {"both": NaiveBayesTeacher(cases)})
        teacher.counts = {view: NaiveBayesTeacher(teacher.look(cases, view)) for view in VIEWS}
        return teacher

    def scores(self, cases: Sequence[Case], own: Sequence[Case] | None = None) -> np.ndarray:
        """[cases, diseases] log scores. ``own`` makes no difference: counts do not say which patients are in them."""
        return self.counts[self.view].scores(self.look(cases, self.view))

    def look(self, cases: Sequence[Case], view: str) -> list[Case]:
        """The cases with what the view shows as their observed findings."""
        if view == "text":
            return list(cases)
        self._read({case.image for case in cases if case.image is not None and case.image not in self._seen})
        shown = [self._seen[case.image] if case.image is not None else () for case in cases]
        noted = [case.observed if view == "both" else () for case in cases]
        findings = [tuple(dict.fromkeys(one + other)) for one, other in zip(noted, shown, strict=True)]
        return [dataclasses.replace(case, observed=found) for case, found in zip(cases, findings, strict=True)]

    @torch.no_grad()
    def _read(self, portraits: set[Path]) -> None:
        device, files = next(self.reader.parameters()).device, sorted(portraits)
        terms = [Term(*finding) for finding in self.reader.config.findings]
        for start in range(0, len(files), BATCH):
            some = files[start : start + BATCH]
            images = torch.stack([_pixels(file, self.reader.config.image_size) for file in some]).to(device)
            named = self.reader(_scale(images)).sigmoid().cpu() >= NAMED
            for file, row in zip(some, named, strict=True):
                self._seen[file] = tuple(terms[column] for column in row.nonzero().flatten().tolist())

    def save(self, folder: str | Path) -> None:
        """Writes the network as a model directory, and ``counts.json``: sums over the patients, no single patient."""
        save_model(self.reader, folder)
        write_aside(Path(folder) / COUNTS, json.dumps({view: nb.counts() for view, nb in self.counts.items()}) + "\n")


def is_face_reader(folder: str | Path) -> bool:
    """Whether a directory holds a face reader, alone or as a part of a teacher."""
    return read_json(Path(folder) / "config.json", optional=True).get("model_type") == "face_reader"


def load_reader(folder: str | Path, device: torch.device | str = "cpu") -> FaceReader:
    """The network in a model directory. Raises InputError for another kind of model."""
    reader = load_model(folder, device=device)
    if not isinstance(reader, FaceReader):
        raise InputError(f"{folder} holds no face reader (model_type face_reader)")
    return reader


def load_findings_teacher(
    folder: str | Path, device: torch.device | str = "cpu", view: str = "both"
) -> FindingsTeacher:
    """The teacher that :meth:`FindingsTeacher.save` wrote. Raises InputError if a part is missing or damaged."""
    if not (Path(folder) / COUNTS).is_file():
        raise InputError(f"{folder} holds a face reader, no teacher: make one with --fit DIR --base {folder}")
    counts = read_json(Path(folder) / COUNTS)
    if not set(VIEWS) <= counts.keys():
        raise InputError(f"{Path(folder) / COUNTS} lacks the counts of a view ({', '.join(VIEWS)})")
    tables = {view: NaiveBayesTeacher.from_counts(counts[view]) for view in VIEWS}
    return FindingsTeacher(load_reader(folder, device), tables, view)

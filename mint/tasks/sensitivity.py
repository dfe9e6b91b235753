"""Visual sensitivity: log-probabilities of answers with the lesion corrupted, versus an equal-area control region."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mint.data.batch import CHOSEN, REJECTED, Batch, make_batches
from mint.data.chat import ChatTokenizer
from mint.data.encode import encode_pairs
from mint.data.image_features import ImageReader
from mint.data.image_files import open_image
from mint.data.preferences import Preference, read_preferences
from mint.data.record_images import ImageSlots, find_images
from mint.errors import FileProblems, InputError
from mint.evaluation.decoding import load_vision_model
from mint.evaluation.folder import EvaluationFolder, take_first
from mint.evaluation.scores import mean_score
from mint.files import make_folder
from mint.losses import Needs
from mint.losses.logprobs import TokenStats
from mint.models.llama import CausalLM
from mint.objective import answer_stats, predicted_stats
from mint.prefs.corrupt import INSIDE, corrupt_image, grow, lesion_margin, record_mask
from mint.progress import Progress
from mint.tasks.base import Task, first_image

PLACES = ("lesion", "elsewhere")
TRIES = 400  # to find a place that is free
COLLECT = Needs(corrupted_image=True)
SCORES = {  # score -> heading, unit, meaning
    "drop_lesion": ("drop, lesion (nats)", "nats", "Fall of log p(chosen answer) when the lesion is corrupted."),
    "drop_elsewhere": ("drop, elsewhere (nats)", "nats", "The same for a control region of equal area."),
    "difference": ("difference (nats)", "nats", "The first drop minus the second: reliance on the lesion."),
    "right": ("right, clean", "%", "Pairs whose chosen answer is the likelier one under the clean image."),
    "flip_lesion": ("flips, lesion", "%", "Of these, pairs whose order reverses when the lesion is corrupted."),
    "flip_elsewhere": ("flips, elsewhere", "%", "Of these, pairs whose order reverses for the control region."),
}


@dataclasses.dataclass(frozen=True)
class PairSensitivity:
    """log pi of the chosen and rejected answers' marked words, under the clean and both corrupted images."""

    id: str
    chosen: float
    rejected: float
    chosen_lesion: float
    rejected_lesion: float
    chosen_elsewhere: float
    rejected_elsewhere: float

    @property
    def scores(self) -> dict[str, float | None]:
        """The numbers of ``SCORES``; a flip is only of a pair that is right on the clean image, else None."""
        right = self.chosen > self.rejected
        drops = {place: self.chosen - getattr(self, f"chosen_{place}") for place in PLACES}
        flips = {place: getattr(self, f"chosen_{place}") <= getattr(self, f"rejected_{place}") for place in PLACES}
        return {
            "drop_lesion": drops["lesion"],
            "drop_elsewhere": drops["elsewhere"],
            "difference": drops["lesion"] - drops["elsewhere"],
            "right": float(right),
            "flip_lesion": float(flips["lesion"]) if right else None,
            "flip_elsewhere": float(flips["elsewhere"]) if right else None,
        }


def move_mask(mask: np.ndarray, key: str) -> np.ndarray:
    """A control region: the mask moved within the image to where it overlaps the lesion and its margin least.

    mask: [height, width] bool. key: seeds the random positions.
    """
    rows, columns = np.nonzero(mask)
    top, left = rows.min(), columns.min()
    part = mask[top : rows.max() + 1, left : columns.max() + 1]
    height, width = part.shape
    seed = int.from_bytes(hashlib.sha256(f"elsewhere {key}".encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    taken, best, least = grow(mask, lesion_margin(mask)), mask, part.size + 1
    for _ in range(TRIES):
        y, x = rng.integers(0, mask.shape[0] - height + 1), rng.integers(0, mask.shape[1] - width + 1)
        moved = np.zeros_like(mask)
        moved[y : y + height, x : x + width] = part
        shared = int((moved & taken).sum())
        if shared < least:
            best, least = moved, shared
        if not shared:
            break
    return best


def corrupt_both(preferences: Sequence[Preference], file: Path, folder: Path, mode: str) -> dict[str, list[Preference]]:
    """The records that say where their lesion is, once with it corrupted and once with a control region corrupted.

    The images are written to ``folder``. Raises FileProblems naming every record whose fields cannot be used,
    InputError if none says where its lesion is.
    """
    root, problems = file.resolve().parent, []
    found: dict[str, list[Preference]] = {place: [] for place in PLACES}
    make_folder(folder)
    for number, preference in enumerate(Progress(preferences, desc="corrupting", unit="record", leave=False)):
        if not preference.images or preference.rejected is None:
            continue
        image = open_image(preference.images[0])
        try:
            mask, _ = record_mask(preference, image.size, root)
        except InputError as error:
            problems.append(f"{file}:{preference.line}: {error}")
            continue
        if mask is None or not mask.any():
            continue
        for place, where in (("lesion", mask), ("elsewhere", move_mask(mask, preference.id))):
            target = folder / f"{number:06d}-{place}.png"
            corrupt_image(image, where, mode, f"{place}/{preference.id}").save(target)
            names = (str(target.resolve()), *preference.images[1:])
            found[place].append(dataclasses.replace(preference, corrupted_images=names))
    if problems:
        raise FileProblems(file, problems)
    if not found["lesion"]:
        raise InputError(f"{file}: no record with images tells where its evidence is (mask, boxes or polygons)")
    return found


@torch.no_grad()
def measure(
    model: CausalLM,
    tokenizer: ChatTokenizer,
    reader: ImageReader,
    records: dict[str, list[Preference]],
    max_length: int = 2048,
    batch_size: int = 8,
    known: Mapping[int, dict] | None = None,
    save: Callable[[dict[int, dict]], None] = lambda _: None,
) -> list[PairSensitivity]:
    """The log-probabilities of every record of ``corrupt_both``, in their order; those that are too long are left out.

    save: called after each batch with the numbers of its records by place: first those of the corrupted lesions, then
    those of the other places. known: such numbers from an earlier run, which are not computed again.
    """
    slots = ImageSlots(*model.image_slots, reader.processor)
    limit = min(max_length, model.config.max_position_embeddings)
    model.eval()
    found: dict[int, dict[str, float]] = dict(known or {})
    for start, place in zip((0, len(records[PLACES[0]])), PLACES, strict=True):
        left = {record.id: start + i for i, record in enumerate(records[place]) if start + i not in found}
        some = [record for record in records[place] if record.id in left]
        if not some:
            continue
        pairs, _ = encode_pairs(some, tokenizer, limit, slots=slots, corrupted=("chosen", "rejected"))
        bar = Progress(total=len(pairs), desc=place, unit="pair")
        for batch in make_batches(pairs, batch_size):
            batch = dataclasses.replace(batch, images=reader(batch.image_files)).to(model.head_weight.device)
            stats = predicted_stats(model, batch, COLLECT)
            sums = _sums(batch, stats, place)
            rows = [{side: values[row].item() for side, values in sums.items()} for row in range(len(batch.ids))]
            new = {left[name]: row for name, row in zip(batch.ids, rows, strict=True)}
            save(new)
            found |= new
            bar.update(batch.pairs)
        bar.close()
    lesions = records["lesion"]
    places = [(record.id, i, i + len(lesions)) for i, record in enumerate(lesions)]
    return [PairSensitivity(name, **(found[j] | found[i])) for name, i, j in places if i in found and j in found]


def _sums(batch: Batch, stats: TokenStats, place: str) -> dict[str, Tensor]:
    """[P] each: log-probabilities of both answers' marked words under the clean and the corrupted image."""
    sides = {
        "chosen": answer_stats(batch, stats, CHOSEN),
        "rejected": answer_stats(batch, stats, REJECTED),
        f"chosen_{place}": answer_stats(batch, stats, CHOSEN, corrupted=True),
        f"rejected_{place}": answer_stats(batch, stats, REJECTED, corrupted=True),
    }
    return {name: side.total(side.logps, side.span_or_all) for name, side in sides.items()}


class PairTask(Task):
    """Tasks that measure a model on preference pairs that say where the lesion is; nothing is decoded."""

    noun = "pairs"
    answer = None
    vision = True
    decoding = {}
    group = staticmethod(first_image)

    def record(self, preference: Preference, folder: Path) -> dict:
        return {"id": preference.id, "images": [os.path.relpath(preference.images[0], folder)]}

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--data", required=True, metavar="FILE", help="pairs with images, and mask, boxes or polygons"
        )
        parser.add_argument("--images-anywhere", action="store_true", help="allow images outside the folder of --data")

    def read(self, args: argparse.Namespace) -> list[Preference]:
        preferences = take_first(read_preferences(args.data), args.limit)
        return find_images(preferences, args.data, args.images_anywhere)


class Sensitivity(PairTask):
    """Log-probabilities of both answers with the lesion corrupted, and with a control region corrupted."""

    name = "visual sensitivity"
    field = "drop_lesion"
    columns = {n: mean_score(n, h, u, marked=False, meaning=m) for n, (h, u, m) in SCORES.items()}
    tested = ("drop_lesion", "difference", "right", "flip_lesion")
    file = "pairs.jsonl"

    def score(self, pair: PairSensitivity, preference: Preference) -> dict:
        return dataclasses.asdict(pair) | pair.scores

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        super().add_options(parser)
        parser.add_argument(
            "--mode", choices=INSIDE, default="noise", help="corruption inside the mask (default noise)"
        )
        parser.add_argument("--batch-size", type=int, default=8, help="pairs at a time (default 8)")

    def folder_parts(self, args: argparse.Namespace) -> list[str | None]:
        return [args.model, args.adapter, args.mode]

    def answers(
        self, args: argparse.Namespace, folder: EvaluationFolder, preferences: Sequence[Preference]
    ) -> list[PairSensitivity | None]:
        loaded = load_vision_model(args)
        records = corrupt_both(preferences, Path(args.data), folder.path / "images", args.mode)
        ids, places = [record.id for record in records["lesion"]], [{"place": place} for place in PLACES]
        with folder.answers(ids, contents(records["lesion"]), "scores", places) as kept:
            pairs = measure(*loaded, records, batch_size=args.batch_size, known=kept.known, save=kept.save)
        found = {pair.id: pair for pair in pairs}
        return [found.get(preference.id) for preference in preferences]


def contents(preferences: Sequence[Preference]) -> list:
    """What distinguishes records from others with the same ids."""
    return [
        [one.prompt, one.chosen.tagged, one.rejected and one.rejected.tagged, one.images, one.extra]
        for one in preferences
    ]

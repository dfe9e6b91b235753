"""Corrupted images: the evidence for an answer is made unreadable, the rest of the image is kept (arXiv 2606.12590)."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mint.cli import choose_device
from mint.data.image_files import find_image, image_size, open_image
from mint.data.preferences import Preference, read_preferences, write_jsonl
from mint.data.record_images import find_images
from mint.errors import FileProblems, InputError, describe_error
from mint.files import check_paths, check_unused, file_aside
from mint.prefs.contact_sheet import Shown, contact_sheet
from mint.prefs.file_names import move_record, say_if_outside
from mint.progress import Progress

SIGMA, WEAK_SIGMA = 45.0, 12.0  # of the noise, on a scale of 0 to 255 (the paper's)
SMALLEST_CROP, LARGEST_CROP = 0.01, 0.2  # shares of the image's area
SWEEPS = 50  # over a hole, at every size
MARGIN = 0.03  # of the image's longer side: inpainted around a lesion
MEDIAN_OF_NORMAL = 0.6745  # of |x|, x standard normal
Saliency = Callable[[Image.Image, str], np.ndarray]  # an image and a phrase -> the mask of where it is


@dataclass
class CorruptReport:
    """How many images were corrupted where, and what told it."""

    sources: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        return f"{self.sources.total()} images; " + ", ".join(
            f"{count} {what}" for what, count in self.sources.most_common()
        )


def corrupt_noise(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normal noise of sigma 45 in every channel inside the mask."""
    return np.where(mask[..., None], pixels + rng.normal(0, SIGMA, pixels.shape), pixels)


def corrupt_blur(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Inside the mask, the image blurred so far that nothing of the mask's size is left."""
    rows, columns = np.nonzero(mask)
    radius = max(2.0, 0.5 * float(max(np.ptp(rows), np.ptp(columns))))
    blurred = Image.fromarray(pixels.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.where(mask[..., None], np.asarray(blurred, dtype=float), pixels)


def corrupt_surroundings(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Inpainting of the mask and a margin around it: each hidden pixel becomes the mean of its neighbours, again and
    again, and then gets noise as strong as that of the image around it.

    The margin removes the lesion's soft edge, which would otherwise spread into the hole. Without the noise, a smooth
    place would show where the lesion was.
    """
    margin = lesion_margin(mask)
    grown = grow(mask, margin)
    hole = mask if grown.all() else grown
    if hole.all():
        return np.zeros_like(pixels)
    grain = rng.normal(0, _grain(pixels.mean(-1), grow(hole, 2 * margin) & ~hole), (*hole.shape, 1))
    return np.where(hole[..., None], _spread(pixels, hole) + grain, pixels)


def lesion_margin(mask: np.ndarray) -> int:
    """How many pixels around a lesion are painted over with it."""
    return max(1, round(MARGIN * max(mask.shape)))


def grow(mask: np.ndarray, margin: int) -> np.ndarray:
    """The mask, and what is at most ``margin`` rows and columns away from it."""
    for axis in (0, 1):
        width = [(margin, margin) if one == axis else (0, 0) for one in (0, 1)]
        mask = np.any(np.lib.stride_tricks.sliding_window_view(np.pad(mask, width), 2 * margin + 1, axis=axis), axis=-1)
    return mask


def _spread(pixels: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """``pixels`` with the ``hole`` filled: first from an image of half the size, then by means of neighbours."""
    if not hole.any():
        return pixels
    odd = [(0, size % 2) for size in hole.shape]
    known = np.pad(~hole, odd, mode="edge")[..., None]
    halves = (known.shape[0] // 2, 2, known.shape[1] // 2, 2, -1)
    sums = (np.pad(pixels, [*odd, (0, 0)], mode="edge") * known).reshape(halves).sum((1, 3))
    counts = known.reshape(halves).sum((1, 3))
    coarse = _spread(sums / np.maximum(counts, 1), counts[..., 0] == 0)
    filled, (rows, columns) = pixels.copy(), np.nonzero(hole)
    filled[rows, columns] = coarse[rows // 2, columns // 2]
    above, below = np.maximum(rows - 1, 0), np.minimum(rows + 1, len(hole) - 1)
    before, after = np.maximum(columns - 1, 0), np.minimum(columns + 1, hole.shape[1] - 1)
    for _ in range(SWEEPS):
        around = filled[above, columns] + filled[below, columns] + filled[rows, before] + filled[rows, after]
        filled[rows, columns] = around / 4
    return filled


def _grain(grey: np.ndarray, where: np.ndarray) -> float:
    """The standard deviation of noise that is independent from pixel to pixel, from the distance of the pixels
    ``where`` to the mean of their four neighbours (by the median, so that edges do not count)."""
    inner = np.s_[1:-1, 1:-1]
    around = (grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]) / 4
    off = np.abs(grey[inner] - around)[where[inner]]
    return float(np.median(off)) / (MEDIAN_OF_NORMAL * np.sqrt(1 + 1 / 4)) if off.size else 0.0


def corrupt_black(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Black inside the mask."""
    return np.where(mask[..., None], 0.0, pixels)


def corrupt_crop(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random part of 1 to 20 per cent of the image (mDPO's), wherever the mask is."""
    height, width = mask.shape
    share = np.sqrt(rng.uniform(SMALLEST_CROP, LARGEST_CROP))
    rows, columns = max(1, round(height * share)), max(1, round(width * share))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    return pixels[top : top + rows, left : left + columns]


def corrupt_global(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normal noise of sigma 45 everywhere: for reports, and where no phrase names the evidence."""
    return pixels + rng.normal(0, SIGMA, pixels.shape)


def corrupt_weak(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normal noise of sigma 12 everywhere: where the evidence has a name and was not found."""
    return pixels + rng.normal(0, WEAK_SIGMA, pixels.shape)


MODES: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": corrupt_noise,
    "blur": corrupt_blur,
    "surroundings": corrupt_surroundings,
    "black": corrupt_black,
    "crop": corrupt_crop,
    "global": corrupt_global,
    "weak": corrupt_weak,
}
WHOLE = ("crop", "global", "weak")  # do not depend on the mask
INSIDE = tuple(mode for mode in MODES if mode not in WHOLE)  # change the mask (and its margin) alone
WITHOUT_CHANCE = ("blur", "black")  # those whose result image and mask decide
NOISE_LEVELS = {
    "noise": f"sigma {SIGMA:g} of 255, in the mask",
    "global": f"sigma {SIGMA:g} of 255, everywhere",
    "weak": f"sigma {WEAK_SIGMA:g} of 255, everywhere",
}


def corrupt_image(image: Image.Image, mask: np.ndarray | None, mode: str, key: str) -> Image.Image:
    """The corrupted image, RGB of 0 to 255: rounded and clipped.

    mask: [height, width] bool; without one, or with an empty one, a mode of ``INSIDE`` becomes ``global``. mode: a key
    of ``MODES``. key: seeds the random numbers.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    if mask is None or not mask.any():
        mask, mode = np.zeros(pixels.shape[:2], dtype=bool), mode if mode in WHOLE else "global"
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    changed = MODES[mode](pixels, mask, np.random.default_rng(seed))
    return Image.fromarray(changed.round().clip(0, 255).astype(np.uint8))


def record_mask(preference: Preference, size: tuple[int, int], root: Path) -> tuple[np.ndarray | None, str]:
    """(where the evidence of a record is in its first image, what told so), from the record's own fields.

    size: the image's, (width, height).

    ``mask``: a file, not black where the lesion is, of the image's size; ``boxes``: [[x0, y0, x1, y1], ...], ends
    exclusive; ``polygons``: [[[x, y], ...], ...]; in pixels of the image as it is shown. The first of them counts.
    Raises InputError for a field that cannot be used.
    """
    extra = preference.extra
    if extra.get("mask"):
        if not isinstance(extra["mask"], str):
            raise InputError("mask must be the name of a file")
        mask = np.asarray(open_image(find_image(root, extra["mask"])).convert("L")) > 0
        if mask.shape != size[::-1]:
            raise InputError(f"the mask {extra['mask']} is {mask.shape[::-1]}, its image {size}")
        return mask, "by a mask"
    for name, least, draw in (("boxes", 4, _draw_box), ("polygons", 3, _draw_polygon)):
        if shapes := extra.get(name):
            canvas = Image.new("1", size)
            try:
                for shape in shapes:
                    if len(shape) < least:
                        raise ValueError("too few numbers")
                    draw(ImageDraw.Draw(canvas), shape)
            except (TypeError, ValueError) as error:
                raise InputError(f"{name} of the wrong form: {describe_error(error)}") from None
            return np.asarray(canvas), f"by {name}"
    return None, "without a place"


def _draw_box(draw: ImageDraw.ImageDraw, box: Sequence[float]) -> None:
    x0, y0, x1, y1 = (float(value) for value in box)
    if x1 > x0 and y1 > y0:
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=1)


def _draw_polygon(draw: ImageDraw.ImageDraw, points: Sequence[Sequence[float]]) -> None:
    draw.polygon([(float(x), float(y)) for x, y in points], fill=1)


def check_places(preferences: Sequence[Preference], file: Path) -> None:
    """Opens every mask, and reads all boxes and polygons, of the records that have images.

    Raises FileProblems naming every record whose fields cannot be used, InputError if no record has images.
    """
    root, problems = file.resolve().parent, []
    pictured = [preference for preference in preferences if preference.images]
    for preference in pictured:
        try:
            record_mask(preference, image_size(preference.images[0]), root)
        except InputError as error:
            problems.append(f"{file}:{preference.line}: {error}")
    if problems:
        raise FileProblems(file, problems)
    if not pictured:
        raise InputError(f"{file}: no record has images")


def corrupt_records(
    preferences: Sequence[Preference],
    file: Path,
    out: Path,
    mode: str,
    report: CorruptReport,
    seed: int = 0,
    saliency: Saliency | None = None,
    shown: Shown | None = None,
    placed_only: bool = False,
) -> Iterator[tuple[Preference, list[str]]]:
    """(record, names of its corrupted images relative to ``out``'s folder); PNG files are written beside ``out``.

    preferences: with whole image paths (``find_images``). file: its folder is what their masks are relative to.
    saliency: locates a record's ``phrase`` (a record without this field: its question) where no field gives the place.
    Without a place there is noise everywhere: of sigma 45 if no phrase is known, of sigma 12 if the phrase was not
    found or the mask is empty (arXiv 2606.12590); or, with placed_only, no corrupted image. shown: receives the images
    of the records that it has a list for. Raises as :func:`check_places` before anything is written, and InputError if
    a file cannot be written.
    """
    check_places(preferences, file)
    root = file.resolve().parent
    folder = out.with_name(f"{out.stem}.images")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        last: tuple[tuple | None, Image.Image] | None = None  # questions about one lesion follow each other
        for number, preference in enumerate(preferences):
            names = []
            for place, name in enumerate(preference.images):
                image = open_image(name)
                mask, source = _locate(preference, image, root, saliency) if place == 0 else (None, "")
                used, source = _mode_used(mode, mask, source, _phrase(preference))
                mask = mask if mask is not None and mask.any() else None
                if mask is None and place == 0 and placed_only:
                    report.sources["left alone, without a place"] += 1
                    break
                key = (name, mask.tobytes()) if mask is not None and used in WITHOUT_CHANCE else None
                if key is None or last is None or last[0] != key:
                    last = key, corrupt_image(image, mask, used, f"{seed}/{preference.id}/{place}")
                corrupted = last[1]
                target = folder / f"{number:06d}-{place}.png"
                with file_aside(target) as aside:
                    corrupted.save(aside)
                names.append(os.path.relpath(target, out.parent))
                report.sources[source] += 1
                if shown is not None and preference.id in shown:
                    shown[preference.id].append((image, mask, corrupted, NOISE_LEVELS.get(used, "")))
            yield preference, names
    except OSError as error:
        raise InputError(f"corrupted images cannot be written to {folder}: {error}") from None


def _locate(
    preference: Preference, image: Image.Image, root: Path, saliency: Saliency | None
) -> tuple[np.ndarray | None, str]:
    """(where the evidence is in a record's first image, what told so); None where nothing looked for it."""
    mask, source = record_mask(preference, image.size, root)
    phrase = _phrase(preference)
    if "phrase" not in preference.extra:
        phrase = preference.prompt if isinstance(preference.prompt, str) else preference.prompt[-1]["content"]
    if mask is None and saliency is not None and phrase:
        return saliency(image, phrase), "by the phrase"
    return mask, source


def _phrase(preference: Preference) -> str:
    """What names the evidence of a record; empty where nothing does."""
    phrase = preference.extra.get("phrase")
    return phrase.strip() if isinstance(phrase, str) else ""


def _mode_used(mode: str, mask: np.ndarray | None, source: str, phrase: str) -> tuple[str, str]:
    """(how an image is corrupted, how that is counted). mask: empty where the evidence was not found."""
    if mode in WHOLE:
        return mode, f"by --mode {mode}"
    if mask is not None and mask.any():
        return mode, source
    if mask is None and not phrase:
        return "global", "over the whole image (no phrase)"
    return "weak", "weakly over the whole image (phrase not found)"


def add_corrupt(parser: argparse.ArgumentParser) -> None:
    """The flags of ``generate_prefs.py corrupt``."""
    add = parser.add_argument
    add("--data", required=True, metavar="FILE", help="pairs with images; mask, boxes or polygons tell where")
    add("--out", required=True, metavar="FILE.jsonl", help="the pairs with corrupted_images")
    add(
        "--mode",
        choices=MODES,
        default="noise",
        help="inside the mask (default noise; without one: global, or weak if the phrase was not found); for reports: "
        "global",
    )
    add("--clip", metavar="DIR|ID", help="where nothing tells the place: where this CLIP finds the phrase or question")
    add("--placed-only", action="store_true", help="no corrupted image where nothing tells the place")
    add("--images-anywhere", action="store_true", help="allow images outside the folder of --data")
    add("--sheet", type=int, default=20, help="records on the contact sheet (default 20)")
    add("--seed", type=int, default=0)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.set_defaults(run=run_corrupt)


def run_corrupt(args: argparse.Namespace) -> None:
    """Reads the pairs, writes the corrupted images, the pairs that name both, and a contact sheet."""
    check_paths(args)
    file, out = Path(args.data), Path(args.out)
    check_unused(out)
    preferences = find_images(read_preferences(file, require_rejected=False), file, args.images_anywhere)
    if args.clip:
        check_places(preferences, file)  # before the CLIP is loaded
    from mint.prefs.saliency import ClipSaliency  # a CLIP, needed with --clip alone

    saliency = ClipSaliency(args.clip, choose_device(args.device, "auto")[0]) if args.clip else None
    pictured = [preference.id for preference in preferences if preference.images]
    chosen = pictured[:: max(1, len(pictured) // args.sheet)][: args.sheet] if args.sheet > 0 else []
    shown: Shown = {name: [] for name in chosen}
    report = CorruptReport()
    changed = corrupt_records(preferences, file, out, args.mode, report, args.seed, saliency, shown, args.placed_only)
    bar = Progress(changed, total=len(preferences), desc="corrupting", unit="record")
    write_jsonl(out, (_record(preference, names, file.parent, out.parent) for preference, names in bar))
    if shown:
        contact_sheet(shown, args.mode).save(f"{out}.sheet.png")
    print(f"{out}: {report}")
    say_if_outside([name for preference in preferences for name in preference.images], out)


def _record(preference: Preference, corrupted: list[str], source: Path, folder: Path) -> dict:
    """A record of the file in ``source`` as it is written in ``folder``."""
    record: dict = {"id": preference.id, "prompt": preference.prompt, "images": preference.images}
    record |= {"corrupted_images": corrupted, "chosen": preference.chosen.tagged}
    record |= {"rejected": preference.rejected.tagged} if preference.rejected else {}
    record = move_record(record | preference.extra, source, folder)
    return {key: value for key, value in record.items() if value not in (None, [])}

"""A contact sheet of the synthetic cohort's syndromes: portraits of each, and its frequent facial findings."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mint.errors import InputError
from mint.synthetic.canvas import SIZE
from mint.synthetic.cohort import Syndrome, applies, load_syndromes
from mint.synthetic.portrait import draw_portrait

COLUMNS, MARGIN, TEXT_HEIGHT = 3, 16, 48  # syndromes per row; pixels
AGES = (2.0, 6.0, 10.0, 16.0)


def write_gallery(path: str | Path, patients: int = 4, seed: int = 0) -> None:
    """Writes the sheet as a PNG: for every syndrome ``patients`` portraits and the findings of frequency >= 0.5.

    Raises InputError for fewer than one patient, or if the file cannot be written.
    """
    if patients < 1:
        raise InputError(f"a gallery needs at least one patient per syndrome, not {patients}")
    syndromes = load_syndromes()
    width = patients * SIZE
    cell = (width + MARGIN, SIZE + TEXT_HEIGHT)
    rows = -(-len(syndromes) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    pen, heading, small = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(10)
    for place, syndrome in enumerate(syndromes):
        x, y = MARGIN + place % COLUMNS * cell[0], MARGIN // 2 + place // COLUMNS * cell[1]
        pen.text((x, y), f"{syndrome.name} ({syndrome.disease_id})", fill="black", font=heading)
        frequent = [feature.label for feature in syndrome.features if feature.facial and feature.frequency >= 0.5]
        findings = _wrap(", ".join(frequent), small, width)
        pen.multiline_text((x, y + 16), findings, fill=(90, 90, 90), font=small, spacing=1)
        for number in range(patients):
            sheet.paste(_patient(syndrome, number, seed), (x + number * SIZE, y + TEXT_HEIGHT - 6))
    try:
        sheet.save(path, "PNG")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from None


def _patient(syndrome: Syndrome, number: int, seed: int) -> Image.Image:
    rng = random.Random(f"gallery {seed} {syndrome.disease_id} {number}")
    age, sex = AGES[number % len(AGES)], ("female", "male")[number % 2]
    shown = [f.id for f in syndrome.features if f.facial and applies(f.id, age, sex) and rng.random() < f.frequency]
    return draw_portrait(shown, f"{seed} {syndrome.disease_id} {number}", age, sex)


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int, lines: int = 2) -> str:
    """The text in at most ``lines`` lines of at most ``width`` pixels, cut with an ellipsis."""
    result, words = [""], text.split()
    for word in words:
        longer = f"{result[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            result[-1] = longer
        elif len(result) < lines:
            result.append(word)
        else:
            result[-1] = result[-1].rstrip(",") + " …"
            break
    return "\n".join(result)

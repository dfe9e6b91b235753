"""A contact sheet of corrupted images: clean image, place of the evidence and corrupted image, a row for each."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

# id of a record -> for each of its images: clean, mask [height, width], corrupted, the level of the noise or ""
Shown = dict[str, list[tuple[Image.Image, np.ndarray | None, Image.Image, str]]]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def contact_sheet(shown: Shown, mode: str, side: int = 240) -> Image.Image:
    """Rows of clean image, the same with its mask in red, and corrupted image, each row under the record's id.

    shown: the records by id. mode: the corruption that was asked for.
    """
    top, label, gap, font = 30, 22, 10, ImageFont.load_default(size=14)
    rows = [(name, *images) for name, several in shown.items() for images in several]
    sheet = Image.new("RGB", (3 * (side + gap) + gap, top + len(rows) * (side + label + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("clean", "place of the evidence", f"corrupted: {mode}")):
        draw.text((gap + column * (side + gap), gap - 2), title, fill="black", font=font)
    for row, (name, clean, mask, corrupted, level) in enumerate(rows):
        y = top + gap + row * (side + label + gap)
        draw.line((gap, y - 4, sheet.width - gap, y - 4), fill="#bbbbbb")
        for column, text in enumerate((name, "none given" if mask is None else "", level)):
            place = (gap + column * (side + gap), y)
            draw.text(place, _fitted(draw, text, side, font), fill="black", font=font)
        marked = clean.convert("RGB")
        if mask is not None:
            red = Image.blend(marked, Image.new("RGB", marked.size, (255, 0, 0)), 0.45)
            marked = Image.composite(red, marked, Image.fromarray(mask))
        for column, image in enumerate((clean.convert("RGB"), marked, corrupted)):
            sheet.paste(ImageOps.contain(image, (side, side)), (gap + column * (side + gap), y + label))
    return sheet


def _fitted(draw: ImageDraw.ImageDraw, text: str, width: int, font: Font) -> str:
    """The text, cut where it is wider than ``width`` pixels."""
    while draw.textlength(text, font) > width:
        text = f"{text[:-4]}..." if text.endswith("...") else f"{text[:-3]}..."
    return text

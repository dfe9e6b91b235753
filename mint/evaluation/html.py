"""What the HTML pages share: their style, tables, and pictures that lie in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from mint.data.image_files import open_image
from mint.errors import InputError

WIDEST = 256  # pixels of an embedded picture
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d5dae1; }
table { border-collapse: collapse; margin: .7rem 0; } td, th { padding: .25rem .6rem; border-bottom: 1px solid #e5e8ec; }
th { text-align: left; font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
small { color: #667; } .wide { overflow-x: auto; } .best { font-weight: 700; }
details { border: 1px solid #d5dae1; border-radius: 6px; margin: .5rem 0; padding: .45rem .8rem; }
summary { cursor: pointer; } .case { display: flex; gap: 1.2rem; flex-wrap: wrap; margin-top: .6rem; }
.case ol { margin: .2rem 0 0; padding-left: 1.5rem; } .list { min-width: 14rem; flex: 1; } .note { max-width: 34rem; }
.hit { background: #d6f0de; font-weight: 600; } .shared { color: #2f6db3; } img { border-radius: 6px; width: 168px; }
.figure img { width: auto; min-width: 11rem; max-width: 100%; }
.mark { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .3rem; }
"""


def html_page(title: str, body: str) -> str:
    """A whole page that needs no network."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en">{head}\n{body}\n</html>\n'


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already; all but the first column are numbers, unless they begin with a tag."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def text_cell(value: str) -> str:
    """A cell of ordinary text."""
    return f"<td>{escape(value)}</td>"


def number_cell(value: str) -> str:
    """A cell of HTML, aligned as a number."""
    return f'<td class="n">{value}</td>'


def embed_picture(path: Path, alt: str, widest: int = WIDEST) -> str:
    """The image as a PNG in the page, reduced to ``widest`` pixels; nothing for a file that cannot be read."""
    try:
        return embed_image(open_image(path), alt, widest)
    except InputError:
        return ""


def embed_image(image: Image.Image, alt: str, widest: int = WIDEST) -> str:
    """An image as a PNG in the page, reduced to ``widest`` pixels."""
    image.thumbnail((widest, widest))
    content = io.BytesIO()
    image.save(content, "PNG")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'

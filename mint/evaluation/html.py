"""HTML pages: one style for all, light and dark; elements whose content is escaped; tables; pictures inside the page.

A page is one file without scripts and without links to other files, readable from 400 pixels of width.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from mint.data.image_files import open_image
from mint.errors import InputError

WIDEST = 256  # pixels of an embedded picture
# Each has a contrast of at least 4.5 with white, and of at least 3 with both backgrounds.
COLOURS = ("#2369b0", "#b4540a", "#1f7a45", "#c2353c", "#7a52b8", "#8a6116", "#b43c8c", "#3a7480", "#697214", "#666e7a")
STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b232e; --soft: #566070; --line: #d5dae1; --card: #f4f6f8;
  --good: #d3efdc; --bad: #c2353c; --right: #1f7a45; --link: #1f5fa8; }
@media (prefers-color-scheme: dark) { :root { --back: #14181f; --text: #e4e8ee; --soft: #a5afbc; --line: #363e4a;
  --card: #1d232c; --good: #1b4b2f; --bad: #f08a86; --right: #6fcf97; --link: #8dbbf0; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; margin: 0; background: var(--back); color: var(--text); }
main { max-width: 84rem; margin: 0 auto; padding: 1.2rem clamp(.8rem, 3vw, 2.5rem) 3rem; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: .3rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
p, dl { max-width: 60rem; } .lead, small, figcaption, caption { color: var(--soft); } .warn { font-weight: 600; }
.wide { overflow-x: auto; max-width: 100%; background: linear-gradient(to left, var(--back) 50%, transparent) right
  / 3rem 100% no-repeat local, linear-gradient(to left, var(--line), transparent) right / 1rem 100% no-repeat scroll; }
.best { font-weight: 700; }
table { border-collapse: collapse; margin: .6rem 0; } caption { text-align: left; padding-bottom: .3rem; }
td, th { padding: .28rem .5rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { vertical-align: bottom; color: var(--soft); font-size: .88rem; } th { font-weight: 600; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; min-width: 4rem; } td.n { white-space: nowrap; }
th[scope=row] { min-width: 7rem; max-width: 20rem; overflow-wrap: break-word; position: sticky; left: 0;
  background: var(--back); } td.plot { min-width: 10rem; width: 24rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; padding: .45rem .8rem; }
summary { cursor: pointer; overflow-wrap: anywhere; } ul, ol { margin: .2rem 0 0; padding-left: 1.5rem; }
.row { display: flex; gap: .8rem 1.4rem; flex-wrap: wrap; align-items: flex-start; margin: .5rem 0; }
.row > * { min-width: 0; }
.list { flex: 1 1 13rem; } .note { flex: 1 1 18rem; max-width: 34rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.hit { background: var(--good); font-weight: 600; } .shared { color: var(--link); } img { border-radius: 4px; }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; }
.case img { width: 168px; height: auto; }
.pictures { display: flex; gap: .6rem; max-width: 75rem; align-items: flex-start; } .pictures figure { min-width: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem; }
.tile { border: 3px solid var(--right); border-radius: 6px; padding: .3rem; overflow-wrap: anywhere; }
.tile.wrong { border: 3px dashed var(--bad); } .tile details { border: 0; margin: 0; padding: 0; font-size: .9rem; }
.chip { display: inline-block; background: var(--c); color: #fff; border-radius: 4px; padding: 0 .4em; margin: 0 .2em;
  font-size: .82rem; font-weight: 700; white-space: nowrap; }
.system { display: inline-flex; align-items: baseline; margin-right: .8em; } .system .chip { margin-left: 0; }
#filter { margin: 0 .4rem 0 0; } #filter:checked ~ * .plain { display: none; }
svg { display: block; overflow: visible; } svg text { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--line); } svg .zero { stroke: var(--soft); }
svg .mark { stroke: var(--c); fill: var(--c); stroke-width: 2; }
svg .letter { fill: #fff; font-weight: 700; font-size: 11px; } .chart { margin: .6rem 0; max-width: 60rem; }
.matrix { font-size: .8rem; }
.matrix td { text-align: center; padding: .15rem .2rem; line-height: 1.15; min-width: 1.8rem; }
.matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg); padding: .3rem .1rem; white-space: nowrap;
  text-align: left; vertical-align: middle; min-width: 0; } .matrix small { color: inherit; }
.matrix th[scope=row] { min-width: 0; white-space: nowrap; }
.matrix .own { outline: 2px solid var(--right); outline-offset: -2px; }
.token { display: inline-block; text-align: center; white-space: pre; margin: .1rem .06rem; padding: 0 .12rem;
  border-radius: 3px; border-bottom: 3px solid transparent; } .token.marked { border-bottom-color: var(--text); }
.token small { display: block; font-size: .66rem; line-height: 1.1; color: inherit; }
.scale { display: inline-block; width: 12rem; height: .9rem; border: 1px solid var(--line); vertical-align: middle; }
""" + "".join(f".s{i} {{ --c: {colour}; }}\n" for i, colour in enumerate(COLOURS))
VOID = {"img", "input", "meta", "br"}


class Html(str):
    """Text that is HTML already; any other text is escaped where it becomes part of an element."""


def tag(name: str, /, *content: object, **attributes: object) -> Html:
    """An element. class_ stands for class, text_anchor for text-anchor; attributes that are None are left out."""
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    given = "".join(f' {names[k]}="{escape(str(v))}"' for k, v in attributes.items() if v is not None)
    return Html(f"<{name}{given}>") if name in VOID else Html(f"<{name}{given}>{join(content)}</{name}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """The parts one after the other: HTML as it is, all else escaped."""
    return Html(between.join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


def html_page(title: str, *parts: object) -> str:
    """A whole page."""
    size = tag("meta", name="viewport", content="width=device-width, initial-scale=1")
    head = tag("head", tag("meta", charset="utf-8"), size, tag("title", title), tag("style", Html(STYLE)))
    return f'<!DOCTYPE html>\n<html lang="en">{head}\n<body>{tag("main", join(parts, chr(10)))}</body></html>\n'


def html_table(head: Sequence[object], rows: Iterable[Sequence[object]], texts: int = 1, class_: str | None = None):
    """A table that scrolls where it is too wide. texts: leading columns of text, of which the first heads its row; the
    others are numbers. Cells that are elements of their own (``td``) stay as they are."""
    top = tag("tr", *(tag("th", cell, scope="col", class_="n" if i >= texts else None) for i, cell in enumerate(head)))
    body = [tag("tr", *(_cell(i, cell, texts) for i, cell in enumerate(row))) for row in rows]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body), class_=class_), class_="wide")


def _cell(place: int, cell: object, texts: int) -> Html:
    if isinstance(cell, Html) and cell.startswith("<td"):
        return cell
    if place == 0:
        return tag("th", cell, scope="row")
    return tag("td", cell, class_="n" if place >= texts else None)


def details(title: object, *content: object, class_: str | None = None) -> Html:
    """Content that is shown on a click."""
    return tag("details", tag("summary", title), *content, class_=class_)


def chip(number: int, text: object = "") -> Html:
    """The marker of a system: its letter on its colour, and a short text."""
    return tag("span", f"{letter(number)} {text}".strip(), class_=f"chip s{number % len(COLOURS)}")


def system_name(number: int, name: object) -> Html:
    """A system's name after its marker."""
    return tag("span", chip(number), tag("span", name), class_="system")


def letter(number: int) -> str:
    """A, B, ... of the systems of a page."""
    return chr(ord("A") + number % 26)


def filter_box(text: str) -> Html:
    """A check box that hides the elements of class ``plain`` in what follows it (one a page)."""
    return join([tag("input", type="checkbox", id="filter"), tag("label", text, for_="filter")])


def name_list(title: object, names: Sequence[str], hits: Sequence[bool], shared: Sequence[bool]) -> Html:
    """A ranked list; hits: which names are the truth (marked with a tick); shared: which the teacher lists too (T)."""
    items = [
        tag("li", name, " ✓" * hit + " (T)" * (both and not hit), class_="hit" if hit else "shared" if both else None)
        for name, hit, both in zip(names, hits, shared, strict=True)
    ]
    return tag("div", tag("b", title), tag("ol", *items) if items else tag("p", "no list"), class_="list")


def embed_picture(path: Path, alt: str) -> Html:
    """The image as a PNG in the page, reduced to ``WIDEST`` pixels; nothing for a file that cannot be read.

    path: of a file that the reader of the data has found inside its folder (``find_image``).
    """
    try:
        return embed_image(open_image(path), alt)
    except InputError:
        return Html()


def embed_image(image: Image.Image, alt: str, widest: int = WIDEST) -> Html:
    """An image as a PNG in the page, reduced to ``widest`` pixels."""
    image.thumbnail((widest, widest))
    content = io.BytesIO()
    image.save(content, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return tag("img", alt=alt, src=source, width=image.width, height=image.height)

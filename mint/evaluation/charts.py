"""Charts of the HTML pages: SVG with horizontal places as shares of the width, so that text keeps its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mint.evaluation.html import COLOURS, Html, join, letter, tag
from mint.evaluation.statistics import Estimate

HUES = {"blue": "47, 109, 179", "red": "200, 60, 50"}
STRONGEST = 0.6  # opacity of a colour behind text


def nice_ticks(largest: float, count: int = 5) -> list[float]:
    """0 and up to ``count`` equal steps of 1, 2 or 5 times a power of ten, the last at least ``largest``."""
    step = 10.0 ** math.floor(math.log10(max(largest, 1e-9) / count))
    step = next(step * size for size in (1, 2, 5, 10) if step * size * count >= largest * (1 - 1e-9))
    return [step * i for i in range(max(1, math.ceil(largest / step - 1e-9)) + 1)]


def _svg(height: int, label: str, *shapes: Html) -> Html:
    return tag("svg", tag("title", label), *shapes, width="100%", height=height, role="img", aria_label=label)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str = "grid", **more) -> Html:
    ends = {"x1": f"{x1:.2f}%", "x2": f"{x2:.2f}%", "y1": f"{y1:.1f}", "y2": f"{y2:.1f}"}
    return tag("line", class_=class_, **ends, **more)


def _text(x: float, y: float, text: object, anchor: str = "middle", **more) -> Html:
    return tag("text", text, x=f"{x:.2f}%", y=f"{y:.1f}", text_anchor=anchor, **more)


def line_chart(
    lines: Sequence[tuple[int | None, str, Sequence[float]]], labels: Sequence[object], title: str, height: int = 260
) -> Html:
    """Shares in 0 to 1 over places. lines: (number of the system, name, a value a label); None: dashed, marked T."""
    ticks = nice_ticks(max((max(values) for _, _, values in lines), default=0.0) or 1.0)
    left, right, top, bottom = 7.0, 95.0, 10, height - 40
    xs = [left + 1 + (right - left - 1) * (i / max(1, len(labels) - 1)) for i in range(len(labels))]

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / ticks[-1]

    shapes = [_line(left, y(tick), right, y(tick)) for tick in ticks]
    shapes += [_text(left - 0.8, y(tick) + 4, f"{100 * tick:g} %", "end") for tick in ticks]
    shapes += [_text(x, bottom + 17, label) for x, label in zip(xs, labels, strict=True)]
    shapes.append(_text(50, height - 4, title))
    free = bottom + 9.0  # the lowest place for the marker of the next line
    for number, name, values in sorted(lines, key=lambda line: line[2][-1]):
        colour, mark = ("", "T") if number is None else (f"s{number % len(COLOURS)}", letter(number))
        style: dict = {"class_": f"mark {colour}", "style": "--c: #666e7a" if number is None else None}
        dashes = "6 4" if number is None else None
        points = list(zip(xs, values, labels, strict=True))
        pairs = zip(points, points[1:], strict=False)
        shapes += [_line(x1, y(a), x2, y(b), stroke_dasharray=dashes, **style) for (x1, a, _), (x2, b, _) in pairs]
        for x, value, label in points:
            words = tag("title", f"{name}, {label}: {100 * value:.1f} %")
            shapes.append(tag("circle", words, cx=f"{x:.2f}%", cy=f"{y(value):.1f}", r=3, **style))
        free = min(free - 17, y(values[-1]))
        box = tag("rect", x=-9, y=-8, width=18, height=16, rx=3, **style)
        place = {"x": f"{right + 2.5:.2f}%", "y": f"{free:.1f}", "overflow": "visible"}
        shapes.append(tag("svg", box, tag("text", mark, class_="letter", y=4, text_anchor="middle"), **place))
    return tag("figure", _svg(height, title, *shapes), class_="chart")


def forest_cell(e: Estimate, limit: float, number: int, label: str) -> Html:
    """A table's cell with an interval and its estimate on an axis from -limit to limit."""
    low, value, high = (50 + 48 * max(-1.0, min(1.0, part / limit)) for part in (e.low, e.value, e.high))
    colour = f"mark s{number % len(COLOURS)}"
    mark = tag("circle", cx=f"{value:.2f}%", cy=11, r=5, class_=colour)
    shapes = (_line(50, -6, 50, 28, "zero"), _line(low, 11, high, 11, colour), mark)
    return tag("td", _svg(22, label, *shapes), class_="plot")


def forest_axis(limit: float, write: Callable[[float], str]) -> Html:
    """The axis below such cells."""
    ends = ((-limit, 2, "start"), (0.0, 50, "middle"), (limit, 98, "end"))
    shapes = [_line(2, 2, 98, 2)] + [_text(x, 16, write(value), anchor) for value, x, anchor in ends]
    return tag("td", _svg(20, "axis", *shapes), class_="plot")


def heat(value: float, hue: str = "blue") -> str:
    """A style: the colour of a value in 0 to 1 behind text that stays readable."""
    return f"background: rgba({HUES[hue]}, {STRONGEST * min(1.0, max(0.0, value)):.2f})"


def heat_scale(title: str, low: str, high: str, *hues: str) -> Html:
    """The legend of :func:`heat`. hues: from the lowest to the highest value; "" is no colour."""
    stops = ", ".join(f"rgba({HUES[hue]}, {STRONGEST})" if hue else "transparent" for hue in hues)
    bar = tag(
        "span", class_="scale", style=f"background: linear-gradient(to right, {stops})", role="img", aria_label=title
    )
    return tag("p", join([title, ": ", low, " ", bar, " ", high]), class_="lead")

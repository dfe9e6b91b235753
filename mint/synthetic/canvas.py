"""A canvas for small schematic pictures: shapes are drawn at four times the size and averaged, then lit.

Lengths are in pixels of the result; x is measured from the middle of the picture, y from its top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

SIZE, SCALE = 112, 4

Colour = tuple[int, int, int]
Point = tuple[float, float]
Points = list[Point]
BLACK: Colour = (0, 0, 0)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """A blend of two colours. share: of b, clamped to [0, 1]."""
    share = min(1.0, max(0.0, share))
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


STEPS = 6  # per segment of a curve
# Catmull-Rom: weights of four neighbouring points, at each step from the second to the third.
WEIGHTS = [
    ((2 * t**2 - t - t**3) / 2, (3 * t**3 - 5 * t**2 + 2) / 2, (4 * t**2 + t - 3 * t**3) / 2, (t**3 - t**2) / 2)
    for t in (k / STEPS for k in range(STEPS))
]


def mirror(points: Sequence[Point]) -> Points:
    """The points reflected about the vertical axis, in reverse order, to continue an outline on the other side."""
    return [(-x, y) for x, y in reversed(points)]


def beside(side: int, points: Sequence[Point], x: float = 0.0) -> Points:
    """The points on the right (side 1) or the left (-1) of the vertical axis at ``x``."""
    return [(side * u + x, v) for u, v in points]


def curve(points: Sequence[Point], closed: bool = False) -> Points:
    """A smooth curve through the points (a Catmull-Rom spline)."""
    ring = [points[-1], *points, *points[:2]] if closed else [points[0], *points, points[-1]]
    result = []
    for (x0, y0), (x1, y1), (x2, y2), (x3, y3) in zip(ring, ring[1:], ring[2:], ring[3:], strict=False):
        for a, b, c, d in WEIGHTS:
            result.append((a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3))
    return result if closed else [*result, points[-1]]


class Canvas:
    """The picture. skew: deforms shapes to one side; turn: tilts them (radians); shift: moves them (pixels)."""

    def __init__(self, background: Colour, skew: float, turn: float, shift: tuple[float, float]):
        self.skew, self.turn, self.shift = skew, turn, shift
        self.image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), background)
        self.pen = ImageDraw.Draw(self.image)
        self.shades: list[tuple[float, float, float, float, float]] = []  # x, y, width, height, strength

    def _place(self, x: float, y: float) -> Point:
        """Where a point lies on the large picture."""
        skew = self.skew
        if skew:
            x, y = x + 3.2 * skew * max(0.0, (y - 40) / 60), y + skew * 0.1 * x
            x *= 1 + 0.1 * skew * (1 if x > 0 else -1)
        dx, dy = x, y - 60
        x, y = dx - self.turn * dy, dy + self.turn * dx
        return (x + 56 + self.shift[0]) * SCALE, (y + 60 + self.shift[1]) * SCALE

    def fill(self, points: Sequence[Point], colour: Colour) -> None:
        self.pen.polygon([self._place(*point) for point in points], fill=colour)

    def blob(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled shape with a smooth outline through the points."""
        self.fill(curve(points, closed=True), colour)

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        placed, width = [self._place(*point) for point in points], max(1, round(width * SCALE))
        self.pen.line(placed, fill=colour, width=width, joint="curve")

    def stroke(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """A smooth line through the points."""
        self.line(curve(points), colour, width)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        angles = [k * math.tau / 20 for k in range(20)]
        self.fill([(x + rx * math.cos(t), y + ry * math.sin(t)) for t in angles], colour)

    def shade(self, x: float, y: float, width: float, height: float, strength: float) -> None:
        """A soft patch, darker (strength < 0) or lighter."""
        px, py = self._place(x, y)
        self.shades.append((px / SCALE, py / SCALE, width, height, strength))

    def inside(self, outline: Sequence[Point], draw: Callable[[], None]) -> None:
        """Runs ``draw``, clipped to the outline."""
        mask = Image.new("1", self.image.size)
        ImageDraw.Draw(mask).polygon([self._place(*point) for point in outline], fill=1)
        layer, pen = self.image.copy(), self.pen
        self.pen = ImageDraw.Draw(layer)
        draw()
        self.image.paste(layer, mask=mask)
        self.pen = pen

    def finish(self, rng: np.random.Generator) -> Image.Image:
        """The averaged picture with shading, uneven light and sensor noise, [SIZE, SIZE] RGB."""
        pixels = np.asarray(self.image.reduce(SCALE), dtype=np.float32)
        axis = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)
        gradient = 1 + rng.normal(0, 0.06) * (axis - 56)[None, :] / 56 + rng.normal(0, 0.05) * (axis - 56)[:, None] / 56
        light = gradient.astype(np.float32) + np.float32(rng.normal(0, 0.04))
        for x, y, width, height, strength in self.shades:
            if abs(strength) > 0.01:
                across, down = (axis - x) / width, (axis - y) / height
                light += strength * np.outer(np.exp(-down * down), np.exp(-across * across)).astype(np.float32)
        tint = np.float32(1 + rng.normal(0, 0.02, 3))
        pixels = pixels * light[:, :, None] * tint + rng.normal(0, 2.5, (SIZE, SIZE, 1)).astype(np.float32)
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

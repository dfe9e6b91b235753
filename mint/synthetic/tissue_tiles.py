"""Synthetic H&E tiles: 19 tissues that differ in the shape and layout of their nuclei.

``tissues.tsv`` gives for each tissue the layout of its nuclei (glands, cords, sheets, layers, nests, bundles or walls
of air spaces), their size, elongation, density and staining, and the stroma between them. Position, direction, stain,
focus, brightness and noise are random. A tile is drawn as the amounts of two dyes, haematoxylin and eosin, and
converted to RGB by the Beer-Lambert law with the absorption coefficients of Ruifrok and Johnston (2001).

Lengths are in pixels of a 64 x 64 tile. The tiles are schematic, not realistic histology.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mint.synthetic.package_tables import read_table

SIDE = 64
FINE = 3  # scale of the drawing, which is then reduced
MARGIN = 12  # around the tile, so that its edges cut structures
HAEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)  # absorption of red, green and blue
# content of a lumen -> (haematoxylin, eosin)
FILLINGS = {"white": (0.0, 0.0), "mucin": (0.12, 0.04), "colloid": (0.03, 0.85), "keratin": (0.02, 1.1)}


@dataclass(frozen=True)
class Tissue:
    """A row of ``tissues.tsv``.

    radius: of a nucleus; spread: its relative standard deviation; aspect: length / width. spacing: between nuclei, or
    between glands, nests or air spaces. layers: rows of nuclei around a gland. nucleoli: share of nuclei with one.
    chromatin, cytoplasm, stroma: amount of dye. fibres: contrast of stripes in the stroma. lumen: content of a gland.
    """

    tissue: str
    layout: str
    radius: float
    spread: float
    aspect: float
    spacing: float
    layers: int
    nucleoli: float
    chromatin: float
    cytoplasm: float
    stroma: float
    fibres: float
    lumen: str


@functools.cache
def load_tissues() -> tuple[Tissue, ...]:
    """The tissues in the order of PanNuke's list. Raises InputError for an invalid table."""
    convert = [{"str": str, "int": int, "float": float}[str(field.type)] for field in fields(Tissue)]
    rows = read_table("tissues.tsv", [field.name for field in fields(Tissue)])
    return tuple(Tissue(*(f(cell) for f, cell in zip(convert, cells, strict=True))) for _, cells in rows)


Nucleus = tuple[float, float, float]  # x, y, direction


class _Sheet:
    """A tile in progress: masks of the dyes at ``FINE`` times its size."""

    def __init__(self, tissue: Tissue, rng: np.random.Generator):
        self.tissue, self.rng = tissue, rng
        self.size = SIDE + 2 * MARGIN
        self.direction = rng.uniform(0, math.pi)
        self.nuclei: list[Nucleus] = []
        self.cells = Image.new("L", (self.size * FINE,) * 2)  # cytoplasm
        self.spaces = Image.new("L", self.cells.size)  # lumina

    def circle(self, where: Image.Image, x: float, y: float, radius: float, wobble: float = 0.12) -> None:
        """An irregular circle."""
        angles = np.linspace(0, 2 * math.pi, 24, endpoint=False)
        shape = radius * (1 + wobble * np.sin(angles * self.rng.integers(2, 5) + self.rng.uniform(0, 6)))
        _fill(where, x + shape * np.cos(angles), y + shape * np.sin(angles))

    def lattice(self, spacing: float, jitter: float) -> Iterator[tuple[float, float]]:
        """Points of a rotated hexagonal lattice, with noise of ``jitter`` times the spacing."""
        reach = self.size
        cos, sin = math.cos(self.direction), math.sin(self.direction)
        shift_x, shift_y = self.rng.uniform(0, spacing, 2)
        for row in range(int(2 * reach / (spacing * 0.87))):
            for column in range(int(2 * reach / spacing)):
                u = (column + row % 2 / 2) * spacing - reach + shift_x
                v = row * spacing * 0.87 - reach + shift_y
                dx, dy = self.rng.normal(0, jitter * spacing, 2)
                x, y = self.size / 2 + u * cos - v * sin + dx, self.size / 2 + u * sin + v * cos + dy
                if -spacing < x < self.size + spacing and -spacing < y < self.size + spacing:
                    yield x, y

    # -- layouts ----------------------------------------------------------------------------------------------------

    def grid(self) -> None:
        """A sheet of adjacent cells."""
        for x, y in self.lattice(self.tissue.spacing, 0.12):
            self.circle(self.cells, x, y, self.tissue.spacing * 0.5)
            self.nuclei.append((x, y, self.rng.uniform(0, math.pi)))

    def rows(self) -> None:
        """Cords of cells separated by clefts."""
        step, cos, sin = self.tissue.spacing, math.cos(self.direction), math.sin(self.direction)
        period = step * (self.tissue.layers + 0.6)
        offset = self.rng.uniform(0, period)
        for x, y in self.lattice(step, 0.10):
            across = (-x * sin + y * cos + offset) % period
            if across < period - 0.6 * step:
                self.circle(self.cells, x, y, step * 0.5)
                self.nuclei.append((x, y, self.direction + self.rng.normal(0, 0.4)))

    def layers(self) -> None:
        """An epithelium whose cell density falls from one side to the other."""
        cos, sin = math.cos(self.direction), math.sin(self.direction)
        for x, y in self.lattice(self.tissue.spacing * 0.8, 0.15):
            depth = ((x - self.size / 2) * cos + (y - self.size / 2) * sin) / self.size + 0.5
            if self.rng.random() < 1.1 - depth:
                self.circle(self.cells, x, y, self.tissue.spacing * 0.6)
                self.nuclei.append((x, y, self.direction + math.pi / 2 * (depth > 0.4) + self.rng.normal(0, 0.3)))

    def fibres(self) -> None:
        """Bundles of elongated cells in one direction, slightly wavy."""
        phase, wave = self.rng.uniform(0, 6), self.rng.uniform(0.05, 0.12)
        for x, y in self.lattice(self.tissue.spacing, 0.28):
            bend = 0.35 * math.sin(wave * (x + y) + phase)
            self.nuclei.append((x, y, self.direction + bend + self.rng.normal(0, 0.12)))

    def nests(self) -> None:
        """Nests of cells."""
        inner = max(2.2 * self.tissue.radius, 4.5)
        for cx, cy in self.lattice(self.tissue.spacing, 0.10):
            radius = self.tissue.spacing * self.rng.uniform(0.40, 0.50)
            self.circle(self.cells, cx, cy, radius)
            if self.tissue.lumen != "none":
                self.circle(self.spaces, cx, cy, radius * 0.3)
            first = 0.3 if self.tissue.lumen == "none" else 0.55
            for ring in np.arange(first * radius, radius, inner):
                count = max(1, int(2 * math.pi * ring / inner))
                for turn in np.arange(count) * 2 * math.pi / count + self.rng.uniform(0, 6):
                    x, y = cx + ring * math.cos(turn), cy + ring * math.sin(turn)
                    self.nuclei.append((x, y, turn + self.rng.normal(0, 0.5)))

    def rings(self) -> None:
        """Glands: one or more rows of nuclei around a lumen, pointing to it."""
        tissue = self.tissue
        for cx, cy in self.lattice(tissue.spacing, 0.05):
            radius = tissue.spacing * self.rng.uniform(0.40, 0.48)
            self.circle(self.cells, cx, cy, radius)
            short, long = tissue.radius / tissue.aspect**0.5, tissue.radius * tissue.aspect**0.5
            wall = min(0.8 * radius, 2.1 * long * tissue.layers + 1.2)
            self.circle(self.spaces, cx, cy, max(1.0, radius - wall))
            for ring in radius - long * (1.0 + 2.1 * np.arange(tissue.layers)):
                count = max(1, int(2 * math.pi * ring / (2.6 * short)))
                for turn in (np.arange(count) + self.rng.uniform()) * 2 * math.pi / count:
                    x, y = cx + ring * math.cos(turn), cy + ring * math.sin(turn)
                    self.nuclei.append((x, y, turn + self.rng.normal(0, 0.15)))

    def honeycomb(self) -> None:
        """Air spaces with thin walls."""
        for cx, cy in self.lattice(self.tissue.spacing, 0.10):
            radius = self.tissue.spacing * self.rng.uniform(0.42, 0.47)
            self.circle(self.cells, cx, cy, radius + 1.6, 0.2)
            self.circle(self.spaces, cx, cy, radius, 0.2)
            for turn in self.rng.uniform(0, 2 * math.pi, 7):
                wall = radius + self.rng.uniform(0, 1.5)
                self.nuclei.append((cx + wall * math.cos(turn), cy + wall * math.sin(turn), turn + math.pi / 2))

    # -- from shapes to dye -----------------------------------------------------------------------------------------

    def dyes(self) -> tuple[np.ndarray, np.ndarray]:
        """(haematoxylin, eosin), each [size * FINE, size * FINE]."""
        tissue, rng = self.tissue, self.rng
        getattr(self, tissue.layout)()
        side = self.cells.size[0]
        dark, dots = Image.new("L", self.cells.size), Image.new("L", self.cells.size)
        for x, y, direction in self.nuclei:
            radius = tissue.radius * max(0.5, 1 + tissue.spread * rng.normal())
            self._ellipse(dark, x, y, radius * tissue.aspect**0.5, radius / tissue.aspect**0.5, direction)
            if rng.random() < tissue.nucleoli:
                self.circle(dots, x + rng.normal(0, 0.2 * radius), y + rng.normal(0, 0.2 * radius), 0.30 * radius)
        nuclei, cells, spaces, nucleoli = (
            np.asarray(mask, np.float32) / 255 for mask in (dark, self.cells, self.spaces, dots)
        )
        rows, columns = np.mgrid[0:side, 0:side] / FINE
        along = -columns * math.sin(self.direction) + rows * math.cos(self.direction)
        stripes = 0.5 + 0.5 * np.sin(along * rng.uniform(1.2, 1.8) + 2 * _clouds(rng, side, 10))
        stroma = tissue.stroma * (1 - tissue.fibres * 0.6 * stripes) * (0.8 + 0.4 * _clouds(rng, side, 14))
        grain = _clouds(rng, side, 24)
        eosin = np.where(cells > 0.5, tissue.cytoplasm * (0.8 + 0.4 * grain), stroma)
        haematoxylin = np.where(cells > 0.5, 0.10 + 0.06 * grain, 0.05)
        if tissue.lumen != "none":
            blue, pink = FILLINGS[tissue.lumen]
            haematoxylin, eosin = np.where(spaces > 0.5, blue, haematoxylin), np.where(spaces > 0.5, pink, eosin)
        chromatin = tissue.chromatin * (0.75 + 0.5 * _clouds(rng, side, 40))
        haematoxylin = np.where(nuclei > 0.5, chromatin + 0.5 * nucleoli, haematoxylin)
        eosin = np.where(nuclei > 0.5, 0.25 + 0.2 * nucleoli, eosin)
        return haematoxylin, eosin

    def _ellipse(self, where: Image.Image, x: float, y: float, long: float, short: float, direction: float) -> None:
        angles = np.linspace(0, 2 * math.pi, 20, endpoint=False)
        u, v = long * np.cos(angles), short * np.sin(angles)
        cos, sin = math.cos(direction), math.sin(direction)
        _fill(where, x + u * cos - v * sin, y + u * sin + v * cos)


def _fill(where: Image.Image, x: np.ndarray, y: np.ndarray) -> None:
    """Fills the polygon with these corners, in pixels of the tile."""
    ImageDraw.Draw(where).polygon(list(zip(x * FINE, y * FINE, strict=True)), fill=255)


def _clouds(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Smooth noise in [0, 1] with about ``cells`` bumps along an edge, [side, side]."""
    coarse = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255


def draw_tile(tissue: Tissue, seed: str | int) -> Image.Image:
    """A tile of 64 x 64 pixels, RGB; the same for the same tissue and seed."""
    digest = np.frombuffer(f"{tissue.tissue}/{seed}".encode(), np.uint8)
    rng = np.random.default_rng(digest)
    haematoxylin, eosin = _Sheet(tissue, rng).dyes()
    gains = rng.normal(1.0, 0.18, 2).clip(0.5, 1.5)
    absorbed = sum(
        (gain * dye)[..., None] * (np.array(colour) + rng.normal(0, 0.05, 3))
        for gain, dye, colour in zip(gains, (haematoxylin, eosin), (HAEMATOXYLIN, EOSIN), strict=True)
    )
    light = rng.uniform(0.88, 1.0) * np.exp(-absorbed * np.array([1.5, 1.0, 1.2]))
    picture = Image.fromarray((255 * light.clip(0, 1)).astype(np.uint8))
    edge = MARGIN * FINE
    picture = picture.crop((edge, edge, edge + SIDE * FINE, edge + SIDE * FINE))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2.2))).resize((SIDE, SIDE), Image.Resampling.BOX)
    noisy = np.asarray(picture, np.float32) + rng.normal(0, rng.uniform(1, 5), (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

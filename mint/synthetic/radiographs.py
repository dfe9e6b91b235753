"""Synthetic chest radiographs of random anatomy and exposure, with findings and their masks.

As on a real radiograph, the patient's right side is on the left of the image. A finding has a kind, a side and a
degree; nodules and consolidations also have a zone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 64
KINDS = ("nodule", "consolidation", "effusion", "pneumothorax")
SIDES = ("left", "right")
ZONES = ("upper", "middle", "lower")
DEGREES = ("small", "moderate", "large")
ZONED = ("nodule", "consolidation")
HEIGHTS = {"upper": (0.26, 0.36), "middle": (0.42, 0.52), "lower": (0.58, 0.68)}  # fraction of the image's height


@dataclass(frozen=True)
class Habit:
    """Distribution of one kind of finding.

    beside: an earlier one of ``KINDS``. present: (probability of the finding where ``beside`` is absent, where it is
    present); without ``beside``, both are the same. left: probability of the left side. degrees, zones: probabilities
    of ``DEGREES`` and ``ZONES``.
    """

    present: tuple[float, float] = (0.5, 0.5)
    beside: str | None = None
    left: float = 0.5
    degrees: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    zones: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)


@dataclass(frozen=True)
class Patients:
    """Joint distribution of the findings.

    habits: of every kind. tube: probability of a tracheal tube (without a pneumothorax, with one); None: no tubes.
    """

    habits: Mapping[str, Habit]
    tube: tuple[float, float] | None = None


def alike(habit: Habit) -> Patients:
    """Independent findings, all kinds with the same distribution."""
    return Patients(dict.fromkeys(KINDS, habit))


EVERYONE = alike(Habit())


@dataclass(frozen=True)
class DrawnFinding:
    """A finding. zone: None for kinds without one. mask: where it is, [SIDE, SIDE] bool."""

    kind: str
    side: str
    degree: str
    zone: str | None
    mask: np.ndarray


@dataclass(frozen=True)
class Radiograph:
    """An image, [SIDE, SIDE] RGB, the findings on it, and whether it shows a tube."""

    image: Image.Image
    findings: tuple[DrawnFinding, ...]
    tube: bool = False


class _Film:
    """A radiograph in progress: brightness between 0 and 1."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.y, self.x = (np.mgrid[0:SIDE, 0:SIDE] + 0.5) / SIDE
        turn = rng.normal(0, 0.03)
        dx, dy = self.x - 0.5 + rng.normal(0, 0.015), self.y - 0.5 + rng.normal(0, 0.015)
        self.x = 0.5 + dx * math.cos(turn) - dy * math.sin(turn)
        self.y = 0.5 + dx * math.sin(turn) + dy * math.cos(turn)
        self.pixels = np.full((SIDE, SIDE), 0.62 + rng.normal(0, 0.03))
        self.lungs = {}
        width, height = rng.uniform(0.15, 0.18), rng.uniform(0.28, 0.33)
        for side, centre in (("right", 0.29), ("left", 0.71)):
            self.lungs[side] = (centre + rng.normal(0, 0.01), 0.46 + rng.normal(0, 0.01), width, height)
        self.anatomy()

    def oval(self, x: float, y: float, rx: float, ry: float, soft: float = 0.02) -> np.ndarray:
        """1 inside an ellipse, 0 outside, with a soft edge."""
        distance = np.sqrt(((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2)
        return 1 / (1 + np.exp((distance - 1) * min(rx, ry) / soft * 2))

    def lung(self, side: str) -> np.ndarray:
        return self.oval(*self.lungs[side])

    def anatomy(self) -> None:
        rng = self.rng
        for side in SIDES:
            self.pixels -= self.lung(side) * (0.36 + rng.normal(0, 0.02))
        self.pixels += 0.14 * np.exp(-(((self.x - 0.5) / 0.035) ** 2))  # spine
        size = rng.uniform(0.13, 0.17)
        heart = 0.55 + rng.normal(0, 0.01)  # on the patient's left
        self.pixels += 0.26 * self.oval(heart, 0.63, size, 0.8 * size)
        for number in range(5):  # ribs
            arch = 0.2 + 0.13 * number + 0.5 * (self.x - 0.5) ** 2
            self.pixels += 0.05 * np.exp(-(((self.y - arch) / 0.012) ** 2))

    def nodule(self, side: str, zone: str, degree: int) -> np.ndarray:
        x, y, width, _ = self.lungs[side]
        radius = (0.032, 0.05, 0.075)[degree] * self.rng.uniform(0.95, 1.05)
        place = x + self.rng.uniform(-0.35, 0.35) * width, self.rng.uniform(*HEIGHTS[zone]) + y - 0.46
        spot = self.oval(*place, radius, radius, 0.01)
        self.pixels += 0.34 * spot
        return spot > 0.3

    def consolidation(self, side: str, zone: str, degree: int) -> np.ndarray:
        x, y, width, _ = self.lungs[side]
        radius = (0.06, 0.085, 0.115)[degree]
        middle = x + self.rng.uniform(-0.15, 0.15) * width, self.rng.uniform(*HEIGHTS[zone]) + y - 0.46
        cloud = np.zeros_like(self.pixels)
        for _ in range(7):
            turn, away = self.rng.uniform(0, math.tau), radius * math.sqrt(self.rng.uniform(0, 0.7))
            part = radius * self.rng.uniform(0.35, 0.6)
            spot = middle[0] + away * math.cos(turn), middle[1] + away * math.sin(turn)
            cloud = np.maximum(cloud, self.oval(*spot, part, part, 0.03))
        cloud *= self.lung(side)
        self.pixels += 0.22 * cloud
        return cloud > 0.3

    def effusion(self, side: str, zone: str | None, degree: int) -> np.ndarray:
        x, y, width, height = self.lungs[side]
        level = y + height * (0.72, 0.42, 0.1)[degree] + self.rng.normal(0, 0.01)
        outward = (self.x - x) / width * (1 if side == "left" else -1)
        surface = level - 0.05 * np.clip(outward, -1, 1)  # it rises at the chest wall
        fluid = self.lung(side) / (1 + np.exp((surface - self.y) / 0.012))
        self.pixels += 0.36 * fluid
        return fluid > 0.3

    def pneumothorax(self, side: str, zone: str | None, degree: int) -> np.ndarray:
        x, _, width, _ = self.lungs[side]
        outward = (self.x - x) / width * (1 if side == "left" else -1)
        edge = (0.62, 0.35, 0.05)[degree] + self.rng.normal(0, 0.03)
        air = self.lung(side) / (1 + np.exp((edge - outward) / 0.06))
        self.pixels -= 0.2 * air
        self.pixels += 0.22 * self.lung(side) * np.exp(-(((outward - edge) / 0.07) ** 2))  # the pleural line
        return air > 0.3

    def tube(self) -> None:
        """A tracheal tube in the midline, above the findings' masks and between them."""
        end, x = self.rng.uniform(0.26, 0.32), 0.5 + self.rng.normal(0, 0.008)
        self.pixels += 0.4 * np.exp(-(((self.x - x) / 0.014) ** 2)) / (1 + np.exp((self.y - end) / 0.01))

    def finish(self) -> Image.Image:
        rng = self.rng
        gain, offset = rng.uniform(0.85, 1.15), rng.normal(0, 0.04)
        pixels = (self.pixels - 0.5) * gain + 0.5 + offset + rng.normal(0, rng.uniform(0.01, 0.03), self.pixels.shape)
        return Image.fromarray((255 * pixels).clip(0, 255).astype(np.uint8)).convert("RGB")


def draw_radiograph(key: str, patients: Patients = EVERYONE) -> Radiograph:
    """A radiograph with at most one finding of each kind; the same for the same key and distribution."""
    rng = np.random.default_rng(list(key.encode()))
    film, findings = _Film(rng), []
    seen: set[str | None] = set()
    for kind in KINDS:
        habit = patients.habits[kind]
        side = SIDES[int(rng.random() >= habit.left)]
        degree, place = int(rng.choice(3, p=habit.degrees)), int(rng.choice(3, p=habit.zones))
        zone = ZONES[place] if kind in ZONED else None
        if rng.random() < habit.present[habit.beside in seen]:
            mask = getattr(film, kind)(side, zone, degree)
            findings.append(DrawnFinding(kind, side, DEGREES[degree], zone, mask))
            seen.add(kind)
    tube = patients.tube is not None and rng.random() < patients.tube["pneumothorax" in seen]
    if tube:
        film.tube()
    return Radiograph(film.finish(), tuple(findings), tube)

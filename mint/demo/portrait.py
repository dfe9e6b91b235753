"""Schematic portraits, 112 x 112: a stand-in for photographs of patients, which cannot be shared.

From the back to the front: shoulders, hair, ears, head, marks of the skin, eyes and brows, nose, mouth, folds. How
far a trait moves a line was chosen by eye, so that its textbook degree is plain at this size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mint.demo.canvas import Canvas, Colour, Points, curve, mix
from mint.demo.face import Face, make_face, read_findings

KNOWN_FINDINGS = frozenset(read_findings())

SKIN = ((250, 222, 200), (240, 204, 176), (226, 184, 152), (206, 160, 124), (176, 128, 92), (142, 100, 70), (108, 74, 52))
HAIR = ((40, 30, 26), (62, 42, 30), (92, 62, 40), (134, 96, 58), (26, 22, 24), (52, 36, 30))
IRIS = ((84, 56, 36), (104, 74, 44), (66, 46, 34), (92, 98, 62), (98, 112, 122))
FAIR, WHITE, BLUE_IRIS, BLUE_SCLERA = (234, 208, 146), (246, 244, 238), (92, 156, 226), (150, 184, 224)
BACKGROUNDS = ((188, 202, 212), (214, 210, 200), (170, 184, 176), (200, 194, 208), (222, 222, 220), (150, 168, 190))
CLOTHES = ((70, 92, 128), (128, 72, 76), (84, 116, 92), (166, 172, 196), (90, 84, 112), (60, 64, 70), (190, 140, 90))


def draw_portrait(
    findings: Sequence[str], seed: int | str, age_years: float | None = None, sex: str | None = None
) -> Image.Image:
    """A frontal portrait, RGB, 112 x 112, of a person of this age and sex with these facial findings.

    findings: HPO ids; those not in ``KNOWN_FINDINGS`` are not drawn. seed: who it is; the same arguments give the same
    picture. age_years, sex: where unknown, drawn from the seed.
    """
    rng = random.Random(f"portrait {seed}")
    age = rng.uniform(1, 20) if age_years is None else age_years
    sex = sex if sex in ("male", "female") else rng.choice(("male", "female"))
    face = make_face(sorted(set(findings)), rng, age, sex)
    drawing = _Drawing(face, rng, age, sex)
    return drawing.canvas.finish(np.random.default_rng(rng.getrandbits(32)))


class _Drawing:
    """One portrait in the making: geometry, shapes, shade."""

    def __init__(self, face: Face, rng: random.Random, age: float, sex: str):
        self.face, self.rng, self.age, self.sex = face, rng, age, sex
        self.skin = mix(rng.choice(SKIN), rng.choice(SKIN), rng.uniform(0, 0.35))
        self.hair = mix(rng.choice(HAIR), FAIR, 0.9 * face.hair_fair)
        if age > 50:
            self.hair = mix(self.hair, (190, 190, 190), (age - 50) / 25)
        self.iris = mix(rng.choice(IRIS), BLUE_IRIS, face.iris_blue)
        self.dark = mix(self.skin, (60, 24, 20), 0.55)  # lines of the skin
        self.lip = mix(self.skin, (178, 66, 70), 0.55)
        turn, shift = rng.gauss(0, 0.02), (rng.gauss(0, 1.0), rng.gauss(0, 1.0))
        self.canvas = Canvas(rng.choice(BACKGROUNDS), face.asymmetry, turn, shift)
        self._measure()
        self._draw()

    # geometry

    def _measure(self) -> None:
        f = self.face
        self.half = 25.5 + 3.4 * f.head_width  # half the width at the eyes
        self.top = 12 - 5 * f.head_height
        self.eyes = 54.0
        self.chin = 99 + 5.5 * f.face_length + 4.6 * f.chin_length + 3.6 * f.chin_depth
        self.chin = min(109.5, self.chin)
        self.hairline = 30 - 5.5 * f.forehead_height - 1.5 * f.head_height
        self.eye_x = 11.6 + 3.4 * f.eye_distance + 0.5 * f.telecanthus + 0.8 * f.head_width
        self.nose_y = 71.5 + 2.2 * f.face_length + 4.2 * f.nose_length + 1.5 * f.nose_size
        self.mouth_y = self.nose_y + 9.5 + 0.8 * f.face_length + 3.6 * f.philtrum_length
        self.mouth_y = min(self.mouth_y, self.chin - 9)

    # shapes, from the back to the front

    def _draw(self) -> None:
        self._body()
        self._back_hair()
        for side in (-1, 1):
            self._ear(side)
        self._head()
        self._skin_marks()
        self._front_hair()
        for side in (-1, 1):
            self._eye(side)
            self._brow(side)
        if self.face.brow_join > 0:
            self._brow_bridge()
        self._nose()
        self._philtrum()
        self._mouth()
        self._folds()

    def _body(self) -> None:
        width = 13 + 3 * min(1, self.age / 18)
        clothes = self.rng.choice(CLOTHES)
        self.canvas.fill(curve([(-64, 130), (-48, 107), (-17, 98), (17, 98), (48, 107), (64, 130)]) + [(0, 200)], clothes)
        self.canvas.fill(
            [(-width, 80), (width, 80), (width + 2, 100), (0, 108), (-width - 2, 100)], mix(self.skin, (0, 0, 0), 0.14)
        )

    def _outline(self) -> Points:
        f, half, top, chin = self.face, self.half, self.top, self.chin
        length = chin - self.eyes
        retro = max(0.0, -f.chin_depth)
        right = [
            (0, top),
            (half * 0.58 + 1.2 * f.forehead_width, top + 4.6),
            (half * 0.9 + 4.2 * f.forehead_width + 0.8 * f.forehead_bulge, top + 16),
            (half + 3.4 * f.forehead_width + 1.6 * f.temples + 0.6 * f.forehead_bulge, 40),
            (half + 0.4, self.eyes + 2),
            (half - 1.2 + 3.6 * f.cheeks + 0.8 * f.cheekbones, self.eyes + 0.38 * length),
            (half - 6 + 4.4 * f.jaw_width + 2.2 * f.cheeks - 1.2 * retro, self.eyes + 0.68 * length),
            (10.5 + 3.6 * f.chin_width + 1.8 * f.jaw_width - 4.2 * retro + 1.4 * max(0, f.chin_depth), chin - 4.5 + retro),
            (3.5 + 1.6 * f.chin_width - 0.8 * retro, chin - 0.4),
        ]
        return curve(right + [(-x, y) for x, y in reversed(right[1:])], closed=True)

    def _head(self) -> None:
        f = self.face
        self.canvas.fill(self._outline(), self.skin)
        self.canvas.shade(0, self.chin + 4, 12, 3.2, -0.16)  # under the chin
        for side in (-1, 1):
            self.canvas.shade(side * self.half, 62, 5, 26, -0.10)
            self.canvas.shade(side * (self.half - 8), 66, 6, 5, 0.06 + 0.2 * f.cheekbones + 0.06 * f.cheeks)
            if f.cheeks < -0.3:
                self.canvas.shade(side * (self.half - 9), 77, 5, 7, 0.22 * f.cheeks)
            self.canvas.shade(side * (self.half - 4), 41, 4, 6, 0.22 * min(0.0, f.temples))
            self.canvas.shade(side * 8.5, 66.5, 5, 8, 0.18 * f.midface)
        self.canvas.shade(0, 34, 13, 8, 0.03 + 0.17 * f.forehead_bulge)
        if f.forehead_bulge > 0.4:
            self.canvas.shade(0, 43.5, 12, 2.2, -0.14 * f.forehead_bulge)
        self.canvas.shade(0, self.hairline + 3, 17, 4.5, -0.24 * max(0.0, f.forehead_slope))
        self.canvas.shade(0, 35, 1.5, 10, 0.26 * max(0.0, f.metopic))
        for side in (-1, 1):
            self.canvas.shade(side * 4.5, 35, 2, 9, -0.14 * max(0.0, f.metopic))
            self.canvas.shade(side * 11, 45.5, 8, 1.5, 0.2 * f.brow_ridge)
            self.canvas.shade(side * 11, 49.5, 8, 1.6, -0.16 * max(0.0, f.brow_ridge))
        self.canvas.shade(0, 45, 3.4, 3, 0.26 * max(0.0, f.glabella))
        self._chin()

    def _chin(self) -> None:
        f, y = self.face, self.chin - 5.5
        self.canvas.shade(0, y, 6, 3.6, 0.06 + 0.14 * f.chin_depth)
        if f.chin_depth < -0.3:
            self.canvas.shade(0, self.chin - 1.5, 12, 3.4, 0.24 * f.chin_depth)
        if f.chin_depth > 0.3:
            self.canvas.shade(0, self.mouth_y + 6.5, 6, 1.5, -0.2 * f.chin_depth)
        if f.chin_dimple > 0.2:
            self.canvas.line([(0, y - 1.5), (0, y + 2.2)], self.dark, 0.9 * f.chin_dimple)
        if f.lip_crease > 0.2:
            middle = (self.mouth_y + self.chin) / 2 + 1
            self.canvas.line(
                curve([(-4.5, middle - 0.8), (0, middle + 1.2), (4.5, middle - 0.8)]), self.dark, 0.9 * f.lip_crease
            )

    def _skin_marks(self) -> None:
        f, rng = self.face, self.rng
        red = mix(self.skin, (204, 56, 60), 0.5)
        if f.naevus > 0.2:
            self.canvas.fill(curve([(-3.5, 26), (3.5, 26), (2.6, 38), (0.6, 47), (-0.6, 47), (-2.6, 38)], closed=True), red)
        if f.malar_rash > 0.2:
            wing = [(-15, 64), (-9, 61), (0, 62.5), (9, 61), (15, 64), (11, 72), (4, 69), (-4, 69), (-11, 72)]
            self.canvas.fill(curve(wing, closed=True), mix(self.skin, (210, 74, 74), 0.4 * f.malar_rash))
        if f.flush > 0.2:
            for side in (-1, 1):
                self.canvas.oval(side * 14, 68, 7.5, 7, mix(self.skin, (214, 72, 70), 0.42 * f.flush))
        if f.papules > 0.2:
            for _ in range(round(34 * f.papules)):
                x, y = rng.gauss(0, 8.5), rng.uniform(60, 78)
                self.canvas.oval(x, y, 0.85, 0.85, mix(self.skin, (176, 48, 44), 0.7))
        if f.telangiectasia > 0.2:
            for _ in range(round(14 * f.telangiectasia)):
                x, y = rng.choice((-1, 1)) * rng.uniform(8, 17), rng.uniform(61, 74)
                self.canvas.line([(x, y), (x + rng.uniform(-3, 3), y + rng.uniform(-2, 2))], (196, 60, 66), 0.5)
        if f.ear_tag > 0.2:
            x, y = self.half - 1.6, 61 - 7.5 * f.ear_height
            self.canvas.oval(x, y, 1.9, 1.7, mix(self.skin, (200, 90, 84), 0.5))
            self.canvas.oval(x + 0.4, y - 0.5, 0.8, 0.7, mix(self.skin, (255, 255, 255), 0.3))
        if f.veins > 0.2:
            for side in (-1, 1):
                vein = [(side * 20, 46), (side * 17, 38), (side * 19, 30), (side * 13, self.top + 6)]
                self.canvas.line(curve(vein), mix(self.skin, (84, 104, 156), 0.55 * f.veins), 0.9)
                self.canvas.line(curve([vein[1], (side * 11, 34), (side * 7, 24)]), mix(self.skin, (84, 104, 156), 0.45), 0.7)

    # hair

    def _bald(self) -> float:
        infant = 0.55 if self.age < 0.5 else 0.0
        return max(self.face.hair_sparse, infant)

    def _back_hair(self) -> None:
        f = self.face
        bald = self._bald()
        if bald > 0.9:
            return
        colour = mix(self.hair, (0, 0, 0), 0.15)
        long = self.sex == "female" and self.age > 2 and bald < 0.5
        puff = 1.2 + 2.6 * f.hair_curl
        down = 92.0 if long else 60.0
        right = [(0, self.top - puff - 2), (self.half * 0.7, self.top + 3 - puff), (self.half + puff + 0.4, 33)]
        right += [(self.half + puff + (1.4 if long else -0.6), 52), (self.half + (3 if long else -4) + puff * 0.5, down)]
        if bald < 0.5:
            self.canvas.fill(curve(right + [(-x, y) for x, y in reversed(right[1:])], closed=True), colour)
        if f.hair_low_back > 0.2:
            for side in (-1, 1):
                x = side * 14.5
                self.canvas.fill([(x - 6, 76), (x + 6, 76), (x + side * 7, 108), (x - side * 3, 104)], colour)

    def _front_hair(self) -> None:
        f = self.face
        bald = self._bald()
        if bald > 0.9:
            return
        colour = mix(self.hair, self.skin, 0.75 * max(0.0, bald - 0.15))
        line, half = self.hairline, self.half
        peak = 6.5 * max(0.0, f.widows_peak)
        edge = half * 0.93 + 3.6 * f.forehead_width
        low = [(edge + 1, 46), (edge - 3.5, 38), (edge - 8, line + 2.5), (6, line - 0.8 - 0.15 * peak), (0, line + peak)]
        front = curve(low + [(-x, y) for x, y in reversed(low[:-1])])
        puff = 1.5 + 2.5 * f.hair_curl
        over = [(-edge - 2, 36), (-half * 0.9 - 4.2 * f.forehead_width - puff + 0.4, self.top + 17)]
        over += [(-half * 0.62 - 1.2 * f.forehead_width, self.top + 4.6 - puff), (0, self.top - 1.5 - puff)]
        over += [(-x, y) for x, y in reversed(over[:-1])]
        self.canvas.fill(front + curve(over), colour)
        self.canvas.shade(half * 0.35, self.top + 4, 9, 3, 0.10)
        if f.hair_curl > 0.2:
            tint = (mix(colour, (0, 0, 0), 0.3), mix(colour, (255, 255, 255), 0.16))
            for k in range(48):
                t = math.pi * (k % 16 + 0.5 * (k // 16 % 2)) / 15
                ring = k // 16
                reach = half + (2.0, -2.5, -7.5)[ring]
                x, y = -reach * math.cos(t), 35 - (36 - self.top) * math.sin(t) * (1.1, 0.88, 0.66)[ring]
                if y < line + 4 or abs(x) > half - 6:
                    self.canvas.oval(x, y, 2.5, 2.5, colour)
                    self.canvas.line(curve([(x - 1.6, y), (x, y - 1.7), (x + 1.6, y), (x, y + 1.4)], True), tint[k % 2], 0.7)
        if f.forelock > 0.2:
            lock = [(-1.5, self.top - 2), (4, self.top - 1.5), (5.5, line + 1), (0.5, line + 1.5)]
            self.canvas.fill(curve(lock, closed=True), WHITE)

    # ears

    def _ear(self, side: int) -> None:
        f = self.face
        size = max(0.28, 1 + 0.38 * f.ear_size) if f.ear_size > -0.5 else 0.42
        out = max(0.4, 1 + 0.95 * f.ear_out + 0.35 * f.ear_cup)
        y = 60 - 7.5 * f.ear_height
        x = self.half - 0.6
        h, w = 9.5 * size, 5.0 * (0.45 + 0.55 * size) * out
        lobe = 2.6 * max(0.0, 1 + f.ear_lobe) * size
        turn = 0.42 * f.ear_rotation

        def place(u: float, v: float) -> tuple[float, float]:  # u outwards, v downwards, from the ear's middle
            return side * (x + u * math.cos(turn) - v * math.sin(-turn)), y + v * math.cos(turn) - u * math.sin(turn)

        shape = [(-2, -0.7 * h), (0.5 * w, -h), (w, -0.6 * h), (0.92 * w, 0.1 * h), (0.6 * w, 0.62 * h)]
        if f.ear_lobe_up > 0.2:
            shape += [(0.95 * w, 0.6 * h + 0.6 * lobe), (0.45 * w, 0.7 * h + 1.2 * lobe), (-1.5, 0.75 * h)]
        else:
            shape += [(0.42 * w, 0.75 * h + lobe), (0.05 * w, 0.75 * h + 1.1 * lobe), (-1.5, 0.7 * h)]
        if f.ear_fold > 0.2:
            shape[1:3] = [(0.62 * w, -0.62 * h), (1.12 * w, -0.38 * h)]
        colour = mix(self.skin, (190, 80, 70), 0.10)
        self.canvas.fill([place(u, v) for u, v in curve(shape, closed=True)], colour)
        line = mix(self.skin, (70, 30, 24), 0.45)
        if size > 0.5:
            plain = max(0.0, f.ear_plain)
            rim = [(0.1 * w, -0.68 * h), (0.62 * w, -0.66 * h), (0.68 * w, -0.1 * h), (0.4 * w, 0.5 * h)]
            if plain < 0.5:
                self.canvas.line([place(u, v) for u, v in curve(rim)], line, 0.75 - 0.3 * plain - 0.25 * f.ear_plain)
                self.canvas.oval(*place(0.22 * w, 0.08 * h), 1.1, 1.9 * size, line)
        if f.ear_fold > 0.2:
            fold = [(0.0, -0.62 * h), (0.55 * w, -0.2 * h), (1.1 * w, -0.34 * h)]
            self.canvas.line([place(u, v) for u, v in curve(fold)], line, 1.4 * f.ear_fold)
        if f.ear_cup > 0.2:
            bowl = [
                (place(u * w * 0.6 + 0.25 * w, v * h * 0.55)) for u, v in ((-0.5, -1), (0.5, -0.8), (0.6, 0.2), (-0.3, 0.8))
            ]
            self.canvas.fill(curve(bowl, closed=True), mix(self.skin, (70, 30, 24), 0.35))
        if f.ear_crease > 0.2:
            self.canvas.line([place(0.05 * w, 0.72 * h), place(0.5 * w, 0.7 * h + 0.8 * lobe)], line, 1.0)
        if f.ear_pit > 0.2:
            self.canvas.oval(*place(0.9, -0.48 * h), 1.15, 1.15, (60, 26, 22))

    # eyes and brows

    def _lid_edges(self, side: int) -> tuple[Points, Points]:
        """(upper, lower) edge of the opened lids, from the inner to the outer corner."""
        f = self.face
        half = 6.0 + 1.5 * f.eye_length - 0.1 * max(0, f.epicanthus) + 0.3 * max(0, -f.eye_depth)
        height = max(0.5, 3.1 + 1.1 * f.eye_height - 0.4 * f.eye_depth + (0.35 if self.age < 3 else 0))
        drop = f.lid_drop + (f.lid_drop_left if side > 0 else 0)
        inner = self.eye_x - half + 1.5 * max(0.0, f.telecanthus) + 0.2
        outer = self.eye_x + half
        tilt = 2.3 * f.slant
        upper = height * (1 - 0.75 * min(1.15, max(0.0, drop)))
        lower = height * (0.82 + 0.35 * max(0.0, f.lid_eversion) - 0.1 * f.puffiness)
        middle, pull = (inner + outer) / 2, 0.9 * max(0.0, f.almond)
        y0, y1 = self.eyes + 0.55 * tilt + 0.3, self.eyes - 0.75 * tilt
        top = [(inner, y0), ((inner + middle) / 2 - pull, (3 * y0 + y1) / 4 - 0.8 * upper + pull * 0.3)]
        top += [(middle, (y0 + y1) / 2 - upper), ((middle + outer) / 2 + 0.3, (y0 + 3 * y1) / 4 - 0.8 * upper + 0.4 * pull)]
        bottom = [(inner, y0), ((inner + middle) / 2, (3 * y0 + y1) / 4 + 0.68 * lower), (middle, (y0 + y1) / 2 + lower)]
        sag = 1.8 * max(0.0, f.lid_eversion)
        bottom.append(((middle + outer) / 2, (y0 + 3 * y1) / 4 + 0.75 * lower + sag))
        corner = (outer, y1)
        flip = [[(side * x, y) for x, y in edge] for edge in (curve([*top, corner]), curve([*bottom, corner]))]
        return flip[0], flip[1]

    def _eye(self, side: int) -> None:
        f = self.face
        upper, lower = self._lid_edges(side)
        opening = upper + lower[::-1]
        x, y = side * self.eye_x, self.eyes
        if f.eye_depth > 0.2:
            self.canvas.shade(x, y - 3.6, 8, 3.6, -0.34 * f.eye_depth)
            self.canvas.shade(x, y + 3, 7.5, 2.6, -0.16 * f.eye_depth)
        if f.eye_depth < -0.2:
            self.canvas.shade(x, y - 4.6, 7, 2.2, -0.18 * f.eye_depth)
            self.canvas.shade(x, y + 6, 6.5, 1.5, 0.2 * f.eye_depth)
        if f.puffiness > 0.2:
            self.canvas.fill(
                curve([(x - 7.5, y + 3), (x, y + 5), (x + 7.5, y + 3), (x + 5, y + 8.4), (x - 5, y + 8.4)], True),
                mix(self.skin, (255, 250, 246), 0.22 * f.puffiness),
            )
            self.canvas.line(curve([(x - 6, y + 7.6), (x, y + 9), (x + 6, y + 7.6)]), self.dark, 0.7 * f.puffiness)
            self.canvas.shade(x, y - 5, 7, 2, 0.14 * f.puffiness)
        if f.lid_eversion > 0.2:
            rim = [(px, py + 1.6 * f.lid_eversion) for px, py in lower]
            self.canvas.fill(lower + rim[::-1], (206, 92, 92))
        white = mix((244, 240, 236), BLUE_SCLERA, f.sclera_blue)
        self.canvas.fill(opening, white)
        self.canvas.inside(opening, lambda: self._iris(side))
        lash = mix(mix((44, 30, 26), self.hair, 0.3), WHITE, f.lash_white)
        bare = max(0.0, f.lash_sparse)
        self.canvas.line(upper, mix(lash, self.dark, 0.9 * bare), 1.15 - 0.6 * bare)
        self.canvas.line(lower, mix(self.dark, lash, 0.2), 0.45)
        self._lashes(side, upper, lower, lash)
        self._lids(side, upper, lower)

    def _iris(self, side: int) -> None:
        f = self.face
        away = 3.0 * f.squint if f.squint > 0.2 and side > 0 else 0.0
        x, y, r = side * (self.eye_x - away), self.eyes - 0.2, 2.95
        colour = mix(self.iris, BLUE_IRIS, 1.0) if f.iris_mixed > 0.2 and side > 0 else self.iris
        self.canvas.oval(x, y, r, r, mix(colour, (0, 0, 0), 0.35))
        self.canvas.oval(x, y, r - 0.45, r - 0.45, colour)
        if f.iris_star > 0.2:
            for k in range(10):
                t = k * math.tau / 10
                reach = (x + 2.4 * math.cos(t), y + 2.4 * math.sin(t))
                self.canvas.line([(x, y), reach], mix(colour, (255, 255, 255), 0.75), 0.35)
        self.canvas.oval(x, y, 1.25, 1.25, (14, 10, 10))
        if f.iris_notch > 0.2:
            self.canvas.fill([(x - 0.9, y), (x + 0.9, y), (x + 0.6, y + r), (x - 0.6, y + r)], (14, 10, 10))
        self.canvas.oval(x - 0.8, y - 0.9, 0.55, 0.55, (255, 255, 255))

    def _lashes(self, side: int, upper: Points, lower: Points, colour: Colour) -> None:
        f = self.face
        bare = f.lash_sparse
        if bare > 0.5:
            return
        length = 1.1 + 2.2 * f.lash_length
        if length < 0.4:
            return
        for k, (x, y) in enumerate(upper[3::3]):
            lean = side * (0.12 + 0.09 * k) * length
            bend = 0.8 * max(0.0, f.lash_curl)
            tip = (x + lean * (1 + bend), y - length)
            self.canvas.line(curve([(x, y), (x + lean * (0.7 + bend), y - 0.45 * length), tip], steps=3), colour, 0.42)
        if f.lash_length > 0.4:
            for x, y in lower[8::4]:
                self.canvas.line([(x, y), (x + side * 0.5, y + 0.5 * length)], colour, 0.35)

    def _lids(self, side: int, upper: Points, lower: Points) -> None:
        f = self.face
        drop = f.lid_drop + (f.lid_drop_left if side > 0 else 0)
        if drop > 0.2:  # the lid that hangs
            lid = [(x, y - 2.6 * drop - 0.6) for x, y in upper]
            self.canvas.fill(upper + lid[::-1], mix(self.skin, self.dark, 0.12))
            self.canvas.line(upper, mix(self.dark, (30, 20, 20), 0.5), 1.1)
        crease = [(x, y - 2.1 - 0.5 * max(0, -f.eye_depth) - 1.0 * max(0.0, drop)) for x, y in upper[4:-2]]
        self.canvas.line(crease, mix(self.skin, self.dark, 0.6), 0.5)
        if f.hood > 0.2:
            fold = [(side * abs(x), y + 1.2 * f.hood * i / len(upper)) for i, (x, y) in enumerate(upper)]
            brow = [(x, y - 4.2) for x, y in upper]
            self.canvas.fill(fold + brow[::-1], mix(self.skin, self.dark, 0.08))
            self.canvas.line(fold, self.dark, 1.0)
        if f.lid_notch > 0.2:
            x, y = lower[len(lower) * 2 // 3]
            self.canvas.fill([(x - 1.6, y - 0.5), (x + 1.6, y - 0.5), (x, y + 3.4)], (228, 170, 164))
        if f.eye_crease > 0.2:
            x, y = side * self.eye_x, self.eyes + 7
            line = [(x - side * 6, y - 1.6), (x, y + 0.6), (x + side * 6, y + 0.4)]
            self.canvas.line(curve(line), self.dark, 0.9 * f.eye_crease)
        if f.epicanthus > 0.2:
            x, y = upper[0]
            e = f.epicanthus
            skin = [
                (x - side * 1.5, y - 3.2),
                (x + side * 3.0 * e, y - 2.6),
                (x + side * 2.4 * e, y + 0.4),
                (x - side * 1.0, y + 2.6),
            ]
            self.canvas.fill(curve(skin, closed=True), self.skin)
            edge = [(x + side * 3.2 * e, y - 2.8), (x + side * 2.3 * e, y - 0.4), (x - side * 0.2, y + 2.4)]
            self.canvas.line(curve(edge), self.dark, 0.85)

    def _brow_height(self) -> float:
        return self.eyes - 8.6 - 0.8 * max(0.0, self.face.brow_arch) + 0.6 * max(0.0, self.face.eye_depth)

    def _brow(self, side: int) -> None:
        f = self.face
        colour = mix(mix(self.hair, (20, 14, 12), 0.25), WHITE, f.brow_white)
        colour = mix(colour, self.skin, 0.85 * max(0.0, f.brow_sparse) + 0.1)
        if f.brow_sparse > 0.95:
            return
        y, arch = self._brow_height(), 1.3 + 2.6 * f.brow_arch
        thick = max(0.35, 1.25 + 0.95 * f.brow_thickness - 0.2 * f.brow_sparse)
        inner, outer = self.eye_x - 6.2, self.eye_x + 7.4 + 2.6 * max(0, f.brow_length)
        tilt = 0.9 * f.slant
        count, shape = 14, []
        for k in range(count + 1):
            t = k / count
            rise = math.sin(math.pi * min(1, t * 0.86 + 0.02)) * arch
            weight = thick * (1 - 0.55 * t**2)
            weight += 1.7 * max(0.0, f.brow_medial) * (1 - t) ** 3 + 1.1 * max(0.0, f.brow_lateral) * t * t
            if f.brow_medial < -0.2 and t < 0.4:
                weight *= 0.25
            if f.brow_lateral < -0.2 and t > 0.5:
                weight *= 0.12
            shape.append((inner + (outer - inner) * t, y - rise + 1.2 * t**3 - tilt * (t - 0.5), weight))
        up = [(side * x, v - w - 1.2 * max(0.0, f.brow_medial) * (1 - k / count) ** 4) for k, (x, v, w) in enumerate(shape)]
        down = [(side * x, v + w * 0.6) for x, v, w in shape]
        self.canvas.fill(up + down[::-1], colour)

    def _brow_bridge(self) -> None:
        f, y = self.face, self._brow_height()
        colour = mix(mix(self.hair, (20, 14, 12), 0.25), self.skin, 0.15 + 0.5 * (1 - min(1, f.brow_join)))
        reach = self.eye_x - 5
        half = 0.55 + 0.5 * max(0, f.brow_thickness) + 0.3
        self.canvas.fill(
            [(-reach, y - half), (0, y + 0.4 - half), (reach, y - half), (reach, y + half), (0, y + 1.4), (-reach, y + half)],
            colour,
        )

    # nose and mouth

    def _nose(self) -> None:
        f, y = self.face, self.nose_y
        grow = 1 + 0.22 * f.nose_size
        skew = 3.0 * f.nose_skew
        bridge = max(1.2, 2.9 + 1.7 * f.bridge_width) * (1 + 0.12 * f.nose_size)
        tip = max(1.8, 3.6 + 1.9 * f.tip_width) * grow
        wing = max(3.4, 6.3 + 2.0 * f.nose_width + 0.8 * f.nostril_flare) * grow
        height = 0.10 + 0.13 * f.bridge_height + 0.05 * f.nose_size
        self.canvas.shade(0.3 * skew, 57, 1.5 + 0.5 * f.bridge_width, 7, height)
        if f.bridge_height < -0.3:
            self.canvas.shade(0, 56, 5.5, 3.2, 0.10 * f.bridge_height)
        for side in (-1, 1):
            self.canvas.shade(side * (bridge + 0.6), 57, 1.1, 7, -0.14 - 0.10 * f.bridge_height)
        self.canvas.shade(skew, y - 2.4, 0.6 * tip, 2.0, 0.12 + 0.16 * f.tip_height + 0.04 * f.tip_width)
        if f.ridge > 0.2:
            self.canvas.shade(0, 61.5, 2.1, 3.2, 0.34 * f.ridge)
            self.canvas.shade(skew, y + 0.8, 2.6, 1.6, -0.2 * f.ridge)
        elif f.ridge < -0.2:
            self.canvas.shade(0, 62, 2.6, 3.2, 0.2 * f.ridge)
            self.canvas.shade(skew, y - 2.6, 2.8, 1.5, -0.16 * f.ridge)
        edge = mix(self.skin, self.dark, 0.75)
        for side in (-1, 1):
            flank = [
                (side * (bridge + 0.4), 51),
                (side * bridge + 0.3 * skew, 58),
                (side * (0.6 * bridge + 0.5 * tip) + skew, y - 5),
            ]
            self.canvas.line(curve(flank), mix(self.skin, self.dark, 0.3 + 0.3 * f.bridge_height), 0.6)
            ala = [(side * (tip * 0.95) + skew, y - 4.4), (side * wing + skew, y - 2.0), (side * (wing - 0.5) + skew, y + 0.6)]
            ala.append((side * (wing - 2.4) + skew, y + 0.9))
            self.canvas.line(curve(ala), edge, 0.8 + 0.35 * max(0.0, f.nostril_flare))
            nx, tilt = side * (0.5 * wing) + skew, max(0.0, f.nostril_tilt)
            if f.nostril_tilt > -0.3:
                width = max(0.7, 1.35 + 0.25 * f.nostril_flare + 0.25 * tilt) * grow
                self.canvas.oval(nx, y + 0.2 - 1.1 * tilt, width, 0.75 + 1.1 * tilt, (70, 30, 28))
            if f.nose_cleft < 0.2:
                bulb = [(side * tip * 0.8 + skew, y - 4.6), (side * tip + skew, y - 2.2), (side * 0.55 * tip + skew, y - 0.2)]
                self.canvas.line(curve(bulb), mix(self.skin, self.dark, 0.3 + 0.2 * max(0.0, f.tip_width)), 0.5)
        drop = 1.0 + 2.4 * f.columella + 0.8 * max(0.0, -f.nostril_tilt) + 1.0 * max(0.0, f.ridge)
        base = [
            (-0.6 * wing + skew, y + 1.0),
            (-1.4 + skew, y + 0.8),
            (skew, y + drop),
            (1.4 + skew, y + 0.8),
            (0.6 * wing + skew, y + 1.0),
        ]
        if f.columella > 0.2 or f.ridge > 0.2:
            point = [
                (-1.5 + skew, y - 1.4),
                (1.5 + skew, y - 1.4),
                (1.3 + skew, y + drop - 0.6),
                (skew, y + drop + 0.3),
                (-1.3 + skew, y + drop - 0.6),
            ]
            self.canvas.fill(curve(point, closed=True), mix(self.skin, (255, 255, 255), 0.07))
        self.canvas.line(curve(base), edge, 0.7)
        if f.nose_cleft > 0.2:
            self.canvas.line([(skew, y - 6.5), (skew, y + 1)], self.dark, 1.5 * f.nose_cleft)

    def _philtrum(self) -> None:
        f = self.face
        top, bottom = self.nose_y + 2.2, self.mouth_y - 2.4 - 0.8 * f.upper_lip
        depth = 0.85 + 0.95 * f.philtrum_depth
        if depth < 0.1 or bottom - top < 1:
            return
        half = 1.7 + 1.2 * f.philtrum_width
        colour = mix(self.skin, self.dark, min(0.95, 0.62 * depth))
        for side in (-1, 1):
            self.canvas.line([(side * half * 0.75, top), (side * half, bottom)], colour, 0.7 * (0.6 + depth / 2))
        self.canvas.shade(0, (top + bottom) / 2, 0.7 * half, (bottom - top) / 2, -0.09 * depth)

    def _mouth(self) -> None:
        f, y = self.face, self.mouth_y
        half = 9.0 + 3.0 * f.mouth_width
        still = max(0.0, f.stillness)
        corner = y - 2.4 * f.mouth_corners - 1.1 * (1 - still) + 0.3 * still
        left = corner + 4.0 * max(0.0, f.palsy)
        up = max(0.25, 1.9 + 1.35 * f.upper_lip)
        low = max(0.35, 2.5 + 1.6 * f.lower_lip)
        opened = 7.5 * max(0.0, f.mouth_open)
        tent = 2.6 * max(0.0, f.tent)
        bow = 0.75 + 0.95 * f.bow
        lift = 0.35 * opened + 0.5 * tent  # the upper lip's share of the opening
        mid = y - 0.3 * lift
        top = [(-half, corner), (-half * 0.55, y - 0.62 * up - 0.4 * lift), (-2.4, mid - up - bow - tent * 0.6)]
        top += [(0, mid - up + 0.55 * bow - tent), (2.4, mid - up - bow - tent * 0.6)]
        top += [(half * 0.55, y - 0.62 * up - 0.4 * lift), (half, left)]
        inner_top = [
            (-half + 0.8, corner),
            (-3, mid + 0.15 - tent * 0.3),
            (0, mid + 0.35 - 0.6 * tent),
            (3, mid + 0.15 - tent * 0.3),
            (half - 0.8, left),
        ]
        floor = y + max(0.2, opened)
        inner_low = [(half - 0.8, left), (half * 0.5, floor), (0, floor + 0.25), (-half * 0.5, floor), (-half + 0.8, corner)]
        roll = 1.2 * max(0.0, f.lip_eversion)
        bottom = [
            (half, left),
            (half * 0.5, floor + 0.86 * low + roll),
            (0, floor + low + roll),
            (-half * 0.5, floor + 0.86 * low + roll),
            (-half, corner),
        ]
        darker = mix(self.lip, (60, 10, 14), 0.18)
        self.canvas.fill(curve(top) + curve(bottom), self.lip)
        self.canvas.fill(curve(top) + curve(inner_top)[::-1], darker)
        if opened > 0.8:
            self.canvas.fill(curve(inner_top) + curve(inner_low), (70, 20, 24))
            self._teeth(half, mid, opened)
        else:
            self.canvas.line(curve(inner_top), mix(darker, (30, 5, 8), 0.6), 0.75)
        self.canvas.shade(0, floor + 0.55 * low, 4.5, 1.0, 0.10 + 0.1 * max(0.0, f.lower_lip))
        self.canvas.shade(0, floor + low + 1.8, 6, 1.3, -0.10 - 0.12 * max(0, f.lip_eversion))
        if f.tongue > 0.2:
            self._tongue(half, mid, floor)
        self._clefts(mid, up)

    def _teeth(self, half: float, y: float, opened: float) -> None:
        f = self.face
        size = max(0.45, 1 + 0.4 * f.teeth_size)
        width, tall = 2.0 * size, min(opened * 0.8, 2.3 * size)
        pitch = width + 1.5 * max(0.0, f.teeth_gap) + (0.55 if f.teeth_size < -0.3 else 0.12)
        colour = mix((246, 242, 230), (150, 116, 70), 0.8 * max(0.0, f.teeth_stain))
        for k in range(-3, 4):
            x = (k + 0.5) * pitch
            if k == 3 or abs(x) > half * 0.72 or (f.teeth_missing > 0.2 and k not in (-1, 2)):
                continue
            lean = self.rng.uniform(-1, 1) * max(0.0, f.teeth_crowded)
            taper = 0.3 if f.teeth_size < -0.3 else 0.06
            h = tall + 0.8 * lean
            tooth = [(x - width / 2 + lean * 0.5, y), (x + width / 2 + lean * 0.5, y)]
            tooth += [(x + width * (0.5 - taper) - lean, y + h), (x - width * (0.5 - taper) - lean, y + h)]
            self.canvas.fill(tooth, colour)
            if f.teeth_stain > 0.2:
                self.canvas.oval(x, y + 0.5 * h, 0.55, 0.55, (92, 62, 30))
            if f.teeth_crowded > 0.2:
                self.canvas.line([tooth[1], tooth[2]], (120, 90, 80), 0.4)

    def _tongue(self, half: float, y: float, floor: float) -> None:
        f = self.face
        reach = floor + 1.6 + 6.0 * f.tongue
        width = 0.6 * half * (0.75 + 0.35 * f.tongue)
        shape = [(-width, y + 0.8), (width, y + 0.8), (width * 0.96, reach - 2.6), (0, reach), (-width * 0.96, reach - 2.6)]
        self.canvas.fill(curve(shape, closed=True), (232, 130, 136))
        self.canvas.line([(0, y + 1.6), (0, reach - 1.6)], (186, 84, 94), 0.8)
        if f.tongue_cleft > 0.2:
            self.canvas.fill([(-1.7, reach + 0.6), (1.7, reach + 0.6), (0, reach - 4.2 * f.tongue_cleft)], (70, 20, 24))

    def _clefts(self, y: float, up: float) -> None:
        f, top = self.face, self.nose_y + 0.8
        for x, wanted in ((0.0, f.cleft), (3.4, f.cleft_side)):
            if wanted > 0.2:
                w = 1.3 * wanted
                self.canvas.fill([(x - 0.5, top), (x + 0.5, top), (x + w, y + 0.9), (x - w, y + 0.9)], (104, 34, 38))

    def _folds(self) -> None:
        f = self.face
        deep = max(0.0, f.coarse) * 0.9 + 0.5 * f.wrinkles
        colour = mix(self.skin, self.dark, min(0.9, 0.25 + 0.6 * deep))
        for side in (-1, 1):
            if deep > 0.15:
                fold = [(side * 7.5, self.nose_y - 2), (side * 11.5, self.nose_y + 5), (side * 12.5, self.mouth_y + 3)]
                self.canvas.line(curve(fold), colour, 0.5 + 0.9 * deep)
            if f.coarse > 0.3:
                x = side * self.eye_x
                self.canvas.line(curve([(x - 5, self.eyes + 5.4), (x, self.eyes + 6.6), (x + 5, self.eyes + 5.4)]), colour, 0.8)
            if f.wrinkles > 0.3:
                x = side * (self.eye_x + 8)
                for lift in (-1.6, 0.2, 2.0):
                    self.canvas.line([(x, self.eyes + 0.4 * lift), (x + side * 3.4, self.eyes + 1.5 * lift)], colour, 0.55)
        if f.wrinkles > 0.3:
            for k in range(3):
                y = self.hairline + 6 + 3.2 * k
                self.canvas.line(curve([(-13, y + 0.6), (-5, y - 0.5), (5, y + 0.5), (13, y - 0.3)]), colour, 0.55)

"""The head of a portrait: shoulders, hair, ears, the shape of the head, skin findings."""

from __future__ import annotations

import math

from mint.synthetic.canvas import BLACK, Colour, Point, Points, curve, mirror, mix
from mint.synthetic.sketch import CLOTHES, WHITE, Sketch


class Head(Sketch):
    """Everything behind and around the facial features."""

    def _body(self) -> None:
        width = 13 + 3 * min(1, self.age / 18)
        clothes = self.rng.choice(CLOTHES)
        self.fill(curve([(-64, 130), (-48, 107), (-17, 98), (17, 98), (48, 107), (64, 130)]) + [(0, 200)], clothes)
        neck = [(-width, 80), (width, 80), (width + 2, 100), (0, 108), (-width - 2, 100)]
        self.fill(neck, self.tint(BLACK, 0.14))

    def _outline(self) -> Points:
        f, half, top, chin = self.face, self.half, self.top, self.chin
        length = chin - self.eyes
        retro = max(0.0, -f.chin_depth)
        jaw = 10.5 + 3.6 * f.chin_width + 1.8 * f.jaw_width - 4.2 * retro + 1.4 * max(0, f.chin_depth)
        right: Points = [
            (0, top),
            (half * 0.58 + 1.2 * f.forehead_width, top + 4.6),
            (half * 0.9 + 4.2 * f.forehead_width + 0.8 * f.forehead_bulge, top + 16),
            (half + 3.4 * f.forehead_width + 1.6 * f.temples + 0.6 * f.forehead_bulge, 40),
            (half + 0.4, self.eyes + 2),
            (half - 1.2 + 3.6 * f.cheeks + 0.8 * f.cheekbones, self.eyes + 0.38 * length),
            (half - 6 + 4.4 * f.jaw_width + 2.2 * f.cheeks - 1.2 * retro, self.eyes + 0.68 * length),
            (jaw, chin - 4.5 + retro),
            (3.5 + 1.6 * f.chin_width - 0.8 * retro, chin - 0.4),
        ]
        return right + mirror(right[1:])

    def _head(self) -> None:
        f = self.face
        self.blob(self._outline(), self.skin)
        self.shade(0, self.chin + 4, 12, 3.2, -0.16)  # under the chin
        for side in (-1, 1):
            self.shade(side * self.half, 62, 5, 26, -0.10)
            self.shade(side * (self.half - 8), 66, 6, 5, 0.06 + 0.2 * f.cheekbones + 0.06 * f.cheeks)
            if f.cheeks < -0.3:
                self.shade(side * (self.half - 9), 77, 5, 7, 0.22 * f.cheeks)
            self.shade(side * (self.half - 4), 41, 4, 6, 0.22 * min(0.0, f.temples))
            self.shade(side * 8.5, 66.5, 5, 8, 0.18 * f.midface)
        self.shade(0, 34, 13, 8, 0.03 + 0.17 * f.forehead_bulge)
        if f.forehead_bulge > 0.4:
            self.shade(0, 43.5, 12, 2.2, -0.14 * f.forehead_bulge)
        self.shade(0, self.hairline + 3, 17, 4.5, -0.24 * max(0.0, f.forehead_slope))
        self.shade(0, 35, 1.5, 10, 0.26 * max(0.0, f.metopic))
        for side in (-1, 1):
            self.shade(side * 4.5, 35, 2, 9, -0.14 * max(0.0, f.metopic))
            self.shade(side * 11, 45.5, 8, 1.5, 0.2 * f.brow_ridge)
            self.shade(side * 11, 49.5, 8, 1.6, -0.16 * max(0.0, f.brow_ridge))
        self.shade(0, 45, 3.4, 3, 0.26 * max(0.0, f.glabella))
        self._chin()

    def _chin(self) -> None:
        f, y = self.face, self.chin - 5.5
        self.shade(0, y, 6, 3.6, 0.06 + 0.14 * f.chin_depth)
        if f.chin_depth < -0.3:
            self.shade(0, self.chin - 1.5, 12, 3.4, 0.24 * f.chin_depth)
        if f.chin_depth > 0.3:
            self.shade(0, self.mouth_y + 6.5, 6, 1.5, -0.2 * f.chin_depth)
        if f.chin_dimple > 0.2:
            self.line([(0, y - 1.5), (0, y + 2.2)], self.dark, 0.9 * f.chin_dimple)
        if f.lip_crease > 0.2:
            middle = (self.mouth_y + self.chin) / 2 + 1
            self.stroke([(-4.5, middle - 0.8), (0, middle + 1.2), (4.5, middle - 0.8)], self.dark, 0.9 * f.lip_crease)

    def _skin_marks(self) -> None:
        f, rng = self.face, self.rng
        red = self.tint((204, 56, 60), 0.5)
        if f.naevus > 0.2:
            self.blob([(-3.5, 26), (3.5, 26), (2.6, 38), (0.6, 47), (-0.6, 47), (-2.6, 38)], red)
        if f.malar_rash > 0.2:
            wing = [(-15, 64), (-9, 61), (0, 62.5), (9, 61), (15, 64), (11, 72), (4, 69), (-4, 69), (-11, 72)]
            self.blob(wing, self.tint((210, 74, 74), 0.4 * f.malar_rash))
        if f.flush > 0.2:
            for side in (-1, 1):
                self.oval(side * 14, 68, 7.5, 7, self.tint((214, 72, 70), 0.42 * f.flush))
        if f.papules > 0.2:
            for _ in range(round(34 * f.papules)):
                x, y = rng.gauss(0, 8.5), rng.uniform(60, 78)
                self.oval(x, y, 0.85, 0.85, self.tint((176, 48, 44), 0.7))
        if f.telangiectasia > 0.2:
            for _ in range(round(14 * f.telangiectasia)):
                x, y = rng.choice((-1, 1)) * rng.uniform(8, 17), rng.uniform(61, 74)
                self.line([(x, y), (x + rng.uniform(-3, 3), y + rng.uniform(-2, 2))], (196, 60, 66), 0.5)
        if f.ear_tag > 0.2:
            x, y = self.half - 1.6, 61 - 7.5 * f.ear_height
            self.oval(x, y, 1.9, 1.7, self.tint((200, 90, 84), 0.5))
            self.oval(x + 0.4, y - 0.5, 0.8, 0.7, self.tint((255, 255, 255), 0.3))
        if f.veins > 0.2:
            for side in (-1, 1):
                vein = [(side * 20, 46), (side * 17, 38), (side * 19, 30), (side * 13, self.top + 6)]
                self.stroke(vein, self.tint((84, 104, 156), 0.55 * f.veins), 0.9)
                self.stroke([vein[1], (side * 11, 34), (side * 7, 24)], self.tint((84, 104, 156), 0.45), 0.7)

    # hair

    def _bald(self) -> float:
        return max(self.face.hair_sparse, 0.55 if self.age < 0.5 else 0.0)

    def _back_hair(self) -> None:
        f = self.face
        bald = self._bald()
        if bald > 0.9:
            return
        colour = mix(self.hair, BLACK, 0.15)
        long = self.sex == "female" and self.age > 2 and bald < 0.5
        puff = 1.2 + 2.6 * f.hair_curl
        half, top = self.half, self.top
        right: Points = [(0, top - puff - 2), (half * 0.7, top + 3 - puff), (half + puff + 0.4, 33)]
        right += [(half + puff + (1.4 if long else -0.6), 52)]
        right += [(half + (3 if long else -4) + puff * 0.5, 92 if long else 60)]
        if bald < 0.5:
            self.blob(right + mirror(right[1:]), colour)
        if f.hair_low_back > 0.2:
            for side in (-1, 1):
                x = side * 14.5
                self.fill([(x - 6, 76), (x + 6, 76), (x + side * 7, 108), (x - side * 3, 104)], colour)

    def _front_hair(self) -> None:
        f = self.face
        bald = self._bald()
        if bald > 0.9:
            return
        colour = mix(self.hair, self.skin, 0.75 * max(0.0, bald - 0.15))
        line, half = self.hairline, self.half
        peak = 6.5 * max(0.0, f.widows_peak)
        edge = half * 0.93 + 3.6 * f.forehead_width
        low: Points = [(edge + 1, 46), (edge - 3.5, 38), (edge - 8, line + 2.5)]
        low += [(6, line - 0.8 - 0.15 * peak), (0, line + peak)]
        puff = 1.5 + 2.5 * f.hair_curl
        over: Points = [(-edge - 2, 36), (-half * 0.9 - 4.2 * f.forehead_width - puff + 0.4, self.top + 17)]
        over += [(-half * 0.62 - 1.2 * f.forehead_width, self.top + 4.6 - puff), (0, self.top - 1.5 - puff)]
        self.fill(curve(low + mirror(low[:-1])) + curve(over + mirror(over[:-1])), colour)
        self.shade(half * 0.35, self.top + 4, 9, 3, 0.10)
        if f.hair_curl > 0.2:
            self._curls(colour)
        if f.forelock > 0.2:
            self.blob([(-1.5, self.top - 2), (4, self.top - 1.5), (5.5, line + 1), (0.5, line + 1.5)], WHITE)

    def _curls(self, colour: Colour) -> None:
        tints = mix(colour, BLACK, 0.3), mix(colour, (255, 255, 255), 0.16)
        for ring, (wider, height) in enumerate(((2.0, 1.1), (-2.5, 0.88), (-7.5, 0.66))):
            for k in range(16):
                t = math.pi * (k + 0.5 * (ring % 2)) / 15
                x = -(self.half + wider) * math.cos(t)
                y = 35 - (36 - self.top) * math.sin(t) * height
                if y < self.hairline + 4 or abs(x) > self.half - 6:
                    self.oval(x, y, 2.5, 2.5, colour)
                    ring_of_hair = [(x - 1.6, y), (x, y - 1.7), (x + 1.6, y), (x, y + 1.4)]
                    self.line(curve(ring_of_hair, closed=True), tints[k % 2], 0.7)

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

        def place(u: float, v: float) -> Point:  # u outwards, v downwards, from the ear's middle
            return side * (x + u * math.cos(turn) - v * math.sin(-turn)), y + v * math.cos(turn) - u * math.sin(turn)

        def smooth(points: Points, closed: bool = False) -> Points:
            return [place(u, v) for u, v in curve(points, closed)]

        shape: Points = [(-2, -0.7 * h), (0.5 * w, -h), (w, -0.6 * h), (0.92 * w, 0.1 * h), (0.6 * w, 0.62 * h)]
        if f.ear_lobe_up > 0.2:
            shape += [(0.95 * w, 0.6 * h + 0.6 * lobe), (0.45 * w, 0.7 * h + 1.2 * lobe), (-1.5, 0.75 * h)]
        else:
            shape += [(0.42 * w, 0.75 * h + lobe), (0.05 * w, 0.75 * h + 1.1 * lobe), (-1.5, 0.7 * h)]
        if f.ear_fold > 0.2:
            shape[1:3] = [(0.62 * w, -0.62 * h), (1.12 * w, -0.38 * h)]
        self.fill(smooth(shape, closed=True), self.tint((190, 80, 70), 0.10))
        line = self.tint((70, 30, 24), 0.45)
        if size > 0.5:
            plain = max(0.0, f.ear_plain)
            rim = [(0.1 * w, -0.68 * h), (0.62 * w, -0.66 * h), (0.68 * w, -0.1 * h), (0.4 * w, 0.5 * h)]
            if plain < 0.5:
                self.line(smooth(rim), line, 0.75 - 0.3 * plain - 0.25 * f.ear_plain)
                self.oval(*place(0.22 * w, 0.08 * h), 1.1, 1.9 * size, line)
        if f.ear_fold > 0.2:
            fold = [(0.0, -0.62 * h), (0.55 * w, -0.2 * h), (1.1 * w, -0.34 * h)]
            self.line(smooth(fold), line, 1.4 * f.ear_fold)
        if f.ear_cup > 0.2:
            corners = ((-0.5, -1), (0.5, -0.8), (0.6, 0.2), (-0.3, 0.8))
            bowl = [place(u * w * 0.6 + 0.25 * w, v * h * 0.55) for u, v in corners]
            self.blob(bowl, self.tint((70, 30, 24), 0.35))
        if f.ear_crease > 0.2:
            self.line([place(0.05 * w, 0.72 * h), place(0.5 * w, 0.7 * h + 0.8 * lobe)], line, 1.0)
        if f.ear_pit > 0.2:
            self.oval(*place(0.9, -0.48 * h), 1.15, 1.15, (60, 26, 22))

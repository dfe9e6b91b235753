"""The head of a portrait: shoulders, hair, ears, the shape of the head, marks of the skin."""

from __future__ import annotations

import math

from mint.synthetic.canvas import Points, curve, mix
from mint.synthetic.sketch import CLOTHES, WHITE, Sketch


class Head(Sketch):
    """What lies behind and around the features."""

    def _body(self) -> None:
        width = 13 + 3 * min(1, self.age / 18)
        clothes = self.rng.choice(CLOTHES)
        self.canvas.fill(
            curve([(-64, 130), (-48, 107), (-17, 98), (17, 98), (48, 107), (64, 130)]) + [(0, 200)], clothes
        )
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
            (
                10.5 + 3.6 * f.chin_width + 1.8 * f.jaw_width - 4.2 * retro + 1.4 * max(0, f.chin_depth),
                chin - 4.5 + retro,
            ),
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
            self.canvas.fill(
                curve([(-3.5, 26), (3.5, 26), (2.6, 38), (0.6, 47), (-0.6, 47), (-2.6, 38)], closed=True), red
            )
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
                self.canvas.line(
                    curve([vein[1], (side * 11, 34), (side * 7, 24)]), mix(self.skin, (84, 104, 156), 0.45), 0.7
                )

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
        right += [
            (self.half + puff + (1.4 if long else -0.6), 52),
            (self.half + (3 if long else -4) + puff * 0.5, down),
        ]
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
        low = [
            (edge + 1, 46),
            (edge - 3.5, 38),
            (edge - 8, line + 2.5),
            (6, line - 0.8 - 0.15 * peak),
            (0, line + peak),
        ]
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
                    self.canvas.line(
                        curve([(x - 1.6, y), (x, y - 1.7), (x + 1.6, y), (x, y + 1.4)], True), tint[k % 2], 0.7
                    )
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
                (place(u * w * 0.6 + 0.25 * w, v * h * 0.55))
                for u, v in ((-0.5, -1), (0.5, -0.8), (0.6, 0.2), (-0.3, 0.8))
            ]
            self.canvas.fill(curve(bowl, closed=True), mix(self.skin, (70, 30, 24), 0.35))
        if f.ear_crease > 0.2:
            self.canvas.line([place(0.05 * w, 0.72 * h), place(0.5 * w, 0.7 * h + 0.8 * lobe)], line, 1.0)
        if f.ear_pit > 0.2:
            self.canvas.oval(*place(0.9, -0.48 * h), 1.15, 1.15, (60, 26, 22))

"""The features of a portrait: eyes, brows, nose, mouth, and the folds around them."""

from __future__ import annotations

import math

from mint.synthetic.canvas import BLACK, Colour, Point, Points, beside, curve, mirror, mix
from mint.synthetic.sketch import BLUE_IRIS, BLUE_SCLERA, WHITE, Sketch


class Features(Sketch):
    """The facial features."""

    # eyes and brows

    def _lid_edges(self, side: int) -> tuple[Points, Points]:
        """(upper, lower) edges of the open lids, from the inner to the outer corner."""
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
        top: Points = [(inner, y0), ((inner + middle) / 2 - pull, (3 * y0 + y1) / 4 - 0.8 * upper + pull * 0.3)]
        top += [(middle, (y0 + y1) / 2 - upper)]
        top += [((middle + outer) / 2 + 0.3, (y0 + 3 * y1) / 4 - 0.8 * upper + 0.4 * pull), (outer, y1)]
        sag = 1.8 * max(0.0, f.lid_eversion)
        bottom: Points = [(inner, y0), ((inner + middle) / 2, (3 * y0 + y1) / 4 + 0.68 * lower)]
        bottom += [(middle, (y0 + y1) / 2 + lower)]
        bottom += [((middle + outer) / 2, (y0 + 3 * y1) / 4 + 0.75 * lower + sag), (outer, y1)]
        return beside(side, curve(top)), beside(side, curve(bottom))

    def _eye(self, side: int) -> None:
        f = self.face
        upper, lower = self._lid_edges(side)
        opening = upper + lower[::-1]
        x, y = side * self.eye_x, self.eyes
        if f.eye_depth > 0.2:
            self.shade(x, y - 3.6, 8, 3.6, -0.34 * f.eye_depth)
            self.shade(x, y + 3, 7.5, 2.6, -0.16 * f.eye_depth)
        if f.eye_depth < -0.2:
            self.shade(x, y - 4.6, 7, 2.2, -0.18 * f.eye_depth)
            self.shade(x, y + 6, 6.5, 1.5, 0.2 * f.eye_depth)
        if f.puffiness > 0.2:
            bag = [(x - 7.5, y + 3), (x, y + 5), (x + 7.5, y + 3), (x + 5, y + 8.4), (x - 5, y + 8.4)]
            self.blob(bag, self.tint((255, 250, 246), 0.22 * f.puffiness))
            self.stroke([(x - 6, y + 7.6), (x, y + 9), (x + 6, y + 7.6)], self.dark, 0.7 * f.puffiness)
            self.shade(x, y - 5, 7, 2, 0.14 * f.puffiness)
        if f.lid_eversion > 0.2:
            rim = [(px, py + 1.6 * f.lid_eversion) for px, py in lower]
            self.fill(lower + rim[::-1], (206, 92, 92))
        self.fill(opening, mix((244, 240, 236), BLUE_SCLERA, f.sclera_blue))
        self.inside(opening, lambda: self._iris(side))
        lash = mix(mix((44, 30, 26), self.hair, 0.3), WHITE, f.lash_white)
        bare = max(0.0, f.lash_sparse)
        self.line(upper, mix(lash, self.dark, 0.9 * bare), 1.15 - 0.6 * bare)
        self.line(lower, mix(self.dark, lash, 0.2), 0.45)
        self._lashes(side, upper, lower, lash)
        self._lids(side, upper, lower)

    def _iris(self, side: int) -> None:
        f = self.face
        away = 3.0 * f.squint if f.squint > 0.2 and side > 0 else 0.0
        x, y, r = side * (self.eye_x - away), self.eyes - 0.2, 2.95
        colour = mix(self.iris, BLUE_IRIS, 1.0) if f.iris_mixed > 0.2 and side > 0 else self.iris
        self.oval(x, y, r, r, mix(colour, BLACK, 0.35))
        self.oval(x, y, r - 0.45, r - 0.45, colour)
        if f.iris_star > 0.2:
            for k in range(10):
                t = k * math.tau / 10
                reach = (x + 2.4 * math.cos(t), y + 2.4 * math.sin(t))
                self.line([(x, y), reach], mix(colour, (255, 255, 255), 0.75), 0.35)
        self.oval(x, y, 1.25, 1.25, (14, 10, 10))
        if f.iris_notch > 0.2:
            self.fill([(x - 0.9, y), (x + 0.9, y), (x + 0.6, y + r), (x - 0.6, y + r)], (14, 10, 10))
        self.oval(x - 0.8, y - 0.9, 0.55, 0.55, (255, 255, 255))

    def _lashes(self, side: int, upper: Points, lower: Points, colour: Colour) -> None:
        f = self.face
        length = 1.1 + 2.2 * f.lash_length
        if f.lash_sparse > 0.5 or length < 0.4:
            return
        for k, (x, y) in enumerate(upper[3::3]):
            lean = side * (0.12 + 0.09 * k) * length
            bend = 0.8 * max(0.0, f.lash_curl)
            tip = (x + lean * (1 + bend), y - length)
            self.stroke([(x, y), (x + lean * (0.7 + bend), y - 0.45 * length), tip], colour, 0.42)
        if f.lash_length > 0.4:
            for x, y in lower[8::4]:
                self.line([(x, y), (x + side * 0.5, y + 0.5 * length)], colour, 0.35)

    def _lids(self, side: int, upper: Points, lower: Points) -> None:
        f = self.face
        drop = f.lid_drop + (f.lid_drop_left if side > 0 else 0)
        if drop > 0.2:  # a drooping lid
            lid = [(x, y - 2.6 * drop - 0.6) for x, y in upper]
            self.fill(upper + lid[::-1], self.tint(self.dark, 0.12))
            self.line(upper, mix(self.dark, (30, 20, 20), 0.5), 1.1)
        crease = [(x, y - 2.1 - 0.5 * max(0, -f.eye_depth) - 1.0 * max(0.0, drop)) for x, y in upper[4:-2]]
        self.line(crease, self.tint(self.dark, 0.6), 0.5)
        if f.hood > 0.2:
            fold = [(side * abs(x), y + 1.2 * f.hood * i / len(upper)) for i, (x, y) in enumerate(upper)]
            brow = [(x, y - 4.2) for x, y in upper]
            self.fill(fold + brow[::-1], self.tint(self.dark, 0.08))
            self.line(fold, self.dark, 1.0)
        if f.lid_notch > 0.2:
            x, y = lower[len(lower) * 2 // 3]
            self.fill([(x - 1.6, y - 0.5), (x + 1.6, y - 0.5), (x, y + 3.4)], (228, 170, 164))
        if f.eye_crease > 0.2:
            x, y = side * self.eye_x, self.eyes + 7
            line = [(x - side * 6, y - 1.6), (x, y + 0.6), (x + side * 6, y + 0.4)]
            self.stroke(line, self.dark, 0.9 * f.eye_crease)
        if f.epicanthus > 0.2:
            (x, y), e = upper[0], f.epicanthus
            skin = [(-1.5, y - 3.2), (3.0 * e, y - 2.6), (2.4 * e, y + 0.4), (-1.0, y + 2.6)]
            self.blob(beside(side, skin, x), self.skin)
            edge = [(3.2 * e, y - 2.8), (2.3 * e, y - 0.4), (-0.2, y + 2.4)]
            self.stroke(beside(side, edge, x), self.dark, 0.85)

    def _brow_height(self) -> float:
        return self.eyes - 8.6 - 0.8 * max(0.0, self.face.brow_arch) + 0.6 * max(0.0, self.face.eye_depth)

    def _brow(self, side: int) -> None:
        f = self.face
        if f.brow_sparse > 0.95:
            return
        colour = mix(mix(self.hair, (20, 14, 12), 0.25), WHITE, f.brow_white)
        colour = mix(colour, self.skin, 0.85 * max(0.0, f.brow_sparse) + 0.1)
        y, arch = self._brow_height(), 1.3 + 2.6 * f.brow_arch
        thick = max(0.35, 1.25 + 0.95 * f.brow_thickness - 0.2 * f.brow_sparse)
        inner, outer = self.eye_x - 6.2, self.eye_x + 7.4 + 2.6 * max(0, f.brow_length)
        tilt = 0.9 * f.slant
        count, up, down = 14, [], []
        for k in range(count + 1):
            t = k / count
            rise = math.sin(math.pi * min(1, t * 0.86 + 0.02)) * arch
            weight = thick * (1 - 0.55 * t**2)
            weight += 1.7 * max(0.0, f.brow_medial) * (1 - t) ** 3 + 1.1 * max(0.0, f.brow_lateral) * t * t
            if f.brow_medial < -0.2 and t < 0.4:
                weight *= 0.25
            if f.brow_lateral < -0.2 and t > 0.5:
                weight *= 0.12
            x, v = inner + (outer - inner) * t, y - rise + 1.2 * t**3 - tilt * (t - 0.5)
            up.append((x, v - weight - 1.2 * max(0.0, f.brow_medial) * (1 - t) ** 4))
            down.append((x, v + weight * 0.6))
        self.fill(beside(side, up + down[::-1]), colour)

    def _brow_bridge(self) -> None:
        f, y = self.face, self._brow_height()
        colour = mix(mix(self.hair, (20, 14, 12), 0.25), self.skin, 0.15 + 0.5 * (1 - min(1, f.brow_join)))
        reach = self.eye_x - 5
        half = 0.55 + 0.5 * max(0, f.brow_thickness) + 0.3
        end = [(reach, y - half), (reach, y + half)]
        self.fill([*mirror(end)[1:], (0, y + 0.4 - half), *end, (0, y + 1.4), *mirror(end)[:1]], colour)

    # nose and mouth

    def _nose(self) -> None:
        f, y = self.face, self.nose_y
        grow = 1 + 0.22 * f.nose_size
        skew = 3.0 * f.nose_skew
        bridge = max(1.2, 2.9 + 1.7 * f.bridge_width) * (1 + 0.12 * f.nose_size)
        tip = max(1.8, 3.6 + 1.9 * f.tip_width) * grow
        wing = max(3.4, 6.3 + 2.0 * f.nose_width + 0.8 * f.nostril_flare) * grow
        height = 0.10 + 0.13 * f.bridge_height + 0.05 * f.nose_size
        self.shade(0.3 * skew, 57, 1.5 + 0.5 * f.bridge_width, 7, height)
        if f.bridge_height < -0.3:
            self.shade(0, 56, 5.5, 3.2, 0.10 * f.bridge_height)
        for side in (-1, 1):
            self.shade(side * (bridge + 0.6), 57, 1.1, 7, -0.14 - 0.10 * f.bridge_height)
        self.shade(skew, y - 2.4, 0.6 * tip, 2.0, 0.12 + 0.16 * f.tip_height + 0.04 * f.tip_width)
        if f.ridge > 0.2:
            self.shade(0, 61.5, 2.1, 3.2, 0.34 * f.ridge)
            self.shade(skew, y + 0.8, 2.6, 1.6, -0.2 * f.ridge)
        elif f.ridge < -0.2:
            self.shade(0, 62, 2.6, 3.2, 0.2 * f.ridge)
            self.shade(skew, y - 2.6, 2.8, 1.5, -0.16 * f.ridge)
        edge = self.tint(self.dark, 0.75)
        for side in (-1, 1):
            flank: Points = [(side * (bridge + 0.4), 51), (side * bridge + 0.3 * skew, 58)]
            flank += [(side * (0.6 * bridge + 0.5 * tip) + skew, y - 5)]
            self.stroke(flank, self.tint(self.dark, 0.3 + 0.3 * f.bridge_height), 0.6)
            ala = [(tip * 0.95, y - 4.4), (wing, y - 2.0), (wing - 0.5, y + 0.6), (wing - 2.4, y + 0.9)]
            self.stroke(beside(side, ala, skew), edge, 0.8 + 0.35 * max(0.0, f.nostril_flare))
            nx, tilt = side * (0.5 * wing) + skew, max(0.0, f.nostril_tilt)
            if f.nostril_tilt > -0.3:
                width = max(0.7, 1.35 + 0.25 * f.nostril_flare + 0.25 * tilt) * grow
                self.oval(nx, y + 0.2 - 1.1 * tilt, width, 0.75 + 1.1 * tilt, (70, 30, 28))
            if f.nose_cleft < 0.2:
                bulb = [(tip * 0.8, y - 4.6), (tip, y - 2.2), (0.55 * tip, y - 0.2)]
                self.stroke(beside(side, bulb, skew), self.tint(self.dark, 0.3 + 0.2 * max(0.0, f.tip_width)), 0.5)
        drop = 1.0 + 2.4 * f.columella + 0.8 * max(0.0, -f.nostril_tilt) + 1.0 * max(0.0, f.ridge)
        if f.columella > 0.2 or f.ridge > 0.2:
            low = y + drop - 0.6
            point = [(-1.5, y - 1.4), (1.5, y - 1.4), (1.3, low), (0, y + drop + 0.3), (-1.3, low)]
            self.blob(beside(1, point, skew), self.tint((255, 255, 255), 0.07))
        half: Points = [(-0.6 * wing, y + 1.0), (-1.4, y + 0.8)]
        self.stroke(beside(1, [*half, (0, y + drop), *mirror(half)], skew), edge, 0.7)
        if f.nose_cleft > 0.2:
            self.line([(skew, y - 6.5), (skew, y + 1)], self.dark, 1.5 * f.nose_cleft)

    def _philtrum(self) -> None:
        f = self.face
        top, bottom = self.nose_y + 2.2, self.mouth_y - 2.4 - 0.8 * f.upper_lip
        depth = 0.85 + 0.95 * f.philtrum_depth
        if depth < 0.1 or bottom - top < 1:
            return
        half = 1.7 + 1.2 * f.philtrum_width
        colour = self.tint(self.dark, min(0.95, 0.62 * depth))
        for side in (-1, 1):
            self.line([(side * half * 0.75, top), (side * half, bottom)], colour, 0.7 * (0.6 + depth / 2))
        self.shade(0, (top + bottom) / 2, 0.7 * half, (bottom - top) / 2, -0.09 * depth)

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
        slope = [(-half * 0.55, y - 0.62 * up - 0.4 * lift), (-2.4, mid - up - bow - tent * 0.6)]
        top = [(-half, corner), *slope, (0, mid - up + 0.55 * bow - tent), *mirror(slope), (half, left)]
        ends: tuple[Point, Point] = (-half + 0.8, corner), (half - 0.8, left)  # of the opening
        dip = mid + 0.15 - tent * 0.3
        inner_top = [ends[0], (-3, dip), (0, mid + 0.35 - 0.6 * tent), (3, dip), ends[1]]
        floor = y + max(0.2, opened)
        inner_low = [ends[1], (half * 0.5, floor), (0, floor + 0.25), (-half * 0.5, floor), ends[0]]
        roll = 1.2 * max(0.0, f.lip_eversion)
        edge = floor + 0.86 * low + roll
        bottom = [(half, left), (half * 0.5, edge), (0, floor + low + roll), (-half * 0.5, edge), (-half, corner)]
        darker = mix(self.lip, (60, 10, 14), 0.18)
        self.fill(curve(top) + curve(bottom), self.lip)
        self.fill(curve(top) + curve(inner_top)[::-1], darker)
        if opened > 0.8:
            self.fill(curve(inner_top) + curve(inner_low), (70, 20, 24))
            self._teeth(half, mid, opened)
        else:
            self.stroke(inner_top, mix(darker, (30, 5, 8), 0.6), 0.75)
        self.shade(0, floor + 0.55 * low, 4.5, 1.0, 0.10 + 0.1 * max(0.0, f.lower_lip))
        self.shade(0, floor + low + 1.8, 6, 1.3, -0.10 - 0.12 * max(0, f.lip_eversion))
        if f.tongue > 0.2:
            self._tongue(half, mid, floor)
        self._clefts(mid)

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
            self.fill(tooth, colour)
            if f.teeth_stain > 0.2:
                self.oval(x, y + 0.5 * h, 0.55, 0.55, (92, 62, 30))
            if f.teeth_crowded > 0.2:
                self.line([tooth[1], tooth[2]], (120, 90, 80), 0.4)

    def _tongue(self, half: float, y: float, floor: float) -> None:
        f = self.face
        reach = floor + 1.6 + 6.0 * f.tongue
        width = 0.6 * half * (0.75 + 0.35 * f.tongue)
        side, low = width * 0.96, reach - 2.6
        self.blob([(-width, y + 0.8), (width, y + 0.8), (side, low), (0, reach), (-side, low)], (232, 130, 136))
        self.line([(0, y + 1.6), (0, reach - 1.6)], (186, 84, 94), 0.8)
        if f.tongue_cleft > 0.2:
            self.fill([(-1.7, reach + 0.6), (1.7, reach + 0.6), (0, reach - 4.2 * f.tongue_cleft)], (70, 20, 24))

    def _clefts(self, y: float) -> None:
        f, top = self.face, self.nose_y + 0.8
        for x, wanted in ((0.0, f.cleft), (3.4, f.cleft_side)):
            if wanted > 0.2:
                w = 1.3 * wanted
                self.fill([(x - 0.5, top), (x + 0.5, top), (x + w, y + 0.9), (x - w, y + 0.9)], (104, 34, 38))

    def _folds(self) -> None:
        f = self.face
        deep = max(0.0, f.coarse) * 0.9 + 0.5 * f.wrinkles
        colour = self.tint(self.dark, min(0.9, 0.25 + 0.6 * deep))
        for side in (-1, 1):
            if deep > 0.15:
                fold = [(side * 7.5, self.nose_y - 2), (side * 11.5, self.nose_y + 5), (side * 12.5, self.mouth_y + 3)]
                self.stroke(fold, colour, 0.5 + 0.9 * deep)
            if f.coarse > 0.3:
                x = side * self.eye_x
                self.stroke([(x - 5, self.eyes + 5.4), (x, self.eyes + 6.6), (x + 5, self.eyes + 5.4)], colour, 0.8)
            if f.wrinkles > 0.3:
                x = side * (self.eye_x + 8)
                for lift in (-1.6, 0.2, 2.0):
                    self.line([(x, self.eyes + 0.4 * lift), (x + side * 3.4, self.eyes + 1.5 * lift)], colour, 0.55)
        if f.wrinkles > 0.3:
            for k in range(3):
                y = self.hairline + 6 + 3.2 * k
                self.stroke([(-13, y + 0.6), (-5, y - 0.5), (5, y + 0.5), (13, y - 0.3)], colour, 0.55)

"""The person in a portrait: colours of skin, hair and eyes, and the positions that the parts of the face share."""

from __future__ import annotations

import random

from mint.synthetic.canvas import Canvas, Colour, mix
from mint.synthetic.face import Face

SKIN = (
    (250, 222, 200),
    (240, 204, 176),
    (226, 184, 152),
    (206, 160, 124),
    (176, 128, 92),
    (142, 100, 70),
    (108, 74, 52),
)
HAIR = ((40, 30, 26), (62, 42, 30), (92, 62, 40), (134, 96, 58), (26, 22, 24), (52, 36, 30))
IRIS = ((84, 56, 36), (104, 74, 44), (66, 46, 34), (92, 98, 62), (98, 112, 122))
FAIR, WHITE, BLUE_IRIS, BLUE_SCLERA = (234, 208, 146), (246, 244, 238), (92, 156, 226), (150, 184, 224)
BACKGROUNDS = ((188, 202, 212), (214, 210, 200), (170, 184, 176), (200, 194, 208), (222, 222, 220), (150, 168, 190))
CLOTHES = ((70, 92, 128), (128, 72, 76), (84, 116, 92), (166, 172, 196), (90, 84, 112), (60, 64, 70), (190, 140, 90))


class Sketch(Canvas):
    """A portrait in progress: the face, its colours, and the positions of its parts."""

    def __init__(self, face: Face, rng: random.Random, age: float, sex: str):
        self.face, self.rng, self.age, self.sex = face, rng, age, sex
        self.skin = mix(rng.choice(SKIN), rng.choice(SKIN), rng.uniform(0, 0.35))
        self.hair = mix(rng.choice(HAIR), FAIR, 0.9 * face.hair_fair)
        if age > 50:
            self.hair = mix(self.hair, (190, 190, 190), (age - 50) / 25)
        self.iris = mix(rng.choice(IRIS), BLUE_IRIS, face.iris_blue)
        self.dark = self.tint((60, 24, 20), 0.55)  # lines in the skin
        self.lip = self.tint((178, 66, 70), 0.55)
        turn, shift = rng.gauss(0, 0.02), (rng.gauss(0, 1.0), rng.gauss(0, 1.0))
        super().__init__(rng.choice(BACKGROUNDS), face.asymmetry, turn, shift)
        self._measure(face)

    def tint(self, colour: Colour, share: float) -> Colour:
        """The skin with a share of another colour."""
        return mix(self.skin, colour, share)

    def _measure(self, f: Face) -> None:
        self.half = 25.5 + 3.4 * f.head_width  # half the width at the eyes
        self.top = 12 - 5 * f.head_height
        self.eyes = 54.0
        self.chin = min(109.5, 99 + 5.5 * f.face_length + 4.6 * f.chin_length + 3.6 * f.chin_depth)
        self.hairline = 30 - 5.5 * f.forehead_height - 1.5 * f.head_height
        self.eye_x = 11.6 + 3.4 * f.eye_distance + 0.5 * f.telecanthus + 0.8 * f.head_width
        self.nose_y = 71.5 + 2.2 * f.face_length + 4.2 * f.nose_length + 1.5 * f.nose_size
        mouth = self.nose_y + 9.5 + 0.8 * f.face_length + 3.6 * f.philtrum_length
        self.mouth_y = min(mouth, self.chin - 9)

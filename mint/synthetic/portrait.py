"""Schematic portraits, 112 x 112: a stand-in for photographs of patients, which cannot be shared.

From the back to the front: shoulders, hair, ears, head, marks of the skin, eyes and brows, nose, mouth, folds. How
far a trait moves a line was chosen by eye, so that its textbook degree is plain at this size.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mint.synthetic.face import make_face, read_findings
from mint.synthetic.features import Features
from mint.synthetic.head import Head

KNOWN_FINDINGS = frozenset(read_findings())


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
    drawing = Drawing(face, rng, age, sex)
    drawing.draw()
    return drawing.canvas.finish(np.random.default_rng(rng.getrandbits(32)))


class Drawing(Head, Features):
    """A whole portrait."""

    def draw(self) -> None:
        """All parts, from the back to the front."""
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

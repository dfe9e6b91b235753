"""Schematic portraits, 112 x 112: a stand-in for photographs of patients, which cannot be shared.

How far a trait moves a line was chosen by eye, so that a textbook finding is visible at this size.
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
    """A frontal portrait of a person with these facial findings, RGB, 112 x 112; the same for the same arguments.

    findings: HPO ids; those not in ``KNOWN_FINDINGS`` are ignored. seed: identifies the person. age_years, sex: "male"
    or "female"; sampled if unknown.
    """
    rng = random.Random(f"portrait {seed}")
    age = rng.uniform(1, 20) if age_years is None else age_years
    sex = sex if sex in ("male", "female") else rng.choice(("male", "female"))
    face = make_face(sorted(set(findings)), rng, age, sex)
    drawing = Drawing(face, rng, age, sex)
    drawing.draw()
    return drawing.finish(np.random.default_rng(rng.getrandbits(32)))


class Drawing(Head, Features):
    """A complete portrait."""

    def draw(self) -> None:
        """Draws all parts from back to front."""
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

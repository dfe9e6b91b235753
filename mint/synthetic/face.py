"""What a drawn face can look like: traits, the findings that change them, and the individual they are seen in.

A trait is a number, 0 in an average face and 1 (or -1) where a textbook would show it. ``facial_terms.tsv`` says for
some 250 terms of the Human Phenotype Ontology which traits a finding changes, and by how much.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources

from mint.errors import InputError

COLUMNS = ("term_id", "label", "traits")
LIMIT = 1.4  # the furthest a trait goes, however many findings push it


@dataclass
class Face:
    """Traits of a face, each 0 on average. Where only one direction has a meaning, what is below 0 is not drawn."""

    # the head
    head_width: float = 0.0
    head_height: float = 0.0
    face_length: float = 0.0
    forehead_height: float = 0.0  # up to the hairline
    forehead_width: float = 0.0
    forehead_bulge: float = 0.0
    forehead_slope: float = 0.0
    metopic: float = 0.0
    glabella: float = 0.0
    brow_ridge: float = 0.0
    temples: float = 0.0
    cheeks: float = 0.0
    cheekbones: float = 0.0
    midface: float = 0.0  # above 0 it stands forward
    jaw_width: float = 0.0
    chin_length: float = 0.0
    chin_width: float = 0.0
    chin_depth: float = 0.0  # above 0 it stands forward
    chin_dimple: float = 0.0
    asymmetry: float = 0.0
    coarse: float = 0.0
    wrinkles: float = 0.0
    # hair
    widows_peak: float = 0.0
    forelock: float = 0.0
    hair_curl: float = 0.0
    hair_sparse: float = 0.0
    hair_fair: float = 0.0
    hair_low_back: float = 0.0
    # eyes
    eye_distance: float = 0.0
    telecanthus: float = 0.0
    slant: float = 0.0
    eye_length: float = 0.0
    eye_height: float = 0.0
    eye_depth: float = 0.0  # above 0 they lie deep
    almond: float = 0.0
    epicanthus: float = 0.0
    lid_drop: float = 0.0
    lid_drop_left: float = 0.0
    lid_eversion: float = 0.0
    lid_notch: float = 0.0
    hood: float = 0.0
    puffiness: float = 0.0
    eye_crease: float = 0.0
    squint: float = 0.0
    sclera_blue: float = 0.0
    iris_blue: float = 0.0
    iris_mixed: float = 0.0
    iris_notch: float = 0.0
    iris_star: float = 0.0
    lash_length: float = 0.0
    lash_curl: float = 0.0
    lash_sparse: float = 0.0
    lash_white: float = 0.0
    # brows
    brow_thickness: float = 0.0
    brow_arch: float = 0.0
    brow_join: float = 0.0
    brow_length: float = 0.0
    brow_medial: float = 0.0
    brow_lateral: float = 0.0
    brow_sparse: float = 0.0
    brow_white: float = 0.0
    # nose
    bridge_width: float = 0.0
    bridge_height: float = 0.0
    nose_length: float = 0.0
    nose_width: float = 0.0
    nose_size: float = 0.0
    nose_skew: float = 0.0
    nose_cleft: float = 0.0
    ridge: float = 0.0  # above 0 convex
    tip_width: float = 0.0
    tip_height: float = 0.0
    nostril_tilt: float = 0.0
    nostril_flare: float = 0.0
    columella: float = 0.0
    # mouth
    philtrum_length: float = 0.0
    philtrum_depth: float = 0.0
    philtrum_width: float = 0.0
    mouth_width: float = 0.0
    mouth_corners: float = 0.0
    mouth_open: float = 0.0
    upper_lip: float = 0.0
    lower_lip: float = 0.0
    lip_eversion: float = 0.0
    lip_crease: float = 0.0
    tent: float = 0.0
    bow: float = 0.0
    cleft: float = 0.0
    cleft_side: float = 0.0
    tongue: float = 0.0
    tongue_cleft: float = 0.0
    teeth_size: float = 0.0
    teeth_gap: float = 0.0
    teeth_crowded: float = 0.0
    teeth_missing: float = 0.0
    teeth_stain: float = 0.0
    stillness: float = 0.0
    palsy: float = 0.0
    # ears
    ear_height: float = 0.0
    ear_out: float = 0.0
    ear_size: float = 0.0
    ear_rotation: float = 0.0
    ear_lobe: float = 0.0
    ear_lobe_up: float = 0.0
    ear_fold: float = 0.0
    ear_cup: float = 0.0
    ear_plain: float = 0.0
    ear_tag: float = 0.0
    ear_pit: float = 0.0
    ear_crease: float = 0.0
    # skin
    flush: float = 0.0
    malar_rash: float = 0.0
    papules: float = 0.0
    naevus: float = 0.0
    telangiectasia: float = 0.0
    veins: float = 0.0


TRAITS = tuple(field.name for field in fields(Face))
# In which healthy people differ, with the standard deviation of a healthy population.
VARIES = dict.fromkeys(
    (
        "head_width face_length forehead_height forehead_width cheeks jaw_width chin_length chin_width eye_distance slant "
        "eye_length eye_height brow_thickness brow_arch bridge_width bridge_height nose_length nose_width tip_width "
        "philtrum_length mouth_width mouth_corners upper_lip lower_lip ear_height ear_out ear_size ear_lobe"
    ).split(),
    0.16,
)


@cache
def read_findings() -> dict[str, dict[str, float]]:
    """HPO id -> trait -> change, of every finding that can be drawn.

    Raises InputError where the table has been edited into something that is not one.
    """
    text = resources.files("mint.synthetic").joinpath("facial_terms.tsv").read_text(encoding="utf-8")
    rows = [(i, line.split("\t")) for i, line in enumerate(text.splitlines(), 1) if line and not line.startswith("#")]
    if not rows or tuple(rows[0][1]) != COLUMNS:
        raise InputError(f"facial_terms.tsv: the first row must name the columns {', '.join(COLUMNS)}")
    findings = {}
    for number, row in rows[1:]:
        try:
            term, _, traits = row
            changes = {name: float(value) for name, value in (item.split("=") for item in traits.split())}
        except ValueError:
            raise InputError(f"facial_terms.tsv line {number}: expected id, label and trait=number ...") from None
        if unknown := [name for name in changes if name not in TRAITS]:
            raise InputError(f"facial_terms.tsv line {number}: {unknown[0]} is no trait of a face")
        findings[term] = changes
    return findings


def make_face(findings: Sequence[str], rng: random.Random, age_years: float, sex: str) -> Face:
    """A face of this age and sex, with the findings (HPO ids; one that cannot be drawn changes nothing).

    Every face is an individual; a finding is more or less marked, from three quarters to a quarter more than in the table.
    """
    face = Face()
    youth = max(0.0, 1 - age_years / 14)  # 1 at birth, 0 from 14 on
    face.face_length -= 0.8 * youth
    face.cheeks += 0.45 * youth
    face.nose_length -= 0.35 * youth
    face.nose_width -= 0.2 * youth
    face.chin_length -= 0.3 * youth
    face.bridge_height -= 0.2 * youth
    if age_years > 12:
        face.brow_thickness += 0.25 if sex == "male" else -0.3
        face.jaw_width += 0.25 if sex == "male" else -0.25
        face.upper_lip += 0.0 if sex == "male" else 0.2
    face.wrinkles = min(1.0, max(0.0, (age_years - 35) / 40))
    for name, deviation in VARIES.items():
        setattr(face, name, getattr(face, name) + rng.gauss(0, deviation))
    for term in findings:
        strength = rng.uniform(0.75, 1.25)
        for name, change in read_findings().get(term, {}).items():
            setattr(face, name, getattr(face, name) + strength * change)
    for name in TRAITS:
        setattr(face, name, min(LIMIT, max(-LIMIT, getattr(face, name))))
    return face

"""Facial traits, the findings that change them, and random individual faces.

A trait is a number: 0 in an average face, 1 (or -1) in a textbook example. ``facial_terms.tsv`` lists for about 250
terms of the Human Phenotype Ontology which traits a finding changes, and by how much.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace

from mint.errors import InputError
from mint.synthetic.package_tables import read_table

LIMIT = 1.4  # largest absolute value of a trait, however many findings change it
# Where only one direction has a meaning, values below 0 are not drawn. forehead_height: up to the hairline. midface and
# chin_depth are above 0 where they project, eye_depth where the eyes are deep-set, ridge where it is convex.
TRAITS = tuple(
    """
    head_width head_height face_length forehead_height forehead_width forehead_bulge forehead_slope metopic glabella
    brow_ridge temples cheeks cheekbones midface jaw_width chin_length chin_width chin_depth chin_dimple asymmetry
    coarse wrinkles

    widows_peak forelock hair_curl hair_sparse hair_fair hair_low_back

    eye_distance telecanthus slant eye_length eye_height eye_depth almond epicanthus lid_drop lid_drop_left lid_eversion
    lid_notch hood puffiness eye_crease squint sclera_blue iris_blue iris_mixed iris_notch iris_star lash_length
    lash_curl lash_sparse lash_white

    brow_thickness brow_arch brow_join brow_length brow_medial brow_lateral brow_sparse brow_white

    bridge_width bridge_height nose_length nose_width nose_size nose_skew nose_cleft ridge tip_width tip_height
    nostril_tilt nostril_flare columella

    philtrum_length philtrum_depth philtrum_width mouth_width mouth_corners mouth_open upper_lip lower_lip lip_eversion
    lip_crease tent bow cleft cleft_side tongue tongue_cleft teeth_size teeth_gap teeth_crowded teeth_missing
    teeth_stain stillness palsy

    ear_height ear_out ear_size ear_rotation ear_lobe ear_lobe_up ear_fold ear_cup ear_plain ear_tag ear_pit ear_crease

    flush malar_rash papules naevus telangiectasia veins
    """.split()
)
# The traits in which healthy people differ, and their standard deviation.
VARIABLE = (
    "head_width face_length forehead_height forehead_width cheeks jaw_width chin_length chin_width eye_distance slant "
    "eye_length eye_height brow_thickness brow_arch bridge_width bridge_height nose_length nose_width tip_width "
    "philtrum_length mouth_width mouth_corners upper_lip lower_lip ear_height ear_out ear_size ear_lobe"
).split()
DEVIATION = 0.16


class Face(SimpleNamespace):
    """A face: a float for every name in ``TRAITS``, 0 unless given."""

    def __init__(self, **traits: float):
        super().__init__(**{**dict.fromkeys(TRAITS, 0.0), **traits})


@cache
def read_findings() -> dict[str, dict[str, float]]:
    """HPO id -> trait -> change, for every finding that can be drawn. Raises InputError for an invalid table."""
    findings = {}
    for number, (term, _, traits) in read_table("facial_terms.tsv", ("term_id", "label", "traits")):
        try:
            changes = {name: float(value) for name, value in (item.split("=") for item in traits.split())}
        except ValueError:
            raise InputError(f"facial_terms.tsv line {number}: expected trait=number ..., not {traits!r}") from None
        if unknown := changes.keys() - set(TRAITS):
            raise InputError(f"facial_terms.tsv line {number}: unknown trait {', '.join(sorted(unknown))}")
        findings[term] = changes
    return findings


def make_face(findings: Sequence[str], rng: random.Random, age_years: float, sex: str) -> Face:
    """A random face of this age and sex with the findings (HPO ids; unknown ones change nothing).

    Each finding's changes are scaled by a random factor between 0.75 and 1.25. sex: "male" or "female".
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
    for name in VARIABLE:
        setattr(face, name, getattr(face, name) + rng.gauss(0, DEVIATION))
    for term in findings:
        strength = rng.uniform(0.75, 1.25)
        for name, change in read_findings().get(term, {}).items():
            setattr(face, name, getattr(face, name) + strength * change)
    for name in TRAITS:
        setattr(face, name, min(LIMIT, max(-LIMIT, getattr(face, name))))
    return face

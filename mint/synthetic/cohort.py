"""A synthetic cohort of patients sampled from a table of real syndromes (``syndromes.tsv``).

Every command can run on it without other data. Each patient has one syndrome, whose features are sampled with the
table's frequencies. Facial features are mostly left out of the written terms, so that a portrait adds information.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import NamedTuple

from mint.data.cases import Case, Term
from mint.errors import InputError
from mint.synthetic.package_tables import read_table

COLUMNS = ("disease_id", "name", "term_id", "label", "frequency", "facial")

# Features of one sex only; frequencies in the table are among patients of that sex.
SEX_ONLY = {
    "HP:0000028": "male",  # Cryptorchidism
    "HP:0000047": "male",  # Hypospadias
    "HP:0000049": "male",  # Shawl scrotum
    "HP:0000053": "male",  # Macroorchidism
    "HP:0000054": "male",  # Micropenis
    "HP:0010314": "female",  # Premature thelarche
}

# Age in years before which a feature cannot be present or is not assessed.
FROM_AGE = {
    "HP:0000750": 1.5,  # Delayed speech and language development
    "HP:0001344": 2,  # Absent speech
    "HP:0001249": 2,  # Intellectual disability
    "HP:0000729": 2,  # Autistic behavior
    "HP:0000718": 2,  # Aggressive behavior
    "HP:0002136": 1.5,  # Broad-based gait
    "HP:0002066": 1.5,  # Gait ataxia
    "HP:0001611": 3,  # Hypernasal speech
    "HP:0100025": 3,  # Overfriendliness
    "HP:0000739": 4,  # Anxiety
    "HP:0007018": 4,  # Attention deficit hyperactivity disorder
    "HP:0010794": 5,  # Impaired visuospatial constructive cognition
    "HP:0001328": 6,  # Specific learning disability
    "HP:0002829": 5,  # Arthralgia
    "HP:0001067": 8,  # Neurofibroma
    "HP:0100804": 8,  # Ungual fibroma
    "HP:0000053": 9,  # Macroorchidism
    "HP:0000819": 10,  # Diabetes mellitus
    "HP:0001061": 11,  # Acne
    "HP:0001065": 11,  # Striae distensae
    "HP:0000135": 12,  # Hypogonadism
    "HP:0002216": 14,  # Premature graying of hair
    "HP:0100753": 15,  # Schizophrenia
    "HP:0002758": 18,  # Osteoarthritis
    "HP:0001681": 6,  # Angina pectoris
    "HP:0002621": 5,  # Atherosclerosis
}

# Non-facial term -> the more general term of the table that it implies. A patient with the first never has the second
# written as excluded.
IMPLIES = {
    "HP:0001319": "HP:0001252",  # Neonatal hypotonia, Hypotonia
    "HP:0001344": "HP:0000750",  # Absent speech, Delayed speech and language development
    "HP:0004482": "HP:0000256",  # Relative macrocephaly, Macrocephaly
    "HP:0008905": "HP:0004322",  # Rhizomelia, Short stature
    "HP:0009732": "HP:0001067",  # Plexiform neurofibroma, Neurofibroma
    "HP:0010535": "HP:0002360",  # Sleep apnea, Sleep abnormality
    "HP:0010794": "HP:0001328",  # Impaired visuospatial constructive cognition, Specific learning disability
    "HP:0012166": "HP:0100716",  # Skin-picking, Self-injurious behavior
    "HP:0032509": "HP:0100716",  # Onychotillomania, Self-injurious behavior
}

# Median and maximum age at the visit, in years, where they differ from (5, 50).
AGES = {
    "OMIM:154700": (16, 60),  # Marfan
    "OMIM:609192": (12, 50),  # Loeys-Dietz 1
    "OMIM:162200": (11, 60),  # Neurofibromatosis I
    "OMIM:191100": (8, 60),  # Tuberous sclerosis 1
    "OMIM:108300": (14, 60),  # Stickler I
    "OMIM:193500": (14, 60),  # Waardenburg 1
    "OMIM:209900": (14, 50),  # Bardet-Biedl 1
    "OMIM:300624": (9, 50),  # fragile X
    "OMIM:188400": (8, 50),  # 22q11.2 deletion
    "OMIM:130650": (1.5, 15),  # Beckwith-Wiedemann
    "OMIM:270400": (2, 20),  # Smith-Lemli-Opitz
    "OMIM:194190": (3, 20),  # Wolf-Hirschhorn
    "OMIM:216400": (5, 15),  # Cockayne A
    "OMIM:309900": (5, 18),  # Mucopolysaccharidosis II
    "OMIM:176670": (6, 14),  # Hutchinson-Gilford progeria
}

# Share of male patients where it is not one half: X-linked syndromes.
MALE_SHARE = {"OMIM:300624": 0.8, "OMIM:305400": 0.9, "OMIM:309900": 0.98}

_OFTEN = 0.5  # frequency from which the absence of a feature is worth noting
_UNKNOWN = 0.04  # share of cases without age, and of cases without sex, as in published reports


class Feature(NamedTuple):
    """A feature of a syndrome: HPO id and label, approximate frequency in (0, 1], whether a face shows it."""

    id: str
    label: str
    frequency: float
    facial: bool


@dataclass(frozen=True)
class Syndrome:
    """A syndrome: short name, OMIM id ("OMIM:190685"), features in the table's order."""

    name: str
    disease_id: str
    features: tuple[Feature, ...]


@cache
def _read_table() -> tuple[Syndrome, ...]:
    features: dict[tuple[str, str], list[Feature]] = {}
    for _, (disease_id, name, term_id, label, frequency, facial) in read_table("syndromes.tsv", COLUMNS):
        feature = Feature(term_id, label, float(frequency), facial == "1")
        features.setdefault((disease_id, name), []).append(feature)
    return tuple(Syndrome(name, disease_id, tuple(rows)) for (disease_id, name), rows in features.items())


def load_syndromes() -> list[Syndrome]:
    """The syndromes of the package's table, from common to rare. Raises InputError for an invalid table."""
    return list(_read_table())


def applies(term_id: str, age_years: float, sex: str) -> bool:
    """Whether a patient of this age and sex can have the feature (see SEX_ONLY and FROM_AGE)."""
    return SEX_ONLY.get(term_id, sex) == sex and age_years >= FROM_AGE.get(term_id, 0)


def syndrome_weights(count: int) -> list[float]:
    """Share of each of ``count`` syndromes in a cohort, in the table's order: decreasing, sum 1.

    Of 43 syndromes the last has a seventh of the first's share. In reality it is rarer, but a training cohort of a few
    hundred cases must contain some of each.
    """
    raw = [1 / (place + 6) for place in range(1, count + 1)]
    return [weight / sum(raw) for weight in raw]


@cache
def _look_alikes() -> dict[str, tuple[str, ...]]:
    """Disease id -> the three diseases whose non-facial features overlap most with its own."""
    syndromes = _read_table()
    profile = {s.disease_id: {f.id: f.frequency for f in s.features if not f.facial} for s in syndromes}

    def overlap(a: str, b: str) -> float:
        return sum(min(value, profile[b].get(term, 0.0)) for term, value in profile[a].items())

    return {a: tuple(sorted((b for b in profile if b != a), key=lambda b: (-overlap(a, b), b))[:3]) for a in profile}


@cache
def _common_findings() -> tuple[Feature, ...]:
    """Non-facial features that two or more syndromes share; any patient may have them as unrelated findings."""
    features = [feature for syndrome in _read_table() for feature in syndrome.features if not feature.facial]
    counts = Counter(feature.id for feature in features)
    found: dict[str, Feature] = {}
    for feature in features:
        found.setdefault(feature.id, feature)
    return tuple(feature for term, feature in found.items() if counts[term] > 1)


def _draw_count(rng: random.Random, mean: float) -> int:
    """A Poisson variate, by Knuth's product of uniforms."""
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


def _draw_patient(rng: random.Random, syndrome: Syndrome) -> tuple[float, str]:
    median, oldest = AGES.get(syndrome.disease_id, (5, 50))
    age = min(max(rng.lognormvariate(math.log(median), 0.8), 0.25), oldest)
    sex = "male" if rng.random() < MALE_SHARE.get(syndrome.disease_id, 0.5) else "female"
    return round(age * 12) / 12, sex


def _write_down(rng: random.Random, present: list[Feature], facial: float, reporting: float) -> list[Feature]:
    """The features that are written down, at least two: if chance leaves fewer, the most frequent others are added."""
    written: list[Feature] = []
    silent: list[Feature] = []
    for feature in present:
        kept = rng.random() < (facial if feature.facial else reporting)
        (written if kept else silent).append(feature)
    silent.sort(key=lambda feature: (feature.facial, -feature.frequency))
    return written + silent[: max(0, 2 - len(written))]


def _draw_excluded(
    rng: random.Random, syndrome: Syndrome, has: set[str], age: float, sex: str, mean: float
) -> list[Feature]:
    """Frequent features of the syndrome or of similar ones that this patient does not have."""
    by_id = {s.disease_id: s for s in _read_table()}
    ruled_out = has | {IMPLIES[term] for term in has if term in IMPLIES}
    candidates: dict[str, Feature] = {}
    for disease_id in (syndrome.disease_id, *_look_alikes()[syndrome.disease_id]):
        for feature in by_id[disease_id].features:
            usable = not feature.facial and feature.frequency >= _OFTEN and applies(feature.id, age, sex)
            if usable and feature.id not in ruled_out:
                candidates.setdefault(feature.id, feature)
    return rng.sample(list(candidates.values()), min(_draw_count(rng, mean), len(candidates)))


def _draw_present(rng: random.Random, syndrome: Syndrome, age: float, sex: str) -> list[Feature]:
    """The features that the patient has, at least two."""
    possible = [feature for feature in syndrome.features if applies(feature.id, age, sex)]
    while True:
        present = [feature for feature in possible if rng.random() < feature.frequency]
        if len(present) >= 2:
            return present


def _draw_case(
    number: int, seed: int, totals: list[float], facial: float, reporting: float, noise: float, excluded: float
) -> Case:
    # One generator per case: a longer cohort starts with the shorter one.
    rng = random.Random(f"mint-demo {seed} {number}")
    syndrome = _read_table()[min(bisect(totals, rng.random()), len(totals) - 1)]
    age, sex = _draw_patient(rng, syndrome)
    present = _draw_present(rng, syndrome, age, sex)
    own = {feature.id for feature in syndrome.features}
    strangers = [f for f in _common_findings() if f.id not in own and applies(f.id, age, sex)]
    unrelated = rng.sample(strangers, min(_draw_count(rng, noise), len(strangers)))
    observed = _write_down(rng, present, facial, reporting) + unrelated
    rng.shuffle(observed)
    absent = _draw_excluded(rng, syndrome, {f.id for f in present + unrelated}, age, sex, excluded)
    return Case(
        id=f"demo-{number:05d}",
        disease=syndrome.name,
        disease_id=syndrome.disease_id,
        age_years=None if rng.random() < _UNKNOWN else age,
        sex=None if rng.random() < _UNKNOWN else sex,
        observed=_terms(observed),
        excluded=_terms(absent),
        facial=_terms(feature for feature in present if feature.facial),
    )


def _terms(features: Iterable[Feature]) -> tuple[Term, ...]:
    return tuple(Term(feature.id, feature.label) for feature in features)


def sample_cohort(
    n: int,
    seed: int = 0,
    facial_in_text: float = 0.1,
    reporting: float = 0.35,
    noise: float = 2.0,
    excluded: float = 1.5,
) -> list[Case]:
    """Samples ``n`` patients with ids demo-00001, demo-00002, ...; the same arguments give the same cohort.

    n: number of cases, >= 0. Use different seeds for training and held-out cohorts.
    facial_in_text: probability in [0, 1] that a facial feature of the patient is written as a term.
    reporting: the same for all other features: notes are incomplete.
    noise: mean number of unrelated findings per case. excluded: mean number of terms noted as absent. Both in [0, 20].
    Every case has at least two observed terms. With the defaults, naive Bayes fitted on the notes of 1,200 cases ranks
    the right disease first in about 75 % of new cases and in the top ten in about 95 %.
    Raises InputError for values out of range.
    """
    if n < 0:
        raise InputError(f"sample_cohort: n is {n}; it must be 0 or more")
    limits = {"facial_in_text": (facial_in_text, 1), "reporting": (reporting, 1)}
    limits |= {"noise": (noise, 20), "excluded": (excluded, 20)}
    for name, (value, top) in limits.items():
        if not 0 <= value <= top:
            raise InputError(f"sample_cohort: {name} is {value}; it must lie between 0 and {top}")
    totals = list(accumulate(syndrome_weights(len(_read_table()))))
    return [_draw_case(number, seed, totals, facial_in_text, reporting, noise, excluded) for number in range(1, n + 1)]

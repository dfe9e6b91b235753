"""A synthetic cohort of patients drawn from the table of syndromes beside this file (`syndromes.tsv`).

It lets every command run on a fresh machine without data. Each patient has one real syndrome; its features
appear with the table's frequencies. What a photograph of the face shows is mostly kept out of the written
terms, as in a clinic where the note leaves to the eye what the eye sees.
"""

import math
import random
from bisect import bisect
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import accumulate
from typing import NamedTuple

from mint.data.cases import Case, Term
from mint.errors import InputError

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

# Features that cannot be seen, or are not looked for, before an age in years.
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

# A specific term of the table that is not facial, and the more general one of the table that it includes.
# Whoever has the first has the second, so the second is never written as excluded.
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

# Median and greatest age at the visit, in years, where they differ from the usual (5, 50).
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

# Share of boys where it is not one half: X-linked syndromes.
MALE_SHARE = {"OMIM:300624": 0.8, "OMIM:305400": 0.9, "OMIM:309900": 0.98}

_OFTEN = 0.5  # a feature this frequent is one whose absence is worth a word
_UNKNOWN = 0.04  # share of cases without age, and of cases without sex, as in published reports


class Feature(NamedTuple):
    """One feature of a syndrome: HPO id and label, rough frequency in (0, 1], visible in a face or not."""

    id: str
    label: str
    frequency: float
    facial: bool


@dataclass(frozen=True)
class Syndrome:
    """A syndrome of the table: short name, OMIM id ("OMIM:190685"), its features in the table's order."""

    name: str
    disease_id: str
    features: tuple[Feature, ...]


@cache
def _read_table() -> tuple[Syndrome, ...]:
    text = resources.files("mint.synthetic").joinpath("syndromes.tsv").read_text(encoding="utf-8")
    numbered = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line and not line.startswith("#")]
    if not numbered or tuple(numbered[0][1].split("\t")) != COLUMNS:
        raise InputError(f"syndromes.tsv: the first row must name the columns {', '.join(COLUMNS)}")
    features: dict[tuple[str, str], list[Feature]] = {}
    for number, line in numbered[1:]:
        cells = line.split("\t")
        if len(cells) != len(COLUMNS):
            raise InputError(f"syndromes.tsv line {number}: {len(cells)} cells, {len(COLUMNS)} expected")
        disease_id, name, term_id, label, frequency, facial = cells
        feature = Feature(term_id, label, float(frequency), facial == "1")
        features.setdefault((disease_id, name), []).append(feature)
    return tuple(Syndrome(name, disease_id, tuple(rows)) for (disease_id, name), rows in features.items())


def load_syndromes() -> list[Syndrome]:
    """Read the table of syndromes that comes with the package, from common to rare.

    Raises InputError where the file has been edited into something that is not the table.
    """
    return list(_read_table())


def applies(term_id: str, age_years: float, sex: str) -> bool:
    """Whether a patient of this age and sex can have the feature at all (see SEX_ONLY and FROM_AGE)."""
    return SEX_ONLY.get(term_id, sex) == sex and age_years >= FROM_AGE.get(term_id, 0)


def syndrome_weights(count: int) -> list[float]:
    """Relative share of each of `count` syndromes in a cohort, by place in the table: falling, sum 1.

    The last has about a seventh of the first's share at 43: rarer in truth, but a training cohort of some
    hundred cases must hold a few of each.
    """
    raw = [1 / (place + 6) for place in range(1, count + 1)]
    total = sum(raw)
    return [weight / total for weight in raw]


@cache
def _look_alikes() -> dict[str, tuple[str, ...]]:
    """For each disease id the three whose features outside the face overlap most with its own."""
    syndromes = _read_table()
    profile = {s.disease_id: {f.id: f.frequency for f in s.features if not f.facial} for s in syndromes}

    def overlap(a: str, b: str) -> float:
        return sum(min(value, profile[b].get(term, 0.0)) for term, value in profile[a].items())

    return {a: tuple(sorted((b for b in profile if b != a), key=lambda b: (-overlap(a, b), b))[:3]) for a in profile}


@cache
def _common_findings() -> tuple[Feature, ...]:
    """Features outside the face that two or more syndromes share: what any patient may have by chance."""
    found: dict[str, Feature] = {}
    counts: Counter[str] = Counter()
    for syndrome in _read_table():
        for feature in syndrome.features:
            if not feature.facial:
                found.setdefault(feature.id, feature)
                counts[feature.id] += 1
    return tuple(feature for term, feature in found.items() if counts[term] > 1)


def _draw_count(rng: random.Random, mean: float) -> int:
    """A Poisson number (Knuth's product of uniforms): how many noise or excluded terms a case gets."""
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
    """The features that reach the note; two at least, from the others present if chance left fewer."""
    written, silent = [], []
    for feature in present:
        kept = rng.random() < (facial if feature.facial else reporting)
        (written if kept else silent).append(feature)
    silent.sort(key=lambda feature: (feature.facial, -feature.frequency))
    return written + silent[: max(0, 2 - len(written))]


def _draw_excluded(
    rng: random.Random, syndrome: Syndrome, has: set[str], age: float, sex: str, mean: float
) -> list[Feature]:
    """Frequent features, of the syndrome or of its look-alikes, that this patient was found not to have."""
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
    """The features the patient has; drawn again in the rare case of fewer than two."""
    possible = [feature for feature in syndrome.features if applies(feature.id, age, sex)]
    while True:
        present = [feature for feature in possible if rng.random() < feature.frequency]
        if len(present) >= 2:
            return present


def _draw_case(
    number: int, seed: int, totals: list[float], facial: float, reporting: float, noise: float, excluded: float
) -> Case:
    # A generator of its own for each case: a longer cohort begins with the shorter one.
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
        observed=tuple(Term(feature.id, feature.label) for feature in observed),
        excluded=tuple(Term(feature.id, feature.label) for feature in absent),
        facial=tuple(Term(feature.id, feature.label) for feature in present if feature.facial),
    )


def sample_cohort(
    n: int,
    seed: int = 0,
    facial_in_text: float = 0.1,
    reporting: float = 0.35,
    noise: float = 2.0,
    excluded: float = 1.5,
) -> list[Case]:
    """Draw `n` patients with ids demo-00001, demo-00002, ...; the same arguments give the same cohort.

    n: number of cases, 0 or more. Take different seeds for training and held-out cohorts.
    facial_in_text: probability in [0, 1] that a facial feature the patient has is written as a term.
    reporting: the same for every other feature: clinicians do not write down all there is.
    noise: mean number of unrelated findings a case. excluded: mean number of terms noted as absent.
    Every case has at least two observed terms. With the defaults a naive Bayes ranking of the notes fitted on 1,200
    cases puts the right disease first in about three of four new cases and among ten in about 95 of 100.
    Raises InputError for values out of range.
    """
    if n < 0:
        raise InputError(f"sample_cohort: n is {n}; it must be 0 or more")
    for name, value, top in (
        ("facial_in_text", facial_in_text, 1),
        ("reporting", reporting, 1),
        ("noise", noise, 20),
        ("excluded", excluded, 20),
    ):
        if not 0 <= value <= top:
            raise InputError(f"sample_cohort: {name} is {value}; it must lie between 0 and {top}")
    totals = list(accumulate(syndrome_weights(len(_read_table()))))
    return [_draw_case(number, seed, totals, facial_in_text, reporting, noise, excluded) for number in range(1, n + 1)]

"""The table of syndromes is sound and agrees with HPO; cohorts repeat and follow the table's frequencies."""

import csv
import gzip
import re
from collections import Counter
from difflib import SequenceMatcher
from itertools import combinations

import pytest

from mint.errors import InputError
from mint.synthetic.cohort import (
    FROM_AGE,
    IMPLIES,
    MALE_SHARE,
    SEX_ONLY,
    applies,
    load_syndromes,
    sample_cohort,
    syndrome_weights,
)


def read_gz(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def words(name):
    return set(re.sub(r"[^a-z0-9]+", " ", name.lower()).split())


@pytest.fixture(scope="module")
def cohort():
    return sample_cohort(2000, seed=5)


@pytest.fixture(scope="module")
def facial():
    return {f.id for s in load_syndromes() for f in s.features if f.facial}


def test_table_is_well_formed():
    syndromes = load_syndromes()
    assert 40 <= len(syndromes) <= 50
    assert len({s.name for s in syndromes}) == len({s.disease_id for s in syndromes}) == len(syndromes)
    for syndrome in syndromes:
        ids = [f.id for f in syndrome.features]
        assert re.fullmatch(r"OMIM:\d{6}", syndrome.disease_id)
        assert len(set(ids)) == len(ids) and 12 <= len(ids) <= 22, syndrome.name
        assert sum(not f.facial for f in syndrome.features) >= 6, syndrome.name
        for f in syndrome.features:
            assert re.fullmatch(r"HP:\d{7}", f.id) and 0 < f.frequency <= 1
            assert f.frequency == pytest.approx(round(f.frequency * 20) / 20)
    enough_facial = sum(sum(f.facial for f in s.features) >= 5 for s in syndromes)
    assert enough_facial >= 0.9 * len(syndromes)


def test_one_term_has_one_label_and_one_kind():
    seen = {}
    for syndrome in load_syndromes():
        for f in syndrome.features:
            assert seen.setdefault(f.id, (f.label, f.facial)) == (f.label, f.facial)


def test_names_stay_apart_in_fuzzy_matching():
    names = [re.sub(r"[^\w\s]", "", s.name.lower()) for s in load_syndromes()]
    for a, b in combinations(names, 2):
        assert SequenceMatcher(None, a, b).ratio() < 0.8 and SequenceMatcher(None, b, a).ratio() < 0.8, (a, b)


def test_table_agrees_with_hpo(shared_data):
    terms = {row["id"]: row for row in read_gz(shared_data / "hpo" / "terms.tsv.gz")}
    diseases = {r["disease_id"]: r["name"] for r in read_gz(shared_data / "hpo" / "diseases.tsv.gz")}
    for syndrome in load_syndromes():
        assert words(syndrome.name) <= words(diseases[syndrome.disease_id]), syndrome.name
        for f in syndrome.features:
            assert terms[f.id]["label"] == f.label
            assert terms[f.id]["is_phenotype"] == "1" and terms[f.id]["obsolete"] == "0", f.label


def test_terms_listed_as_facial_in_the_case_reports_are_facial_here(shared_data, facial):
    with open(shared_data / "phenopackets" / "face_terms.tsv", encoding="utf-8", newline="") as file:
        listed = {row["hpo_id"] for row in csv.DictReader(file, delimiter="\t")}
    ours = {f.id for s in load_syndromes() for f in s.features}
    assert len(listed & ours) > 50
    assert listed & ours <= facial


def test_implied_terms_are_all_there_are(shared_data, facial):
    parents = {r["id"]: r["parents"].split("|") for r in read_gz(shared_data / "hpo" / "terms.tsv.gz")}
    ours = {f.id for s in load_syndromes() for f in s.features} - facial

    def ancestors(term):
        direct = {p for p in parents.get(term, []) if p}
        return direct.union(*(ancestors(p) for p in direct))

    pairs = {(term, above) for term in ours for above in ancestors(term) & ours}
    assert pairs == set(IMPLIES.items())


def test_rules_of_age_and_sex_name_terms_and_diseases_of_the_table():
    ours = {f.id for s in load_syndromes() for f in s.features}
    assert set(SEX_ONLY) <= ours and set(FROM_AGE) <= ours
    assert set(MALE_SHARE) <= {s.disease_id for s in load_syndromes()}
    assert not applies("HP:0000028", 3, "female") and applies("HP:0000028", 3, "male")
    assert not applies("HP:0000028", 0, "female") and not applies("HP:0007018", 1, "male")


def test_same_seed_same_cohort_and_other_seed_another(cohort):
    assert sample_cohort(50, seed=5) == cohort[:50]
    assert sample_cohort(50, seed=6) != cohort[:50]
    assert [c.id for c in cohort[:2]] == ["demo-00001", "demo-00002"]
    assert len({c.id for c in cohort}) == 2000


def test_cases_are_consistent(cohort):
    syndromes = {s.disease_id: s for s in load_syndromes()}
    for case in cohort:
        observed, excluded = {t.id for t in case.observed}, {t.id for t in case.excluded}
        assert len(observed) == len(case.observed) >= 2 and len(excluded) == len(case.excluded)
        assert not observed & excluded
        assert not {IMPLIES[t] for t in observed if t in IMPLIES} & excluded
        assert case.disease == syndromes[case.disease_id].name
        assert observed & {f.id for f in syndromes[case.disease_id].features}
        if case.age_years is not None and case.sex is not None:
            assert 0 < case.age_years <= 60
            assert all(applies(t, case.age_years, case.sex) for t in observed | excluded)
    assert 0.01 < sum(c.sex is None for c in cohort) / 2000 < 0.08
    assert 0.01 < sum(c.age_years is None for c in cohort) / 2000 < 0.08
    assert 1 < sum(len(c.excluded) for c in cohort) / 2000 < 2


def test_common_syndromes_are_common(cohort):
    counts = Counter(c.disease_id for c in cohort)
    syndromes = load_syndromes()
    weights = syndrome_weights(len(syndromes))
    assert sum(weights) == pytest.approx(1) and weights[0] > 6 * weights[-1]
    for syndrome, weight in zip(syndromes, weights, strict=True):
        sigma = (2000 * weight * (1 - weight)) ** 0.5
        assert abs(counts[syndrome.disease_id] - 2000 * weight) < 4 * sigma, syndrome.name


def test_facial_terms_are_rare_in_the_text(cohort, facial):
    terms = [t.id in facial for c in cohort for t in c.observed]
    assert 0.01 < sum(terms) / len(terms) < 0.15
    silent = sample_cohort(300, seed=1, facial_in_text=0.0, noise=0.0)
    # Only a case with fewer than two other features falls back on what the face shows.
    assert all(len(c.observed) == 2 for c in silent if any(t.id in facial for t in c.observed))
    assert sum(t.id in facial for c in silent for t in c.observed) < 20


def test_frequencies_follow_the_table():
    cases = sample_cohort(6000, seed=11, facial_in_text=1.0, reporting=1.0, noise=0.0)
    scores = []
    for syndrome in load_syndromes():
        own = [c for c in cases if c.disease_id == syndrome.disease_id and None not in (c.age_years, c.sex)]
        for f in syndrome.features:
            able = [c for c in own if applies(f.id, c.age_years, c.sex)]
            if len(able) < 20:
                continue
            share = sum(any(t.id == f.id for t in c.observed) for c in able) / len(able)
            scores.append((share - f.frequency) / (f.frequency * (1 - f.frequency) / len(able)) ** 0.5)
    # One in 370 independent draws lies beyond 3 sigma: among some 850 a few may, none far out.
    assert len(scores) > 800
    assert sum(abs(z) > 3 for z in scores) <= 0.01 * len(scores) and max(map(abs, scores)) < 5
    assert abs(sum(scores)) < 3 * len(scores) ** 0.5
    assert sum(z * z for z in scores) / len(scores) == pytest.approx(1, abs=0.2)


def test_unrelated_findings_come_with_the_noise():
    own = {s.disease_id: {f.id for f in s.features} for s in load_syndromes()}

    def unrelated(noise):
        cases = sample_cohort(400, seed=3, noise=noise)
        return sum(t.id not in own[c.disease_id] for c in cases for t in c.observed) / 400

    assert unrelated(0.0) == 0
    assert unrelated(2.0) == pytest.approx(2.0, abs=3 * (2 / 400) ** 0.5)  # a Poisson mean


@pytest.mark.parametrize("bad", [{"n": -1}, {"facial_in_text": 1.5}, {"reporting": -0.1}, {"noise": -1.0}])
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        sample_cohort(**{"n": 3, "seed": 0, **bad})


def test_table_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_syndromes.__globals__["_read_table"].cache_clear()
    assert len(load_syndromes()) >= 40

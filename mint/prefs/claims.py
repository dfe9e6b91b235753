"""Findings that an answer states as present or absent, with side, degree, zone, number and size.

A small rule-based reader of radiology's English. Sentences are split into clauses (at full stops, semicolons, "but",
...). A negation applies to what follows in its clause, over commas and "or", until an article or a verb begins a new
statement; "is not seen" and "is absent" apply to what precedes them. Two negations cancel. A possibility is no claim.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mint.data.spans import WORD
from mint.errors import InputError, describe_error, quote

STOPS = {".", ";", ":", "!", "?", "but", "however", "although", "though", "yet", "whereas", "while", "except"}
ELLIPSIS = {"but", "only", "not"}
FORWARD = {"no", "without", "not", "neither", "nor", "never", "lacks", "lacking", "denies"}
FORWARD_OF = {("free", "of"), ("absence", "of"), ("negative", "for"), ("clear", "of"), ("rather", "than")}
BACKWARD = {"absent", "excluded", "unlikely"}
BACKWARD_OF = {("ruled", "out"), ("not", "")}
HEDGES = {"possible", "possibly", "may", "might", "could", "questionable", "suspected", "cannot", "uncertain"}
# After a comma or "and" these begin something new: the negation before has ended.
BEGINS = {"a", "an", "the", "there", "it", "this", "one", "some", "no", "without"}
PLACES = {"in", "on", "at", "within", "of", "along", "near"}
SIDES = {"left": "left", "right": "right", "bilateral": "both", "both": "both", "bilaterally": "both"}
DEGREES = (("small", "moderate", "large"), ("mild", "moderate", "severe"), ("minimal", "moderate", "extensive"))
OTHER_DEGREES = dict.fromkeys(("tiny", "trace", "slight", "subtle"), 0) | {"medium": 1}
OTHER_DEGREES |= dict.fromkeys(("big", "huge", "massive", "marked"), 2)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
OTHER_NUMBERS = {"single": 1, "solitary": 1, "couple": 2}
LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*-?\s*(mm|cm|millimet(?:er|re)s?|centimet(?:er|re)s?)\b", re.IGNORECASE)
ZONES = ("upper", "middle", "lower", "apical", "basal", "central", "peripheral", "inner", "outer", "medial", "lateral")


@dataclass(frozen=True)
class Finding:
    """The truth about a finding. names: its synonyms; a facet that is None is unknown, and is not judged.

    side: left, right or both. degree: 0 to 2. count: how many. size: in mm. zone: one of ``zones`` of the truth.
    """

    names: tuple[str, ...]
    present: bool
    side: str | None = None
    degree: int | None = None
    zone: str | None = None
    count: int | None = None
    size: float | None = None


@dataclass(frozen=True)
class Truth:
    """All that is known of an image. terms: of things that are one of several, as the modality: kind -> the true one.

    kinds: kind -> all its values. zones: the names of locations. answer: "yes" or "no", if the question asks for that.
    about: the findings (by any name) that the question asks for; an answer about others alone does not answer it.
    """

    findings: tuple[Finding, ...] = ()
    terms: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    zones: tuple[str, ...] = ZONES
    answer: str | None = None
    about: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, raw: object) -> Truth:
        """From a record's ``truth``. Raises InputError for another form."""
        if not isinstance(raw, dict):
            raise InputError("truth must be an object")
        try:
            findings = tuple(_finding(item) for item in raw.get("findings", ()))
            kinds = {str(kind): tuple(map(str, names)) for kind, names in (raw.get("kinds") or {}).items()}
            terms = {str(kind): str(name) for kind, name in (raw.get("terms") or {}).items()}
            zones = tuple(map(str, raw.get("zones") or ZONES))
            about = tuple(map(str, raw.get("about") or ()))
        except (InputError, KeyError) as error:  # what is missing, no text of the record
            raise InputError(f"truth of the wrong form: {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"truth of the wrong form: {describe_error(error)}") from None
        if unknown := [kind for kind, name in terms.items() if name not in kinds.get(kind, ())]:
            raise InputError(f"truth: {quote(terms[unknown[0]])} is not among the kinds of {unknown[0]}")
        if unknown := [name for name in about if not any(name in finding.names for finding in findings)]:
            raise InputError(f"truth: it is asked about {quote(unknown[0])}, which no finding is called")
        answer = raw.get("answer")
        return cls(findings, terms, kinds, zones, str(answer).lower() if answer is not None else None, about)


def _finding(raw: dict) -> Finding:
    names = raw["names"] if "names" in raw else [raw["name"]]
    side, degree = raw.get("side"), raw.get("degree")
    if side is not None and side not in SIDES.values():
        raise InputError(f"side {quote(side)} is none of left, right, both")
    if isinstance(degree, str):
        degree = degree_of(degree)
    return Finding(
        tuple(map(str, names)),
        bool(raw["present"]),
        side,
        degree,
        raw.get("zone"),
        None if raw.get("count") is None else int(raw["count"]),
        None if raw.get("size") is None else float(raw["size"]),
    )


def degree_of(word: str) -> int:
    """0, 1 or 2. Raises InputError for a word that is no degree."""
    for scale in DEGREES:
        if word in scale:
            return scale.index(word)
    if word not in OTHER_DEGREES:
        raise InputError(f"{quote(word)} is no degree")
    return OTHER_DEGREES[word]


@dataclass(frozen=True)
class Word:
    """A word of the answer, in lower case, and its characters."""

    text: str
    start: int
    end: int
    clause: int


@dataclass(frozen=True)
class Attribute:
    """A facet that a claim names. value: as in :class:`Finding`; start, end: its characters."""

    facet: str
    value: str | int | float
    start: int
    end: int


@dataclass
class Claim:
    """A finding stated as present or absent.

    first, last: its words (the last excluded); first is -1 for a finding that is only implied. negations: the words
    that negate it.
    """

    finding: Finding
    first: int
    last: int
    present: bool
    clause: int
    negations: list[int] = field(default_factory=list)
    attributes: list[Attribute] = field(default_factory=list)


def read_words(text: str) -> list[Word]:
    """The words, each with the number of its clause."""
    words: list[Word] = []
    clause = 0
    for match in WORD.finditer(text):
        word = match.group().lower()
        opens = word == "not" and words and words[-1].text == ","  # "left, not right"
        if word in STOPS or opens:
            clause += 1
        words.append(Word(word, *match.span(), clause))
    return words


def read_claims(text: str, truth: Truth) -> tuple[list[Word], list[Claim]]:
    """(the words, the claims in their order) of an answer, about the findings that ``truth`` knows."""
    words = read_words(text)
    claims = _mentions(words, truth.findings)
    for claim in claims:
        claim.negations = _negations(words, claim, claims)
        claim.present = len(claim.negations) % 2 == 0
    claims = [claim for claim in claims if not _is_hedged(words, claim)]
    claims = sorted([*claims, *_understood(words, claims)], key=lambda claim: (claim.clause, claim.first))
    for attribute, place in _attributes(text, words, truth.zones):
        owner = _owner(words, place, claims)
        if owner is not None:
            owner.attributes.append(attribute)
    return words, claims


def _mentions(words: Sequence[Word], findings: Sequence[Finding]) -> list[Claim]:
    names = [(name.lower().split(), finding) for finding in findings for name in finding.names]
    names.sort(key=lambda pair: -len(pair[0]))
    taken: dict[int, Claim] = {}
    for parts, finding in names:
        for start in range(len(words) - len(parts) + 1):
            place = range(start, start + len(parts))
            fits = all(_is_form(words[i].text, part) for i, part in zip(place, parts, strict=True))
            if not fits or any(i in taken for i in place):
                continue
            claim = Claim(finding, start, start + len(parts), True, words[start].clause)
            taken.update(dict.fromkeys(place, claim))
    return sorted({id(claim): claim for claim in taken.values()}.values(), key=lambda claim: claim.first)


def _is_form(word: str, name: str) -> bool:
    return word in (name, f"{name}s", f"{name}es")


def _negations(words: Sequence[Word], claim: Claim, claims: Sequence[Claim]) -> list[int]:
    """The words that deny a mention."""
    found: list[int] = []
    inside = [i for i, word in enumerate(words) if word.clause == claim.clause]
    leads = len(words) > 1 and words[0].text == "no" and words[1].text == ","  # an answer, no denial of the rest
    before = [i for i in inside if leads <= i < claim.first]
    for i in before:
        pair = (words[i].text, words[i + 1].text)
        if words[i].text in FORWARD or words[i].text.endswith("n't") or pair in FORWARD_OF:
            ended = any(
                words[j].text in (",", "and") and words[j + 1].text in BEGINS for j in range(i + 1, claim.first)
            )
            if not ended and not (words[i].text == "nor" and found):  # "neither ... nor" denies once
                found.append(i)
    for i in (i for i in inside if i >= claim.last):
        later = any(other.clause == claim.clause and other.first > i for other in claims)
        pair = (words[i].text, words[i + 1].text if i + 1 < len(words) else "")
        denies = words[i].text in BACKWARD or pair in BACKWARD_OF
        denies |= words[i].text in ("not", "never") and not later
        if denies and not (later and any(words[j].text in (",", "and") for j in range(claim.last, i))):
            found.append(i)
    return found


def _is_hedged(words: Sequence[Word], claim: Claim) -> bool:
    return any(word.text in HEDGES for word in words if word.clause == claim.clause)


def _understood(words: Sequence[Word], claims: Sequence[Claim]) -> list[Claim]:
    """Claims of clauses that name a side alone: "but on the right", "not on the left"."""
    found = []
    for clause in sorted({word.clause for word in words}):
        inside = [i for i, word in enumerate(words) if word.clause == clause]
        if any(claim.clause == clause for claim in claims) or words[inside[0]].text not in ELLIPSIS:
            continue
        before = [claim for claim in claims if claim.clause < clause]
        if before and any(_side(words[i].text) for i in inside):
            negations = [i for i in inside if words[i].text in ("not", "no")]
            found.append(Claim(before[-1].finding, -1, inside[-1] + 1, len(negations) % 2 == 0, clause, negations))
    return found


def _side(word: str) -> str | None:
    return SIDES.get(word.removesuffix("-sided"))


def _attributes(text: str, words: Sequence[Word], zones: Sequence[str]) -> list[tuple[Attribute, int]]:
    """(attribute, the number of its first word) of everything that describes a finding."""
    found = []
    sizes = [match.span() for match in LENGTH.finditer(text)]
    for match in LENGTH.finditer(text):
        millimetres = float(match.group(1)) * (10 if match.group(2).lower().startswith("c") else 1)
        place = next(i for i, word in enumerate(words) if word.end > match.start())
        found.append((Attribute("size", millimetres, *match.span(1)), place))
    places = {zone.lower(): zone for zone in zones}
    for i, word in enumerate(words):
        if any(word.start < b and a < word.end for a, b in sizes):
            continue
        value: str | int
        if side := _side(word.text):
            facet, value = "side", side
        elif word.text in places:
            facet, value = "zone", places[word.text]
        elif word.text in OTHER_NUMBERS:
            facet, value = "count", OTHER_NUMBERS[word.text]
        elif word.text in NUMBERS:
            facet, value = "count", NUMBERS.index(word.text)
        elif word.text.isdigit():
            facet, value = "count", int(word.text)
        else:
            try:
                facet, value = "degree", degree_of(word.text)
            except ValueError:
                continue
        found.append((Attribute(facet, value, word.start, word.end), i))
    return found


def _owner(words: Sequence[Word], place: int, claims: Sequence[Claim]) -> Claim | None:
    """The claim that an attribute belongs to: the next of its clause, or the one before ("... in the left lung")."""
    mine = [claim for claim in claims if claim.clause == words[place].clause]
    before = [claim for claim in mine if claim.last <= place and claim.first >= 0]
    after = [claim for claim in mine if claim.first > place]
    if before:
        between = [words[i].text for i in range(before[-1].last, place)]
        behind = words[place + 1].text if place + 1 < len(words) else "."
        if not between and behind in (",", ".", "and"):  # "effusion left, nodule right"
            return before[-1]
        if not after or (PLACES.intersection(between) and "," not in between and "and" not in between):
            return before[-1]
    return after[0] if after else (mine[0] if mine else None)

"""A patient's case, the note written from it, and the question and answer of MINT's first task.

The request and the answer's form follow MINT (arXiv 2505.05736): a genetic counselor is asked for ten rare diseases,
and answers ``POTENTIAL_DISEASES:`` with a numbered list.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mint.data.prompts import Prompt
from mint.data.records import read_text
from mint.errors import InputError

SYSTEM = (
    "You are a genetic counselor. Your task is to identify potential rare diseases based on given phenotypes. "
    "Follow the output format precisely."
)
REQUEST = (
    "Name exactly 10 potential rare diseases for this patient, the most likely first. Answer in this format and "
    "write nothing else:\n\nPOTENTIAL_DISEASES:\n1. 'Disease1'\n2. 'Disease2'\n...\n10. 'Disease10'"
)
HEADER = "POTENTIAL_DISEASES:"
DIAGNOSIS = Prompt("{note}\n\n" + REQUEST, HEADER, SYSTEM)
RETRIEVED = "Passages that may help:"
DIAGNOSIS_PASSAGES = replace(DIAGNOSIS, user="{note}\n\n" + RETRIEVED + "\n{passages}\n\n" + REQUEST)
EXCLUDED_LIMIT = 6  # absent findings a note mentions: reports list dozens, and a short note does not
# First words of HPO labels that keep their capital inside a sentence, as they come from a name.
EPONYMS = frozenset(
    "Achilles Alzheimer Axenfeld Babinski Barrett Bartholin Bence Bitot Bowman Brushfield Burkitt Chaddock Chiari "
    "Chvostek Civatte Darwin Descemet Duane Dupuytren Ebstein Ewing Fordyce Froment Gottron Gowers Graves Hashimoto "
    "Heinz Hodgkin Hoffmann Horner Hurthle Lafora Leber Lewy Leydig Lisch Madelung Mallory Marcus Meckel Merkel Mobitz "
    "Morgagni Oppenheim Paget Pappenheimer Raynaud Reye Rieger Rosenthal Sertoli Sprengel Stahl Swiss Wormian".split()
)


@dataclass(frozen=True)
class Term:
    """A finding: its HPO id and label."""

    id: str
    label: str


@dataclass(frozen=True)
class Case:
    """One patient. All fields but ``id`` and ``disease`` are optional.

    disease: the name, aliases separated by ";".   observed, excluded: findings present and looked for but absent.
    facial: findings that a photograph of the face shows, which the note therefore omits.
    subject: the patient's id, where a patient may have several cases.   image: a portrait.   text: an existing note.
    ethnicity: for the teacher; notes leave it out.   genes: candidates, for prompts that list them.
    summary: what the disease looks like, for the teacher alone, where the case has no findings. It gives the disease
    away.
    """

    id: str
    disease: str
    disease_id: str = ""
    age_years: float | None = None
    sex: str | None = None
    observed: tuple[Term, ...] = ()
    excluded: tuple[Term, ...] = ()
    facial: tuple[Term, ...] = ()
    subject: str = ""
    split: str = ""
    image: Path | None = None
    text: str | None = None
    ethnicity: str | None = None
    genes: tuple[str, ...] = ()
    summary: str = ""


def vary(case: Case, rng: random.Random, drop: float = 0.2) -> Case:
    """The case with its findings shuffled and some left out, at least one observed finding kept.

    drop: the mean share left out; each variant draws its own share between 0 and twice that.
    """
    share = rng.uniform(0, 2 * drop)

    def thin(terms: tuple[Term, ...], least: int) -> tuple[Term, ...]:
        shuffled = rng.sample(terms, len(terms))
        kept = [term for term in shuffled if rng.random() >= share]
        return tuple(kept if len(kept) >= least else shuffled[:least])

    return replace(case, observed=thin(case.observed, 1), excluded=thin(case.excluded, 0))


def write_note(case: Case, rng: random.Random | None = None, excluded_limit: int = EXCLUDED_LIMIT) -> str:
    """A short clinical note in prose; ``case.text`` where the case brings its own.

    rng: varies the wording; None gives one fixed form. excluded_limit: absent findings mentioned at most.
    """
    if case.text is not None:
        return case.text
    pick = (lambda options: options[0]) if rng is None else rng.choice
    observed = [in_prose(term.label) for term in case.observed]
    excluded = [in_prose(term.label) for term in case.excluded[:excluded_limit]]
    who = _patient(case, pick)
    if observed:
        verb = pick(("presents with", "was seen for", "was found to have", "is referred with"))
        note = f"{who} {verb} {_listing(observed, 'and')}."
    else:
        note = f"{who} is referred for genetic counselling."
    if excluded:
        opening = pick(("There is no", "Examination shows no", "The history is negative for", "There are no signs of"))
        note += f" {opening} {_listing(excluded, 'or')}."
    return note


def _patient(case: Case, pick) -> str:
    sex = {"male": ("boy", "man", "male"), "female": ("girl", "woman", "female")}.get(case.sex or "")
    if case.age_years is None:
        return "A " + (pick((f"{sex[2]} patient", f"{sex[2]}")) if sex else "patient")
    years = case.age_years
    if years < 1 / 12:
        return f"A newborn {sex[0] if sex else 'child'}"
    number, unit = (round(years * 12), "month") if years < 2 else (int(years), "year")
    noun = sex[0 if years < 18 else 1] if sex else "patient"
    article = "An" if str(number).startswith("8") or number in (11, 18) else "A"
    return f"{article} {number}-{unit}-old {noun}"


def _listing(items: Sequence[str], last: str) -> str:
    if len(items) <= 2:
        return f" {last} ".join(items)
    return f"{', '.join(items[:-1])}, {last} {items[-1]}"


def in_prose(label: str) -> str:
    """A label inside a sentence: its first letter in lower case, unless its word is a name or an acronym."""
    first = label.split(" ", maxsplit=1)[0]
    inner = any(c.isupper() or c.isdigit() for c in first[1:])
    keeps = inner or len(first.split("-")[0]) == 1 or "'s" in first or first in EPONYMS
    return label if keeps else label[:1].lower() + label[1:]


def diagnosis_messages(
    note: str, passages: Sequence[str] = (), genes: Sequence[str] = (), prompt: Prompt | None = None
) -> list[dict]:
    """The prompt of MINT's first task: system and user message.

    passages: those retrieved for the note. genes: candidates, for a ``prompt`` that lists them. prompt: another
    wording, with {note} and, where they are given, {passages} and {genes}.
    """
    prompt = prompt or (DIAGNOSIS_PASSAGES if passages else DIAGNOSIS)
    listed = "\n".join(f"[{number}] {text}" for number, text in enumerate(passages, 1))
    return prompt.messages(note=note, passages=listed, genes=", ".join(genes))


def format_list(names: Sequence[str], header: str = HEADER) -> str:
    """The answer that lists names under ``header``, the likeliest first."""
    return "\n".join([header, *(f"{number}. {name}" for number, name in enumerate(names, 1))])


def parse_list(text: str, header: str = HEADER) -> list[str]:
    """The names that an answer lists under ``header``, in order; empty if it lists none.

    Accepts text before and after the list, a missing header, quotes, bold type and bullets.
    """
    body = re.split(re.escape(header), text, flags=re.IGNORECASE)[-1]
    items: list[str] = []
    for line in body.splitlines():
        numbered = re.match(r"\s*(?:\d{1,3}\s*[.):](?!\d)|[-*•]\s)\s*(.*)", line)
        if numbered is None:
            if items and line.strip():
                break  # the list is over
            continue
        name = numbered.group(1).strip().strip("*_`").strip()
        if len(name) > 1 and name[0] in "'\"‘“[" and name[-1] in "'\"’”]":
            name = name[1:-1].strip()
        if name:
            items.append(name)
    return items


def read_term_ids(path: str | Path) -> set[str]:
    """HPO ids from the first column of a text or tab-separated file; other lines (a header) are passed over.

    Raises InputError if the file cannot be read or holds none.
    """
    lines = read_text(Path(path)).splitlines()
    ids = {word for line in lines if re.fullmatch(r"HP:\d{7}", word := line.split("\t")[0].strip())}
    if not ids:
        raise InputError(f"{path} holds no HPO ids (HP:0000000) in its first column")
    return ids

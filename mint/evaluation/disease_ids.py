"""Which names and ids stand for the same disease: the basis of exact matches.

A name has the ids that the cohort gives it. Two ids are the same disease if they are equal, or if a mapping file
(Mondo's SSSOM table) has exact matches of both with one Mondo id.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from mint.data.cases import Case
from mint.data.records import read_text
from mint.errors import InputError
from mint.evaluation.metrics import aliases, normalize

ID = re.compile(  # OMIM:154700; http://purl.obolibrary.org/obo/MONDO_0007947; 154700
    r"([A-Za-z][\w.]*):([\w.]*\d[\w.]*)|https?://\S+/([A-Za-z]+)_(\w*\d\w*)|(\d{6})"
)
PREFIXES = {"MIM": "OMIM", "ORPHANET": "ORPHA", "ORDO": "ORPHA"}  # of one source


def read_id(text: str) -> str | None:
    """An id in one spelling: "mim:154700" and "154700" are "OMIM:154700"; None for a text that is no id."""
    found = ID.fullmatch(text.strip())
    if found is None:
        return None
    prefix, local = (found[1] or found[3] or "OMIM").upper(), (found[2] or found[4] or found[5]).upper()
    return f"{PREFIXES.get(prefix, prefix)}:{local}"


class DiseaseIds:
    """Resolves names and ids to keys; two of them are the same disease if they share a key."""

    def __init__(self, cases: Iterable[Case] = (), mondo: Mapping[str, Collection[str]] | None = None):
        """cases: whose names and ids belong together. mondo: id -> the Mondo ids that it matches exactly."""
        self._mondo = mondo or {}
        self._ids: dict[str, dict[str, None]] = defaultdict(dict)  # normalised name -> its ids, in order
        self._names: dict[str, str] = {}  # key -> name
        for case in cases:
            for identity in case_ids(case):
                for alias in aliases(case.disease):
                    self._ids[alias][identity] = None
                for key in self._keys(identity):
                    self._names.setdefault(key, case.disease)

    def _keys(self, identity: str) -> set[str]:
        return {identity, *self._mondo.get(identity, ())}

    def keys(self, entry: str) -> set[str]:
        """What a listed name or id stands for: ids, or the normalised name itself where no id is known."""
        identity = read_id(entry)
        ids = self._ids.get(normalize(entry), {}) if identity is None else {identity: None}
        return set().union(*map(self._keys, ids)) or {normalize(entry)} - {""}

    def truth(self, case: Case) -> set[str]:
        """The keys of a case's disease; of a case without an id, those of its names."""
        names, ids = aliases(case.disease), case_ids(case)
        if ids:  # a name that the cohort does not have is the case's own
            return {name for name in names if name not in self._ids}.union(*map(self._keys, ids))
        return set().union(*map(self.keys, names))

    def identity(self, entry: str) -> str:
        """The id of a listed name, or the entry itself where none is known."""
        return read_id(entry) or next(iter(self._ids.get(normalize(entry), {})), entry)

    def mondo(self, entry: str) -> str:
        """The Mondo id of a listed name or id, or its own id where none is known."""
        identity = self.identity(entry)
        return min(self._mondo.get(identity, ()), default=identity)

    def name(self, entry: str) -> str:
        """The cohort's name of a disease that is listed by its id; any other entry as it is."""
        identity = read_id(entry)
        keys = sorted(self._keys(identity)) if identity else []
        return next((self._names[key] for key in keys if key in self._names), entry)


def case_ids(case: Case) -> list[str]:
    """The ids of a case's disease in one spelling; a cell may hold several, separated by ";", "," or "|"."""
    parts = [part.strip() for part in re.split(r"[;,|]", case.disease_id)]
    return list(dict.fromkeys(read_id(part) or part for part in parts if part))


def read_mondo(path: str | Path) -> dict[str, set[str]]:
    """id -> the Mondo ids that match it exactly, from a table in SSSOM's form (.tsv, gzipped or not).

    Lines that begin with "#" are passed over. Of the rows with the predicate exactMatch, either side may be Mondo's.
    Raises InputError if the file cannot be read, lacks a column, or has no such row.
    """
    lines = read_text(Path(path)).splitlines()
    header, *rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")] or [[]]
    columns = ("subject_id", "predicate_id", "object_id")
    if missing := [name for name in columns if name not in header]:
        raise InputError(f"--mondo {path}: missing columns: {', '.join(missing)}; a table in SSSOM's form has them")
    places = [header.index(name) for name in columns]
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if len(row) <= max(places):
            continue
        subject, predicate, object_ = (row[place].strip() for place in places)
        if not re.fullmatch(r"(.*[:#/])?exactMatch", predicate):
            continue
        ids = [read_id(subject), read_id(object_)]
        mondo = [identity for identity in ids if identity and identity.startswith("MONDO:")]
        if len(mondo) == 1 and None not in ids:
            (other,) = {str(identity) for identity in ids} - {mondo[0]}
            found[other].add(mondo[0])
    if not found:
        raise InputError(f"--mondo {path} has no row with the predicate skos:exactMatch and a MONDO id on one side")
    return dict(found)

"""Case reports in GA4GH Phenopacket JSON (version 2): a file, a folder, or a .tar, .tar.gz, .tar.xz of them.

Archives are read in memory, member by member; nothing is unpacked. Every field is optional and every string is
untrusted; what cannot be used is counted with its reason, never dropped in silence.
"""

from __future__ import annotations

import json
import lzma
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mint.data.cases import Case, Term
from mint.errors import InputError

FILE_LIMIT = 5_000_000  # bytes of one phenopacket
COUNT_LIMIT = 1_000_000  # members of an archive
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
AGE = re.compile(r"P(?=.)(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T.*)?")


@dataclass
class ReadReport:
    """How many files became cases, and why the others did not."""

    read: int = 0
    skipped: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = [f"{self.read} cases"]
        parts += [f"{count} skipped: {reason}" for reason, count in sorted(self.skipped.items())]
        parts += [f"{count} {note}" for note, count in sorted(self.notes.items())]
        return "; ".join(parts)


class _Unusable(Exception):
    """Why a file cannot become a case."""


def read_phenopackets(path: str | Path, exclude_terms: set[str] | None = None) -> tuple[list[Case], ReadReport]:
    """The cases under ``path``, in the order of their file names, and what was skipped.

    exclude_terms: HPO ids to leave out of the cases, observed or excluded (facial terms, say).
    Raises InputError if the path does not exist, is damaged, or yields no case.
    """
    path = Path(path)
    report = ReadReport()
    cases: dict[str, Case] = {}
    for name, content in _files(path, report):
        try:
            case = _case(content, PurePosixPath(name).stem, exclude_terms or set(), report)
        except _Unusable as reason:
            report.skipped[str(reason)] += 1
            continue
        if case.id in cases:
            report.skipped["id seen before"] += 1
            continue
        cases[case.id] = case
    report.read = len(cases)
    if not cases:
        raise InputError(f"{path} holds no phenopacket that can be used ({report})")
    return list(cases.values()), report


def _files(path: Path, report: ReadReport) -> Iterator[tuple[str, bytes]]:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            if file.is_symlink() or not file.is_file() or file.stat().st_size > FILE_LIMIT:
                report.skipped["a link, not a file, or larger than 5 MB"] += 1
            else:
                yield file.name, file.read_bytes()
    elif path.name.endswith(ARCHIVES):
        yield from sorted(_members(path, report))
    elif path.suffix == ".json":
        yield path.name, path.read_bytes()
    else:
        raise InputError(f"{path} is neither a folder, a .json file nor one of {', '.join(ARCHIVES)}")


def _members(path: Path, report: ReadReport) -> list[tuple[str, bytes]]:
    found = []
    try:
        with tarfile.open(path) as archive:
            for count, member in enumerate(archive):
                if count >= COUNT_LIMIT:
                    raise InputError(f"{path} has more than {COUNT_LIMIT:,} members")
                name = PurePosixPath(member.name)
                if member.isdir() or name.suffix != ".json":
                    continue
                if not member.isreg() or name.is_absolute() or ".." in name.parts:
                    report.skipped["a link, a device or a path outside the archive"] += 1
                elif member.size > FILE_LIMIT:
                    report.skipped["larger than 5 MB"] += 1
                else:
                    found.append((member.name, archive.extractfile(member).read()))
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path} is not a readable archive: {error}") from None
    return found


def _case(content: bytes, stem: str, exclude: set[str], report: ReadReport) -> Case:
    try:
        packet = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise _Unusable("not UTF-8") from None
    except (ValueError, RecursionError):
        raise _Unusable("invalid JSON") from None
    if not isinstance(packet, dict):
        raise _Unusable("not a JSON object")
    disease = _disease(packet)
    subject = _dict(packet.get("subject"))
    observed, excluded = _terms(packet, exclude)
    if not observed:
        report.notes["without an observed term (kept)"] += 1
    sex = subject.get("sex")
    return Case(
        id=_text(packet.get("id")) or stem,
        disease=disease[1],
        disease_id=disease[0],
        age_years=_age(subject),
        sex=sex.lower() if sex in ("MALE", "FEMALE") else None,
        observed=observed,
        excluded=excluded,
        subject=_text(subject.get("id")),
    )


def _disease(packet: dict) -> tuple[str, str]:
    """(id, label): of the first interpretation's diagnosis, else of the first disease that is not excluded."""
    candidates = [_dict(_dict(_dict(i).get("diagnosis")).get("disease")) for i in _list(packet.get("interpretations"))]
    for entry in map(_dict, _list(packet.get("diseases"))):
        if entry.get("excluded") is not True:
            candidates.append(_dict(entry.get("term")))
    for candidate in candidates:
        if label := _text(candidate.get("label")):
            return _text(candidate.get("id")), label
    raise _Unusable("no disease")


def _terms(packet: dict, exclude: set[str]) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    observed: dict[str, Term] = {}
    excluded: dict[str, Term] = {}
    for feature in map(_dict, _list(packet.get("phenotypicFeatures"))):
        kind = _dict(feature.get("type"))
        term = Term(_text(kind.get("id")), _text(kind.get("label")))
        if term.label and term.id not in exclude:
            (excluded if feature.get("excluded") is True else observed).setdefault(term.label, term)
    return tuple(observed.values()), tuple(t for label, t in excluded.items() if label not in observed)


def _age(subject: dict) -> float | None:
    """Age in years at the last encounter, from an ISO 8601 duration; the start of a range."""
    when = _dict(subject.get("timeAtLastEncounter"))
    age = _dict(when.get("age")) or _dict(_dict(when.get("ageRange")).get("start"))
    duration = AGE.fullmatch(_text(age.get("iso8601duration")))
    if duration is None:
        return None
    years, months, weeks, days = (int(part or 0) for part in duration.groups())
    total = years + months / 12 + weeks / 52.18 + days / 365.25
    return total if total < 130 else None


def _dict(value) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value) -> list:
    return value if isinstance(value, list) else []


def _text(value) -> str:
    """One line of text, without control characters; empty for anything that is not a string."""
    return " ".join(value.split()) if isinstance(value, str) and value.isprintable() else ""

"""Case reports in GA4GH Phenopacket JSON (version 2): a file, a folder, or a .tar, .tar.gz, .tar.xz of them.

Archives are read in memory, member by member; nothing is unpacked. Every field is optional and every string is
untrusted; what cannot be used is counted with its reason, never dropped in silence.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from mint.data.cases import Case, Term
from mint.data.records import ReadReport, open_unpacked, read_bytes
from mint.errors import InputError
from mint.files import parse_json

FILE_LIMIT = 5_000_000  # bytes of one phenopacket
HEADER_LIMIT = 2 * FILE_LIMIT  # bytes of a member's header, or of a member
NAME_LIMIT = 1_000  # characters of a member's name
COUNT_LIMIT = 1_000_000  # members of an archive
TOTAL_LIMIT = 1_000_000_000  # bytes of all phenopackets of an archive, which are held in memory
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
AGE = re.compile(r"P(?=.)(?:(\d{1,6})Y)?(?:(\d{1,6})M)?(?:(\d{1,6})W)?(?:(\d{1,6})D)?(?:T.*)?")


class _Unusable(Exception):
    """Why a file cannot become a case."""


def read_phenopackets(path: str | Path, facial_terms: set[str] | None = None) -> tuple[list[Case], ReadReport]:
    """The cases under ``path``, in the order of their file names, and what was skipped.

    facial_terms: HPO ids of findings that a photograph of the face shows; they become the cases' ``facial`` instead of
    ``observed`` or ``excluded``.
    Raises InputError if the path does not exist, is damaged, or yields no case.
    """
    path = Path(path)
    report = ReadReport()
    cases: dict[str, Case] = {}
    for name, content in _files(path, report):
        try:
            case = _case(content, PurePosixPath(name).stem, facial_terms or set(), report)
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
                yield file.name, read_bytes(file)
    elif path.name.endswith(ARCHIVES):
        yield from sorted(_members(path, report))
    elif path.suffix == ".json":
        yield path.name, read_bytes(path)
    else:
        raise InputError(f"{path} is neither a folder, a .json file nor one of {', '.join(ARCHIVES)}")


def _members(path: Path, report: ReadReport) -> list[tuple[str, bytes]]:
    try:
        with open_unpacked(path, HEADER_LIMIT) as file:
            return list(_packets(path, tarfile.open(fileobj=cast(IO[bytes], file), mode="r:"), report))
    except InputError:
        raise
    except Exception as error:  # damaged archives raise exceptions of many kinds
        raise InputError(f"{path} is not a readable archive: {error}") from None


def _packets(path: Path, archive: tarfile.TarFile, report: ReadReport) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the members that are phenopackets."""
    count, total, last = 0, 0, -1
    while member := archive.next():
        count += 1
        if count > COUNT_LIMIT or member.offset <= last:
            raise InputError(f"{path} has more than {COUNT_LIMIT:,} members, or one within another")
        last = member.offset
        archive.members.clear()  # type: ignore[attr-defined]  # which would keep all headers
        name = PurePosixPath(member.name)
        if member.isdir() or name.suffix != ".json":
            continue
        if not member.isreg() or name.is_absolute() or ".." in name.parts:
            report.skipped["a link, a device or a path outside the archive"] += 1
        elif member.size > FILE_LIMIT:
            report.skipped["larger than 5 MB"] += 1
        elif not member.name.isprintable() or len(member.name) > NAME_LIMIT:
            report.skipped["a name with control characters, or too long"] += 1
        else:
            total += member.size
            if total > TOTAL_LIMIT:
                raise InputError(f"{path} holds more than {TOTAL_LIMIT:,} bytes of phenopackets; split it")
            yield member.name, cast(IO[bytes], archive.extractfile(member)).read()


def _case(content: bytes, stem: str, facial_terms: set[str], report: ReadReport) -> Case:
    try:
        packet = parse_json(content)
    except InputError as error:
        raise _Unusable("not UTF-8" if str(error).startswith("not UTF-8") else "invalid JSON") from None
    if not isinstance(packet, dict):
        raise _Unusable("not a JSON object")
    disease = _disease(packet)
    subject = _dict(packet.get("subject"))
    observed, excluded = _terms(packet, report)
    facial = tuple(term for term in observed if term.id in facial_terms)
    observed, excluded = (tuple(t for t in terms if t.id not in facial_terms) for terms in (observed, excluded))
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
        facial=facial,
        subject=_text(subject.get("id")),
        genes=_genes(packet),
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


def _genes(packet: dict) -> tuple[str, ...]:
    """Symbols of the genes that the interpretations name: of a gene, or of a variant's gene."""
    found: dict[str, None] = {}
    for interpretation in map(_dict, _list(packet.get("interpretations"))):
        for genomic in map(_dict, _list(_dict(interpretation.get("diagnosis")).get("genomicInterpretations"))):
            variant = _dict(_dict(genomic.get("variantInterpretation")).get("variationDescriptor"))
            for gene in (genomic.get("gene"), variant.get("geneContext")):
                found[_text(_dict(gene).get("symbol"))] = None
    return tuple(filter(None, found))


def _terms(packet: dict, report: ReadReport) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """(observed, excluded). Version 1 says ``negated``; a term whose polarity cannot be read must not be guessed."""
    observed: dict[str, Term] = {}
    excluded: dict[str, Term] = {}
    for feature in map(_dict, _list(packet.get("phenotypicFeatures"))):
        kind = _dict(feature.get("type"))
        term = Term(_text(kind.get("id")), _text(kind.get("label")))
        absent = [feature[name] for name in ("excluded", "negated") if feature.get(name) is not None]
        if not term.label:
            report.notes["terms without a usable label (left out)"] += 1
        elif not all(isinstance(value, bool) for value in absent):
            report.notes["terms neither present nor absent (left out)"] += 1
        else:
            (excluded if any(absent) else observed).setdefault(term.label, term)
    return tuple(observed.values()), tuple(t for label, t in excluded.items() if label not in observed)


def _age(subject: dict) -> float | None:
    """Age in years at the last encounter (version 1: at collection), an ISO 8601 duration; the start of a range."""
    when = _dict(subject.get("timeAtLastEncounter"))
    age = _dict(when.get("age")) or _dict(_dict(when.get("ageRange")).get("start"))
    at_collection = _dict(subject.get("ageAtCollection")).get("age")
    duration = AGE.fullmatch(_text(age.get("iso8601duration")) or _text(at_collection))
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
    """One line of text; empty for anything that is not a string, or holds control characters."""
    line = " ".join(value.split()) if isinstance(value, str) else ""
    return line if line.isprintable() else ""

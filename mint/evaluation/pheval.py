"""Ranked diseases in the files of PhEval (github.com/monarch-initiative/pheval), one for every case.

Both forms lie in ``pheval_disease_results``. tsv, read by PhEval up to 0.4, is ``CASE-pheval_disease_result.tsv`` with
the columns rank, score, disease_name and disease_identifier. parquet, read from 0.5 on, is
``CASE-disease_result.parquet`` with rank, score, disease_identifier, mondo_identifier and true_positive; a true disease
that is not listed has a row of its own with rank and score 0. CASE is the name of the phenopacket's file. Equal scores
share the worst of their ranks.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mint.data.records import read_text
from mint.errors import InputError
from mint.evaluation.metrics import worst_ranks
from mint.files import folder_aside

FOLDER = "pheval_disease_results"
ENDINGS = {"tsv": "-pheval_disease_result.tsv", "parquet": "-disease_result.parquet"}
FORMS = tuple(ENDINGS)
LONGEST_STEM = 150  # bytes of an id in the name of a file


class Row(NamedTuple):
    """A listed disease. identity, mondo: its ids, its name where none is known. hit: it is the true one."""

    name: str
    identity: str
    mondo: str
    score: float
    hit: bool


class RankedCase(NamedTuple):
    """The list of a case, the best first. truth: its disease, whether it is listed or not."""

    id: str
    rows: Sequence[Row]
    truth: Row


def check_pheval(form: str | None) -> None:
    """Raises InputError for Parquet without pyarrow."""
    if form == "parquet":
        _pyarrow("--pheval parquet")


def _pyarrow(what: str):
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{what} needs pyarrow (pip install pyarrow); --pheval tsv does not") from None
    return pyarrow, parquet


def file_stems(ids: Sequence[str]) -> dict[str, str]:
    """The name of every case's file, without its ending -> the case's id.

    In it ``_`` stands for characters that no file name can have, and a long id is cut. Where that makes two ids
    alike, as ``a/b`` and ``a_b``, the changed ones get a hash of the id. Raises InputError if two ids are the same.
    """
    plain = [re.sub(r"[/\\\x00-\x1f]", "_", name).encode()[:LONGEST_STEM].decode(errors="ignore") for name in ids]
    count, stems = Counter(plain), dict[str, str]()
    for name, stem in zip(ids, plain, strict=True):
        if stem != name and count[stem] > 1:
            stem = f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        if stem in stems:
            raise InputError(f"the cases {stems[stem]!r} and {name!r} would share a file of PhEval results")
        stems[stem] = name
    return stems


def write_pheval(folder: Path, cases: Sequence[RankedCase], form: str) -> None:
    """Writes a file for every case to ``folder/pheval_disease_results``. Raises InputError if that fails."""
    with folder_aside(folder / FOLDER) as aside:
        for stem, case in zip(file_stems([case.id for case in cases]), cases, strict=True):
            path = aside / (stem + ENDINGS[form])
            _write_tsv(path, case) if form == "tsv" else _write_parquet(path, case)


def _write_tsv(path: Path, case: RankedCase) -> None:
    ranks = worst_ranks([row.score for row in case.rows])
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("rank", "score", "disease_name", "disease_identifier"))
        writer.writerows((rank, row.score, row.name, row.identity) for rank, row in zip(ranks, case.rows, strict=True))


def _write_parquet(path: Path, case: RankedCase) -> None:
    arrow, parquet = _pyarrow(str(path))
    rows, ranks = list(case.rows), worst_ranks([row.score for row in case.rows])
    if not any(row.hit for row in rows):
        rows, ranks = [*rows, case.truth], [*ranks, 0]
    columns = {
        "rank": arrow.array(ranks, arrow.int64()),
        "score": arrow.array([row.score for row in rows], arrow.float64()),
        "disease_identifier": arrow.array([row.identity for row in rows], arrow.string()),
        "mondo_identifier": arrow.array([row.mondo for row in rows], arrow.string()),
        "true_positive": arrow.array([row.hit for row in rows], arrow.bool_()),
    }
    parquet.write_table(arrow.table(columns), path, compression="zstd")


def read_pheval(folder: Path, ids: Sequence[str]) -> Mapping[str, tuple[list[str], list[float]]]:
    """id of a case -> (ids of the diseases listed, 1 / rank of each), the best first, of the cases that have a file.

    folder: of the files, or the one above it. Raises InputError for a folder without result files, a file of another
    case, and one that cannot be read.
    """
    place = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    files = [(path, ending) for ending in ENDINGS.values() for path in sorted(place.glob(f"*{ending}"))]
    if not files:
        raise InputError(f"{folder} holds no PhEval results of diseases (*{' or *'.join(ENDINGS.values())})")
    stems, found = file_stems(ids), {}
    for path, ending in files:
        name = stems.get(path.name.removesuffix(ending))
        if name is None:
            raise InputError(f"{path}: no case has the id {path.name.removesuffix(ending)!r}")
        if name in found:
            raise InputError(f"{path}: a second result for {name!r}")
        ranked = sorted(_read_rows(path), key=lambda row: row[0])
        found[name] = [identity for _, identity in ranked], [1 / rank for rank, _ in ranked]
    return found


def _read_rows(path: Path) -> list[tuple[float, str]]:
    """(rank, disease_identifier) of the listed diseases."""
    try:
        if path.suffix == ".parquet":
            rows = _pyarrow(str(path))[1].read_table(path).to_pylist()
        else:
            rows = list(csv.DictReader(read_text(path).splitlines(), delimiter="\t"))
        ranked = [(float(row["rank"]), str(row["disease_identifier"]).strip()) for row in rows]
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{path}: missing column: {error.args[0]}") from None
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return [(rank, identity) for rank, identity in ranked if rank > 0 and identity]

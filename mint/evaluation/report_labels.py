"""Labels of reports that other programs computed: CheXbert's findings, RadGraph's entities and relations.

JSON Lines, a report each; ``chexbert`` or ``radgraph`` may be absent, but from all records:

    {"id": "p1", "chexbert": {"prediction": LABELS, "reference": LABELS},
                 "radgraph": {"prediction": GRAPH, "reference": GRAPH}}

LABELS: a list of 14 in the order of ``FINDINGS``, or an object by their names; 1 positive, -1 uncertain, 0 negative,
null not mentioned. GRAPH: {"entities": {key: {"tokens": str, "label": str, "relations": [[type, key], ...]}}}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mint.data.records import json_lines, parse_rows
from mint.errors import InputError, quote
from mint.evaluation.scores import F1, Score, agreement, mean_score
from mint.files import parse_json

FINDINGS = (  # CheXbert's order
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")  # CheXpert's competition tasks
SIDES = ("prediction", "reference")
LEVELS = ("simple", "partial", "complete")


def read_labels(path: str | Path, ids: Sequence[str]) -> dict[str, dict]:
    """The scores of every report by its id, as fields of its record.

    chexbert_prediction, chexbert_reference: lists of 14, 1 where the finding is positive or uncertain, else 0 (as in
    f1chexbert, Smit et al. 2020). radgraph_simple, _partial, _complete: see :func:`radgraph_f1`. ids: of all reports;
    a record of another is an error, since it indicates a mix-up. Raises FileProblems naming every bad line, InputError
    if the file cannot be read or records differ in the kinds of labels.
    """
    path = Path(path)
    known = set(ids)
    found = dict(parse_rows(path, json_lines(path), lambda line, _: _record(line, known), key=lambda pair: pair[0]))
    kinds = {tuple(sorted(fields)) for fields in found.values()}
    if len(kinds) > 1:
        raise InputError(f"{path}: some records have chexbert or radgraph and others do not; give both for all, or one")
    return found


def _record(line: bytes, known: set[str]) -> tuple[str, dict]:
    record = parse_json(line)
    if not isinstance(record, dict) or not isinstance(record.get("id"), str | int):
        raise InputError('needs an "id"')
    name = str(record["id"])
    if name not in known:
        raise InputError(f"no report has the id {name!r}")
    fields: dict = {}
    if (labels := record.get("chexbert")) is not None:
        fields |= {f"chexbert_{side}": _findings(_side(labels, "chexbert", side), side) for side in SIDES}
    if (graphs := record.get("radgraph")) is not None:
        fields |= _radgraph(*(_side(graphs, "radgraph", side) for side in SIDES))
    if not fields:
        raise InputError('needs "chexbert" or "radgraph"')
    return name, fields


def _side(value: object, kind: str, side: str) -> object:
    if not isinstance(value, dict) or value.get(side) is None:
        raise InputError(f'"{kind}" needs "prediction" and "reference"')
    return value[side]


def _findings(labels: object, side: str) -> list[int]:
    """[14] 0 or 1: positive or uncertain."""
    if isinstance(labels, dict):
        if set(labels) != set(FINDINGS):
            wrong = sorted(set(labels) ^ set(FINDINGS))
            shown = ", ".join(repr(name) if name in FINDINGS else quote(name) for name in wrong[:3])
            raise InputError(f"chexbert, {side}: the names must be CheXbert's 14; see {shown}")
        labels = [labels[name] for name in FINDINGS]
    if not isinstance(labels, list) or len(labels) != len(FINDINGS):
        raise InputError(f"chexbert, {side}: must be a list of 14 labels, or an object by their names")
    if bad := [one for one in labels if one is not None and (isinstance(one, bool) or one not in (1, 0, -1))]:
        raise InputError(
            f"chexbert, {side}: {quote(bad[0])} is no label: 1 positive, -1 uncertain, 0 negative, null not mentioned"
        )
    return [int(one in (1, -1)) for one in labels]


def _radgraph(prediction: Any, reference: Any) -> dict[str, float]:
    try:
        scores = radgraph_f1(prediction["entities"], reference["entities"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        form = '{"tokens": text, "label": text, "relations": [[type, key of an entity], ...]}'
        raise InputError(f'radgraph: both sides need "entities", an object of {form}') from None
    return {f"radgraph_{level}": score for level, score in scores.items()}


def entity_sets(entities: Mapping) -> tuple[set, set, set]:
    """The items of a report's graph that count at each level.

    simple: (tokens, label) of each entity. partial: the same with whether the entity has relations. complete: for an
    entity with relations, instead of itself, each as (tokens, label, type, tokens of the other), in lower case.
    """
    simple: set[tuple] = set()
    related: set[tuple] = set()
    complete: set[tuple] = set()
    for entity in entities.values():
        tokens, label, relations = entity["tokens"], entity["label"], entity["relations"]
        if not isinstance(tokens, str) or not isinstance(label, str):
            raise TypeError
        simple.add((tokens, label))
        related.add((tokens, label, bool(relations)))
        for kind, other in relations:
            complete.add((tokens.lower(), label, kind, entities[other]["tokens"].lower()))
        if not relations:
            complete.add((tokens, label))
    return simple, related, complete


def set_f1(prediction: set, reference: set) -> float:
    """F1 of two sets in [0, 1]; 0 if they share nothing, and if both are empty."""
    shared = len(prediction & reference)
    return 2 * shared / (len(prediction) + len(reference)) if shared else 0.0


def radgraph_f1(prediction: Mapping, reference: Mapping) -> dict[str, float]:
    """RadGraph F1 of a report at each level of ``LEVELS``, from the entities of both graphs.

    The levels are the rewards of Delbrouck et al. 2022 (arXiv 2210.12186): "partial" is what tables call RadGraph F1.
    """
    sets = entity_sets(prediction), entity_sets(reference)
    return {level: set_f1(*pair) for level, *pair in zip(LEVELS, *sets, strict=True)}


def _counts(places: Sequence[int], record: Mapping) -> np.ndarray | None:
    """[3 x findings]: shared, predicted, in the reference, of CheXbert's findings at ``places``."""
    if "chexbert_prediction" not in record:
        return None
    mine, true = (np.array(record[f"chexbert_{side}"])[list(places)] for side in SIDES)
    return np.stack((mine * true, mine, true), -1).flatten()


def _micro_f1(sums: np.ndarray) -> np.ndarray:
    return agreement(sums.reshape(*sums.shape[:-1], -1, 3).sum(-2))[..., F1]


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """A finding that neither side has counts as 0, as in scikit-learn's report."""
    return agreement(sums.reshape(*sums.shape[:-1], -1, 3))[..., F1].mean(-1)


def _columns() -> dict[str, Score]:
    """CheXbert F1 over 14 and over 5 findings, micro and macro; RadGraph F1 of each level."""
    columns = {}
    for names in (FINDINGS, FIVE):
        places, count = [FINDINGS.index(name) for name in names], len(names)
        for kind, value in (("micro", _micro_f1), ("macro", _macro_f1)):
            heading = f"CheXbert {kind} F1, {count}"
            meaning = f"{kind.capitalize()}-averaged F1 of {count} findings; uncertain is positive (--labels)."
            counts = partial(_counts, places)
            columns[f"chexbert_{kind}_{count}"] = Score(heading, counts, value, meaning=meaning)
    for level in LEVELS:
        name, shown = f"radgraph_{level}", level == "partial"
        heading = "RadGraph F1" if shown else f"RadGraph F1, {level}"
        meaning = f'Mean F1 of entities and relations, reward level "{level}" (--labels).'
        columns[name] = mean_score(name, heading, meaning=meaning, printed=shown)
    return columns


LABEL_COLUMNS = _columns()

"""Records: pairs, questions, answers with boxes, phenopackets, archives."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import io
import lzma
import pickle
import random
import tarfile
from pathlib import Path
from unittest import mock

from mint.data import line_index
from mint.data.phenopackets import read_phenopackets
from mint.data.preferences import identify_record, read_preferences
from mint.data.questions import read_mmedpo, read_questions
from mint.data.record_images import find_images
from mint.data.vqa_files import read_boxes
from mint.errors import FileProblems, InputError
from mint.prefs.corrupt import check_places
from mint.prefs.question_files import read_asked
from tests.fuzz.damage import damage_bytes, damage_json, damage_rows, damage_value, dump, hostile
from tests.fuzz.readers.inputs import PACKET, packed, write, write_pictures
from tests.fuzz.readers.registry import reader

TURN = [{"role": "user", "content": "What is it?"}]
PAIRS = [
    {"id": "a", "prompt": TURN, "chosen": "A <mask>cyst</mask>.", "rejected": "A nevus.", "images": ["images/a.png"]},
    {"id": 2, "prompt": "Say", "chosen": [{"role": "assistant", "content": "b"}], "rejected": "c", "weight": 0.5},
    {
        "chosen": [*TURN, {"role": "assistant", "content": "x"}],
        "rejected": [*TURN, {"role": "assistant", "content": "y"}],
    },
]
PLACED = {
    **PAIRS[0],
    "mask": "mask.png",
    "boxes": [[1, 2, 10, 9]],
    "polygons": [[[1, 1], [9, 1], [5, 8]]],
    "phrase": "cyst",
}
TRUTH = {
    "findings": [
        {"name": "lesion", "present": True, "side": "left", "degree": "mild", "zone": "upper", "count": 2, "size": 1.5}
    ],
    "terms": {"kind": "cyst"},
    "kinds": {"kind": ["cyst", "mass"]},
    "about": ["lesion"],
}
ASKED = [{"id": "q", "images": ["a.png"], "question": "Where is it?", "truth": TRUTH, "answer": "left"}]


@reader
def preferences(rng: random.Random, folder: Path):
    path = packed(rng, folder, "pairs.jsonl", damage_rows(rng, PAIRS))
    return read_preferences(path, require_rejected=rng.random() < 0.8, fields=rng.choice(((), ("weight",))))


@reader
def streamed_preferences(rng: random.Random, folder: Path):
    """Found line by line they are what they are in the whole file, wherever its parts begin."""
    path = write(folder, "pairs.jsonl", damage_rows(rng, PAIRS))
    with mock.patch.object(line_index, "CHUNK", rng.randint(1, 300)):
        outcomes = []
        for read in (read_preferences, lambda path: line_index.index_lines(path, identify_record, workers=1)):
            try:
                outcomes.append(read(path))
            except FileProblems as error:
                outcomes.append(sorted(error.problems))
    if isinstance(outcomes[0], list) and isinstance(outcomes[1], line_index.LineIndex):
        assert [record.line for record in outcomes[0]] == outcomes[1].numbers.tolist()
    else:
        assert outcomes[0] == outcomes[1]
        raise InputError("refused")


@reader
def images_of_preferences(rng: random.Random, folder: Path):
    write_pictures(folder)
    rows = [
        {**PLACED, "id": str(i)} | rng.choice(({}, {"mask": None}, {"mask": None, "boxes": None})) for i in range(2)
    ]
    path = write(folder, "pairs.jsonl", damage_rows(rng, rows))
    found = find_images(read_preferences(path), path, anywhere=rng.random() < 0.3, corrupted=True)
    check_places(found, path)


@reader
def questions(rng: random.Random, folder: Path):
    write_pictures(folder)
    row = {
        "image_name": "a.png",
        "question": "Large?",
        "answer": "No",
        "answer_type": "CLOSED",
        "qid": 4,
        "location": "chest",
    }
    rows = [row, {**row, "qid": 5, "image_name": "images/b", "answer": 2, "truth": TRUTH}]
    kind = rng.randrange(4)
    if kind == 0:
        return read_questions(packed(rng, folder, "q.json", damage_json(rng, rows)))
    if kind == 1:
        return read_questions(packed(rng, folder, "q.jsonl", damage_rows(rng, rows)))
    if kind == 2:
        reports = {"test": [{"id": "r", "report": "Clear lungs.", "image_path": ["a.png", "b.png"]}], "train": []}
        return read_questions(packed(rng, folder, "annotation.json", damage_json(rng, reports)))
    turns = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "A"}]
    pair = {"id": "m", "image": "a.png", "conversations": turns, "rejected_conversations": turns, "weighted_score": 0.4}
    return read_mmedpo(packed(rng, folder, "m.json", damage_json(rng, [pair])), folder)


@reader
def pickles(rng: random.Random, folder: Path):
    write_pictures(folder)
    rows = [{"image": "a", "question": "Why?", "answer": "so"}, {"image": "b", "question": "Is it?", "answer": "no"}]
    kind = rng.randrange(3)
    if kind == 0:
        rows = damage_value(rng, rows)
    elif kind == 1:  # a list within a list, each several times: few bytes that stand for many values
        shared: list = rows
        for _ in range(rng.randint(1, 60)):
            shared = [shared] * rng.randint(1, 10)
        rows = [{**rows[0], rng.choice(("answer", "location", "truth", "qid")): shared}]
    content = pickle.dumps(rows, protocol=rng.randrange(6))
    return read_questions(write(folder, "q.pkl", damage_bytes(rng, content) if rng.random() < 0.7 else content))


@reader
def truths_and_boxes(rng: random.Random, folder: Path):
    if rng.random() < 0.3:
        write(folder, "detection.json", damage_json(rng, [{"Liver": [1, 2, 3.5, 4]}, {"Lung": [0, 0, 2, 2]}]))
        return read_boxes(folder / "a.png")
    return read_asked(write(folder, "asked.jsonl", damage_rows(rng, ASKED)))


@reader
def phenopackets(rng: random.Random, folder: Path):
    for name in ("a", "b"):
        write(folder, f"{name}.json", damage_json(rng, {**PACKET, "id": name}))
    return read_phenopackets(folder if rng.random() < 0.5 else folder / "a.json", {"HP:0001250"})


PACKS = (bytes, functools.partial(gzip.compress, mtime=0), lzma.compress, bz2.compress)


@reader
def archives(rng: random.Random, folder: Path):
    file, form = io.BytesIO(), rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for number in range(rng.randint(1, 3)):
            member = tarfile.TarInfo(rng.choice(("a.json", "../up.json", "/abs.json", "d/b.json", "n" * 90 + ".json")))
            content = dump({**PACKET, "id": str(number)}) if rng.random() < 0.7 else damage_json(rng, PACKET)
            member.size = len(content)
            if form == tarfile.PAX_FORMAT and rng.random() < 0.4:
                keys = (
                    "path",
                    "size",
                    "mtime",
                    "linkpath",
                    "GNU.sparse.map",
                    "GNU.sparse.major",
                    "GNU.sparse.realsize",
                )
                member.pax_headers = {rng.choice(keys): str(rng.choice(("1", "-1", "9" * 30, "x.json", "1" * 3000)))}
            with contextlib.suppress(ValueError):
                archive.addfile(member, io.BytesIO(content))
    content, pack = file.getvalue(), rng.choice(PACKS)
    content = damage_bytes(rng, content) if rng.random() < 0.7 else content
    content = pack(content)
    content = damage_bytes(rng, content, 2) if rng.random() < 0.3 else content
    return read_phenopackets(
        write(folder, f"cases.{rng.choice(('tar', 'tar.gz', 'tar.xz', 'tgz', 'tar.bz2'))}", content)
    )


@reader
def names_of_images(rng: random.Random, folder: Path):
    write_pictures(folder)
    name = hostile(rng)
    row = {**PAIRS[0], "images": [name if isinstance(name, str) else "a.png"]}
    return find_images(read_preferences(path := write(folder, "p.jsonl", dump(row)), True), path)

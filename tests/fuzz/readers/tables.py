"""Tables: portraits, tiles, boxes, terms, names of diseases."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np

from mint.data.cases import read_term_ids
from mint.data.gmdb import COLUMNS, read_gmdb
from mint.data.retrieval import read_descriptions
from mint.data.tiles import read_tiles
from mint.evaluation.disease_ids import read_mondo
from mint.evaluation.predictions import read_rankings
from mint.prefs.lesion_questions import read_lesions
from mint.tasks.report_generation import read_findings
from tests.fuzz.damage import damage_bytes, damage_table
from tests.fuzz.readers.inputs import packed, picture, write, write_pictures
from tests.fuzz.readers.registry import reader


@reader
def portraits(rng: random.Random, folder: Path):
    write_pictures(folder)
    header = [names[0] for names in COLUMNS.values()]
    row = ["1", "a.png", "Noonan syndrome", "OMIM:1", "Sex male Age 3 years 1 months Ethnicity European Ptosis"]
    row += ["HP:0000508 Ptosis;Seizure", "HP:0000293", "Ptosis", "3", "1", "male", "European", "PTPN11", "s1", "train"]
    path = write(folder, rng.choice(("t.csv", "t.tsv")), damage_table(rng, [header, row, ["2", "b.png", *row[2:]]]))
    return read_gmdb(rng.choice((path, folder)), missing_images=rng.choice(("error", "skip")))


@reader
def tissue_tiles(rng: random.Random, folder: Path):
    write_pictures(folder)
    kind = rng.randrange(3)
    if kind == 0:
        rows = [
            ["image", "tissue", "id", "patient", "split"],
            ["a.png", "Lung", "1", "p", "train"],
            ["images/b.png", "Skin", "2", "q", ""],
        ]
        return read_tiles(write(folder, "tiles.tsv", damage_table(rng, rows)))
    if kind == 1:
        tissue = folder / "tissues" / "Bile_duct"
        tissue.mkdir(parents=True)
        write(tissue, "x.png", damage_bytes(rng, picture()))
        return read_tiles(tissue.parent)
    for name, array in (("images", np.zeros((2, 4, 4, 3))), ("types", np.array(["Breast", "Colon"]))):
        file = io.BytesIO()
        np.save(file, array)
        write(folder, f"{name}.npy", damage_bytes(rng, file.getvalue(), 1))
    return read_tiles(folder, folder / "out")


@reader
def other_tables(rng: random.Random, folder: Path):
    write_pictures(folder)
    kind = rng.randrange(6)
    if kind == 0:
        rows = [["image", "mask", "label"], ["a.png", "mask.png", "benign"], ["b.png", "mask.png", "normal"]]
        return read_lesions(write(folder, "lesions.tsv", damage_table(rng, rows)))
    if kind == 1:
        rows = [["subject_id", "predicate_id", "object_id"], ["MONDO:0000001", "skos:exactMatch", "OMIM:1"]]
        return read_mondo(packed(rng, folder, "mondo.tsv", damage_table(rng, rows)))
    if kind == 2:
        rows = [
            ["rank", "score", "disease_name", "disease_identifier"],
            ["1", "0.5", "Marfan", "OMIM:1"],
            ["2", "0.1", "x", "OMIM:2"],
        ]
        write(folder, "a-pheval_disease_result.tsv", damage_table(rng, rows))
        return read_rankings(folder, ["a"])
    if kind == 3:
        tables = {
            "terms": [["id", "label"], ["HP:1", "Ptosis"]],
            "diseases": [["disease_id", "name"], ["O:1", "First"]],
        }
        tables["disease_features"] = [
            ["disease_id", "hpo_id", "qualifier", "frequency_value", "aspect"],
            ["O:1", "HP:1", "", "0.2", "P"],
        ]
        for name, rows in tables.items():
            packed(rng, folder, f"{name}.tsv", damage_table(rng, rows))
        return read_descriptions(folder)
    if kind == 4:
        return read_term_ids(
            packed(rng, folder, "terms.tsv", damage_table(rng, [["HP:0000001", "x"], ["HP:0000002", "y"]]))
        )
    return read_findings(write(folder, "findings.tsv", damage_table(rng, [["effusion", "fluid"], ["nodule"]])))

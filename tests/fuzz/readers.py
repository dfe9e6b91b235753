"""The readers of files and settings, each with the good input that is damaged before it is read.

A reader is a function of (rng, folder): it writes damaged input to the empty ``folder`` and reads it. It may raise
InputError, or exit with status 2 as argument parsers do; all else is a fault. What it writes belongs into
``folder/out``.
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import io
import json
import lzma
import pickle
import random
import signal
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import evaluate
import generate_prefs
from mint.config import TrainConfig
from mint.data import line_index
from mint.data.cases import read_term_ids
from mint.data.chat import load_tokenizer
from mint.data.gmdb import COLUMNS, read_gmdb
from mint.data.image_files import image_size, open_image
from mint.data.images import load_processor
from mint.data.phenopackets import read_phenopackets
from mint.data.preferences import identify_record, read_preferences
from mint.data.prompts import read_prompt
from mint.data.questions import read_mmedpo, read_questions
from mint.data.record_images import find_images
from mint.data.retrieval import read_descriptions
from mint.data.text_encoder import TextEncoder
from mint.data.tiles import read_tiles
from mint.data.vqa_files import read_boxes
from mint.errors import FileProblems, InputError
from mint.evaluation.disease_ids import read_mondo
from mint.evaluation.predictions import read_rankings
from mint.evaluation.report_labels import FINDINGS, read_labels
from mint.files import read_json
from mint.flags import parse
from mint.models import init_model, load_model
from mint.models.checkpoint import build_model
from mint.models.lora import add_lora, load_adapter, save_adapter
from mint.models.pickled import find_source
from mint.prefs.corrupt import check_places
from mint.prefs.lesion_questions import read_lesions
from mint.prefs.question_files import read_asked
from mint.tasks.compare_page import save_comparison
from mint.tasks.report_generation import read_findings
from tests.data.test_chat import CHATML, write_tokenizer
from tests.fuzz.damage import (
    damage_bytes,
    damage_json,
    damage_rows,
    damage_table,
    damage_text,
    damage_value,
    dump,
    hostile,
)
from tests.reference import bert_inputs, clip_inputs, llava_inputs, mllama_inputs, qwen3_vl_inputs, qwen_vl_inputs
from tests.reference.vilt_inputs import TINY as VILT
from tests.reference.weights import TINY_LLAMA

LIMIT = 20.0  # seconds of an input, on a machine that is not busy
Reader = Callable[[random.Random, Path], object]
READERS: dict[str, Reader] = {}


class Hang(BaseException):
    """An input that takes longer than the limit."""


def reader(function: Reader) -> Reader:
    """Enters a reader under its name."""
    READERS[function.__name__.replace("_", " ")] = function
    return function


def attempt(name: str, seed: object, folder: Path, limit: float = LIMIT) -> tuple[str, float]:
    """("read" or "refused", seconds) of one input. folder: new and empty; it holds the input afterwards.

    Raises AssertionError for any other exception, an input that takes too long, and a file written elsewhere than in
    ``folder/out``.
    """
    rng = random.Random(f"{seed}/{name}")
    inner = folder / "in"
    inner.mkdir(parents=True)

    def alarm(number, frame):
        raise Hang

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, limit)
    start, outcome = time.perf_counter(), "read"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), contextlib.chdir(folder):
        try:
            READERS[name](rng, inner)
        except InputError:
            outcome = "refused"
        except SystemExit as stop:
            assert stop.code in (0, 2), f"{name}, seed {seed}: exit status {stop.code}"
            outcome = "refused"
        except (Exception, Hang) as error:
            raise AssertionError(f"{name}, seed {seed}: {type(error).__name__}: {str(error)[:300]}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert [path.name for path in folder.iterdir()] == ["in"], f"{name}, seed {seed}: a file outside its folder"
    return outcome, time.perf_counter() - start


@functools.cache
def picture(form: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(file, form)
    return file.getvalue()


def write_pictures(folder: Path) -> None:
    """Images as records name them, and links that lead out of the folder and in a circle."""
    for name in ("images/a.png", "images/b.png", "a.png", "b.png", "mask.png", "1_aligned.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture())
    for link, target in (("link.png", "/etc/hostname"), ("loop.png", "loop.png")):
        (folder / link).symlink_to(target)


def write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def packed(rng: random.Random, folder: Path, stem: str, content: bytes) -> Path:
    """The content as a file, sometimes gzipped, and then sometimes damaged as such."""
    if rng.random() < 0.75:
        return write(folder, stem, content)
    content = gzip.compress(content, 1)
    return write(folder, f"{stem}.gz", damage_bytes(rng, content, 2) if rng.random() < 0.5 else content)


# -- records -------------------------------------------------------------------------------------------------------

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


PACKET = {
    "id": "p1",
    "subject": {"id": "s", "sex": "MALE", "timeAtLastEncounter": {"age": {"iso8601duration": "P3Y2M"}}},
    "phenotypicFeatures": [
        {"type": {"id": "HP:0001250", "label": "Seizure"}},
        {"type": {"label": "Ptosis"}, "excluded": True},
    ],
    "interpretations": [
        {"diagnosis": {"disease": {"id": "OMIM:1", "label": "Marfan"}, "genomicInterpretations": [{"gene": {}}]}}
    ],
}


@reader
def phenopackets(rng: random.Random, folder: Path):
    for name in ("a", "b"):
        write(folder, f"{name}.json", damage_json(rng, {**PACKET, "id": name}))
    return read_phenopackets(folder if rng.random() < 0.5 else folder / "a.json", {"HP:0001250"})


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
    content, pack = file.getvalue(), rng.choice((bytes, gzip.compress, lzma.compress, bz2.compress))
    content = damage_bytes(rng, content) if rng.random() < 0.7 else content
    content = pack(content)
    content = damage_bytes(rng, content, 2) if rng.random() < 0.3 else content
    return read_phenopackets(
        write(folder, f"cases.{rng.choice(('tar', 'tar.gz', 'tar.xz', 'tgz', 'tar.bz2'))}", content)
    )


# -- tables --------------------------------------------------------------------------------------------------------


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


# -- images --------------------------------------------------------------------------------------------------------

FORMS = (
    ("PNG", "RGB"),
    ("PNG", "P"),
    ("PNG", "I;16"),
    ("JPEG", "RGB"),
    ("TIFF", "RGB"),
    ("TIFF", "F"),
    ("WEBP", "RGB"),
)
FORMS += (("BMP", "RGB"), ("GIF", "P"), ("PNG", "LA"))
OTHER_FORMS = ("EPS", "PPM", "ICO", "PCX", "SGI", "TGA", "PDF", "JPEG2000", "DDS", "ICNS", "IM", "SPIDER", "XBM", "MPO")


@reader
def images(rng: random.Random, folder: Path):
    if rng.random() < 0.1:
        with contextlib.suppress(OSError, KeyError, ValueError):
            mode = "1" if (form := rng.choice(OTHER_FORMS)) == "XBM" else "F" if form == "SPIDER" else "RGB"
            path = write(folder, "x.png", picture(form, mode, (32, 32)))
            image_size(path)
            return open_image(path)
    path = write(
        folder, f"x.{rng.choice(('png', 'jpg', 'eps', 'svg', 'psd'))}", damage_bytes(rng, picture(*rng.choice(FORMS)))
    )
    image_size(path)
    return open_image(path)


PROCESSOR_SETTINGS = (
    {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 48},
        "crop_size": {"height": 48, "width": 48},
    }
    | {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3, "rescale_factor": 0.0039},
    {"image_processor_type": "MllamaImageProcessor", "size": {"height": 32, "width": 32}, "max_image_tiles": 4},
    {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "merge_size": 2,
        "min_pixels": 64,
        "max_pixels": 4096,
    },
    {"image_processor_type": "ViltImageProcessor", "size": {"shortest_edge": 64}, "size_divisor": 16},
)


@reader
def image_processors(rng: random.Random, folder: Path):
    write(folder, "preprocessor_config.json", damage_json(rng, rng.choice(PROCESSOR_SETTINGS)))
    return load_processor(folder)


# -- models --------------------------------------------------------------------------------------------------------

CONFIGS = (TINY_LLAMA, clip_inputs.TINY, VILT, llava_inputs.TINY, mllama_inputs.TINY, qwen_vl_inputs.TINY)
CONFIGS += (qwen3_vl_inputs.TINY, bert_inputs.TINY)


@reader
def configs(rng: random.Random, folder: Path):
    write(folder, "config.json", damage_json(rng, rng.choice(CONFIGS)))
    return build_model(read_json(folder / "config.json"), folder)


@functools.cache
def small_model() -> tuple[dict, dict[str, torch.Tensor]]:
    config = {**TINY_LLAMA, "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 16}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    return config, init_model(config).state_dict()


@reader
def weights(rng: random.Random, folder: Path):
    config, tensors = small_model()
    write(folder, "config.json", dump(config))
    kind = rng.randrange(3)
    if kind == 0:
        save_file(tensors, folder / "model.safetensors")
        path = folder / "model.safetensors"
        path.write_bytes(damage_bytes(rng, path.read_bytes()))
    elif kind == 1:
        save_file(tensors, folder / "part.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "part.safetensors")}
        write(folder, "model.safetensors.index.json", damage_json(rng, index))
    else:
        file = io.BytesIO()
        torch.save({"state_dict": tensors}, file, _use_new_zipfile_serialization=rng.random() < 0.7)
        path = write(folder, "pytorch_model.bin", damage_bytes(rng, file.getvalue()))
        return [read() for _, _, read in find_source(path).tensors()]
    return load_model(folder)


@reader
def adapters(rng: random.Random, folder: Path):
    config, _ = small_model()
    model = add_lora(init_model(config), rank=2)
    save_adapter(model, folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        path = folder / name
        if rng.random() < 0.6:
            json_file = path.suffix == ".json"
            path.write_bytes(
                damage_json(rng, json.loads(path.read_bytes()))
                if json_file
                else damage_bytes(rng, path.read_bytes(), 1)
            )
    return load_adapter(init_model(config), folder)


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is <|im_end|> it?"}]


@functools.cache
def good_tokenizer(folder: str) -> tuple[dict, dict]:
    place = Path(folder)
    place.mkdir(exist_ok=True)
    write_tokenizer(place, "chatml", chat_template=CHATML, eos_token="<|im_end|>")
    return tuple(json.loads((place / name).read_bytes()) for name in ("tokenizer.json", "tokenizer_config.json"))


@reader
def tokenizers(rng: random.Random, folder: Path):
    content, settings = good_tokenizer(str(Path(tempfile.gettempdir()) / "mint-fuzz-tokenizer"))
    if rng.random() < 0.5:
        content = {
            **content,
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "x"}]},
        }
        content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    both = rng.randrange(3)
    damaged = dump(content)
    if both != 1 and rng.random() < 0.7:  # all but the vocabulary, which would take most of the damage
        model = {key: value for key, value in content["model"].items() if key != "vocab"}
        changed = damage_value(rng, {**content, "model": model}, 2)
        if isinstance(changed, dict) and isinstance(changed.get("model"), dict):
            changed["model"].setdefault("vocab", content["model"]["vocab"])
        damaged = dump(changed, rng)
    elif both != 1:
        damaged = damage_json(rng, content)
    write(folder, "tokenizer.json", damaged)
    write(folder, "tokenizer_config.json", damage_json(rng, settings) if both != 0 else dump(settings))
    if rng.random() < 0.2:
        return TextEncoder(folder, 16).encode("a cyst")
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode_prompt(MESSAGES) + tokenizer.encode_answer("A cyst.")
    return tokenizer.decode(ids)


PIECES = (
    "{% for i in range(9) %}{{ m.content }}{% endfor %}",
    "{% set x = 'ab' * 99 %}{{ x }}",
    "{{ messages }}",
    "{{ messages | tojson(indent=4) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ raise_exception('no') }}",
    "{{ 9 ** 9 ** 3 }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{{ undefined.name }}",
    "{{ '%99999d' % 1 }}",
    "{{ '\\ud800' }}",
    "{% if m %}{% break %}{% endif %}",
    "{{ m.content | center(99999) | upper }}",
    "{{ [messages] * 99 | length }}",
    "{% include 'x' %}",
    "{{ cycler.__init__.__globals__ }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(20) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
)


@reader
def templates(rng: random.Random, folder: Path):
    content, settings = good_tokenizer(str(Path(tempfile.gettempdir()) / "mint-fuzz-tokenizer"))
    write(folder, "tokenizer.json", dump(content))
    write(folder, "tokenizer_config.json", dump(settings))
    places = [i + 2 for i in range(len(CHATML)) if CHATML[i : i + 2] in ("%}", "}}")]
    at = rng.choice([0, *places])
    text = CHATML[:at] + rng.choice(PIECES) + CHATML[at:] if rng.random() < 0.7 else damage_text(rng, CHATML, PIECES, 2)
    write(folder, "chat_template.jinja", damage_bytes(rng, text.encode(), 1) if rng.random() < 0.1 else text.encode())
    return load_tokenizer(folder).encode_chat(MESSAGES)


# -- settings and evaluations --------------------------------------------------------------------------------------

TOML = "lr = 1e-4\nsteps = 10\nseed = 1\nfull = true\nout = 'runs/x'\n[loss]\nname = 'dpo'\nbeta = 0.1\n"
VALUES = (
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-1",
    "0",
    "1",
    str(2**70),
    "9" * 5000,
    "",
    "x",
    "true",
    "1.5",
    "x" * 5000,
    "[]",
    "\u202e",
)
FLAGS = (
    "--steps",
    "--lr",
    "--seed",
    "--batch-size",
    "--lora-rank",
    "--lora-alpha",
    "--lora-dropout",
    "--epochs",
    "--keep",
)
FLAGS += (
    "--max-length",
    "--warmup",
    "--adam-beta2",
    "--beta",
    "--grad-accum",
    "--eval-every",
    "--loss-arg",
    "--loss",
    "--out",
)


@reader
def settings_files(rng: random.Random, folder: Path):
    text = damage_text(rng, TOML, (*VALUES[:8], "[", "]", "=", "\n", "'", '"', "[" * 3000, "inf", "{a=1}", "#", "\0"))
    path = write(folder, "run.toml", text.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.2:
        return read_prompt(path, "D:", ("note",))
    return parse(TrainConfig, ["--config", str(path)], "")


@reader
def flags(rng: random.Random, folder: Path):
    command = [
        part for flag in rng.sample(FLAGS, rng.randint(1, 3)) for part in (flag, rng.choice(VALUES).replace("\0", ""))
    ]
    if rng.random() < 0.5:
        return parse(TrainConfig, command, "")
    numbers = (
        "--batch-size",
        "--seed",
        "--limit",
        "--max-new-tokens",
        "--temperature",
        "--sample-top-p",
        "--top-k",
        "--out",
    )
    given = [part for flag in rng.sample(numbers, 2) for part in (flag, rng.choice(VALUES))]
    file = write(folder, "cases.json", dump(PACKET))
    if rng.random() < 0.3:
        status = generate_prefs.main(
            ["disease", "--cases", str(file), "--out", rng.choice(VALUES) or "x", "--bottom-q", rng.choice(VALUES)]
        )
    else:
        status = evaluate.main(
            ["disease", "--model", rng.choice(VALUES) or "m", "--cases", f"{folder}/none.json", *given]
        )
    assert status == 2
    raise InputError("refused")


LISTED = [{"id": "a", "listed": ["Marfan", "Noonan"], "scores": [0.9, 0.1]}, {"id": "b", "answer": "D:\n1. Marfan"}]
GRAPH = {"entities": {"1": {"tokens": "effusion", "label": "OBS", "relations": [["located_at", "1"]]}}}
LABELS = [
    {
        "id": "a",
        "chexbert": {"prediction": [1] * len(FINDINGS), "reference": [0] * len(FINDINGS)},
        "radgraph": {"prediction": GRAPH, "reference": GRAPH},
    }
]


@reader
def predictions(rng: random.Random, folder: Path):
    if rng.random() < 0.5:
        return read_rankings(write(folder, "p.jsonl", damage_rows(rng, LISTED)), ["a", "b"])
    return read_labels(packed(rng, folder, "l.jsonl", damage_rows(rng, LABELS)), ["a"])


TISSUE_RECORD = {
    "id": "t",
    "tissue": "Lung",
    "images": ["a.png"],
    "answer": "1. Lung",
    "listed": ["Lung", "Skin"],
    "teacher": ["Skin"],
}
TISSUE_RECORD |= {"top_1": 1, "top_5": True, "known": 1.0, "subject": "s", "scores": [0.6, 0.4], "disease_count": 4}
VQA_RECORD = {
    "id": "q",
    "question": "Is it?",
    "reference": "no",
    "kind": "closed",
    "answer": "no",
    "images": ["a.png"],
    "exact": 1.0,
    "recall": 0.5,
    "closed": 1.0,
    "open": None,
}
METRICS = {
    "name": "system",
    "settings": {"cases": "x"},
    "scores": {},
    "rows": {"teacher": {"top_1": 0.5}, "system": {"top_1": 1.0}},
}


@reader
def comparisons(rng: random.Random, folder: Path):
    write_pictures(folder)
    record = rng.choice((TISSUE_RECORD, VQA_RECORD))
    good = rng.random()
    write(folder, "metrics.json", damage_json(rng, METRICS) if good < 0.3 else dump(METRICS))
    rows = [{**record, "id": str(i)} for i in range(3)]
    write(folder, "predictions.jsonl", damage_rows(rng, rows) if good > 0.2 else b"\n".join(map(dump, rows)))
    return save_comparison([folder], folder / "out", case_pages=3)


@reader
def names_of_images(rng: random.Random, folder: Path):
    write_pictures(folder)
    name = hostile(rng)
    row = {**PAIRS[0], "images": [name if isinstance(name, str) else "a.png"]}
    return find_images(read_preferences(path := write(folder, "p.jsonl", dump(row)), True), path)

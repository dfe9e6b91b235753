"""Limits on what files may ask for: bombs, names that lead elsewhere, and numbers out of range."""

import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import threading
import time
import zipfile
from datetime import datetime

import pytest
import torch
from PIL import Image

from mint.cli import Parser
from mint.config import TrainConfig
from mint.data import image_files, template_process
from mint.data.chat import load_tokenizer
from mint.data.encoders import tokenizer_errors
from mint.data.image_files import find_image, open_image
from mint.data.phenopackets import read_phenopackets
from mint.data.preferences import read_preferences
from mint.data.questions import read_questions
from mint.data.records import read_bytes
from mint.data.template_process import PROCESS, LimitExceeded, Template
from mint.errors import InputError
from mint.files import check_paths, parse_json, read_toml
from mint.flags import parse
from mint.models.adapter_files import read_adapter_config
from mint.models.checkpoint import build_model, load_model
from mint.models.pickled import load_pickle
from tests.data.test_chat import CHATML, write_tokenizer
from tests.reference import bert_inputs, clip_inputs, mllama_inputs, qwen3_vl_inputs, vilt_inputs
from tests.reference.weights import TINY_LLAMA

DATE = datetime(2024, 7, 26)

# -- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["EPS", "PPM", "ICO", "PCX", "SGI", "TGA", "PDF", "JPEG2000"])
def test_other_formats_are_no_images_whatever_their_name(tmp_path, form):
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png", form)
    with pytest.raises(InputError, match="x.png cannot be read: it is none of PNG, JPEG, TIFF, WEBP, BMP, GIF"):
        open_image(tmp_path / "x.png")


@pytest.mark.parametrize("form", image_files.FORMATS)
def test_the_six_formats_are_read(tmp_path, form):
    Image.new("RGB", (16, 9), "red").save(tmp_path / "x.bin", form)
    assert open_image(tmp_path / "x.bin").size == (16, 9)


@pytest.mark.parametrize(
    "name", ["a\0b.png", "x" * 5000, "loop.png", "/etc/hostname", "../up.png", "link.png", "d/../../e"]
)
def test_names_that_no_image_of_the_folder_can_have(tmp_path, name):
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="^the image .*(cannot be read|lies outside)") as error:
        find_image(tmp_path, name)
        open_image(tmp_path / name)
    assert len(str(error.value)) < 800 and "\0" not in str(error.value)


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(InputError, match="it is no file"):
        open_image(tmp_path / "x.png")


# -- packed files --------------------------------------------------------------------------------------------------


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("mint.data.records.UNPACKED", 10_000_000)
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wb", 1) as file:
        for _ in range(20):
            file.write(bytes(1_000_000))
    with pytest.raises(InputError, match="unpacks to more than 10,000,000 bytes"):
        read_bytes(path)


def headers(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_headers_of_gigabytes_are_not_read(tmp_path, kind):
    (tmp_path / "a.tar").write_bytes(headers(kind, 8_000_000_000) + bytes(2048))
    with pytest.raises(InputError, match="asks for 8,000,000,000 bytes at once"):
        read_phenopackets(tmp_path / "a.tar")


def test_an_archive_of_zeros_is_not_skipped_through(tmp_path, monkeypatch):
    monkeypatch.setattr("mint.data.records.UNPACKED", 1_000_000)
    with lzma.open(tmp_path / "a.tar.xz", "wb", preset=0) as file:
        file.write(headers(tarfile.REGTYPE, 8_000_000_000) + bytes(2_000_000))
    with pytest.raises(InputError, match="unpacks to more than 1,000,000 bytes"):
        read_phenopackets(tmp_path / "a.tar.xz")


def test_pickles_that_expand(tmp_path):
    values = ["a"]
    for _ in range(40):
        values = [values] * 10
    (tmp_path / "images").mkdir()
    for content, message in (
        (pickle.dumps([{"location": values}]), "stands for more than|nested too deeply"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "a place in memory that is out of range"),
    ):
        (tmp_path / "q.pkl").write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_questions(tmp_path / "q.pkl")


def test_checkpoints_that_expand(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.zeros(1).expand(10_000_000)}, path)
    with pytest.raises(InputError, match="is not a plain tensor, or larger than the file"):
        load_pickle(path)
    torch.save({"w": torch.zeros(300_000)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "z.bin", "w", zipfile.ZIP_DEFLATED) as packed:
        for member in source.infolist():
            packed.writestr(member.filename, source.read(member))
    with pytest.raises(InputError, match="is a packed archive"):
        load_pickle(tmp_path / "z.bin")


# -- JSON and TOML -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 102 + b"]" * 102, "nested too deeply"),
        (b'{"a":' * 102 + b"1" + b"}" * 102, "nested too deeply"),
        (b"[1e999]", "larger than a float"),
        (b"[-Infinity]", "-Infinity is not a value"),
        (b'{"a": NaN}', "NaN is not a value"),
        (b'["\\ud800"]', "half of a surrogate pair"),
        (b'{"\\uDFff": 1}', "half of a surrogate pair"),
        (b"[" + b"1" * 5000 + b"]", "too many digits"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b"{%s}" % b",".join(b'"%d": 1' % (i // 2 if i > 199_998 else i) for i in range(200_000)), "'99999' is given"),
        (b'"\xff"', "not UTF-8"),
    ],
)
def test_json_that_is_refused(content, message):
    with pytest.raises(InputError, match=message):
        parse_json(content)


def test_a_template_process_that_does_not_start(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text("raise ImportError")
    monkeypatch.setattr(template_process, "WORKER", tmp_path / "worker.py")
    PROCESS.close()
    with pytest.raises(InputError, match="does not start; see .*worker.py"):
        Template("x", DATE).render(messages=[])
    PROCESS.close()


def test_json_that_is_read():
    assert parse_json(b'\xef\xbb\xbf["\\ud83d\\ude00", 1e30, 1000000000000000019884624838656]') == [
        "😀",
        1e30,
        10**30 + 19884624838656,
    ]
    assert parse_json("[" * 100 + "]" * 100)


def test_brackets_in_toml(tmp_path):
    (tmp_path / "a.toml").write_text("a = " + "[" * 50_000)
    with pytest.raises(InputError, match="cannot be read"):
        read_toml(tmp_path / "a.toml")


def test_a_line_of_many_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("mint.data.records.LINE_LIMIT", 1000)
    (tmp_path / "a.jsonl").write_text('{"prompt": "' + "x" * 2000 + '"}')
    with pytest.raises(InputError, match="a.jsonl:1: the line has more than 1,000 bytes"):
        read_preferences(tmp_path / "a.jsonl")


# -- templates -----------------------------------------------------------------------------------------------------

BOMBS = {
    "product": "{{ 'x' * 10 ** 10 }}",
    "width": "{{ '%9999999999d' % 1 }}",
    "filter": "{{ 'x' | center(10 ** 10) }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "output": "{{ 'ab' * 6000000 }}",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_templates_that_want_gigabytes(source, monkeypatch):
    PROCESS.close()
    monkeypatch.setattr(template_process, "MEMORY", 300_000_000)
    with pytest.raises(InputError, match="too much memory|more than 10,000,000 characters"):
        Template(source, DATE).render(messages=[])
    PROCESS.close()


LOOPS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
}


@pytest.fixture
def short_limit(monkeypatch):
    PROCESS.close()
    monkeypatch.setattr(template_process, "SECONDS", 0.2)
    yield
    PROCESS.close()


@pytest.mark.parametrize("source", LOOPS.values(), ids=LOOPS)
def test_templates_that_do_not_end(source, short_limit):
    with pytest.raises(LimitExceeded, match="runs for more than 0.2 seconds"):
        Template(source, DATE).render(messages=[])
    assert Template("{{ messages | length }}", DATE).render(messages=[1]) == "1"  # in a new process


def test_templates_are_limited_in_threads_and_in_forked_processes(short_limit):
    found = []

    def render():
        try:
            Template(LOOPS["loops"], DATE).render()
        except LimitExceeded:
            found.append(Template("{{ 1 + 1 }}", DATE).render())

    threads = [threading.Thread(target=render) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["2", "2"]
    child = os.fork()
    if child == 0:
        os._exit(0 if Template("{{ 2 * 3 }}", DATE).render() == "6" else 1)
    assert os.waitpid(child, 0)[1] == 0 and Template("{{ 3 }}", DATE).render() == "3"


def test_a_template_that_does_not_end_is_found_when_the_tokenizer_is_loaded(tmp_path, short_limit):
    write_tokenizer(tmp_path, "chatml", chat_template=LOOPS["loops"] + CHATML)
    start = time.process_time()
    with pytest.raises(InputError, match="the chat template of .* cannot be used: it runs for more than"):
        load_tokenizer(tmp_path)
    assert time.process_time() - start < 5


def test_a_panic_of_the_tokenizers_library_names_the_file():
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(InputError, match="t.json cannot be read: the tokenizers library fails with it .index 3."):
        with tokenizer_errors("t.json"):
            raise panic("index 3")
    with pytest.raises(KeyboardInterrupt), tokenizer_errors("t.json"):
        raise KeyboardInterrupt


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 1_000_000}, {"num_hidden_layers": -1}, {"num_hidden_layers": True}, {"vocab_size": 2**70},
        {"hidden_size": "32"}, {"hidden_size": 32.5}, {"hidden_size": 0}, {"num_attention_heads": 0}, {"head_dim": 7},
        {"num_key_value_heads": 3}, {"rms_norm_eps": "1e-5"}, {"rope_theta": -1.0}, {"rope_scaling": [1]},
        {"rope_scaling": {"rope_type": "linear", "factor": 0}}, {"intermediate_size": [64]}, {"initializer_range": -1},
        {"rope_parameters": {"rope_theta": "x"}}, {"max_position_embeddings": -5}, {"model_type": ["llama"]},
        {"num_hidden_layers": None}, {"vocab_size": None}, {"hidden_size": None}, {"num_attention_heads": None},
    ],
)  # fmt: skip
def test_numbers_of_a_config(changes):
    start = time.process_time()
    with pytest.raises(InputError):
        build_model({**TINY_LLAMA, **changes}, "m")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("inputs", [bert_inputs, clip_inputs, vilt_inputs, mllama_inputs, qwen3_vl_inputs])
def test_null_in_a_config_is_a_setting_that_is_missing(inputs):
    """Every number of every part in turn: the default holds where there is one."""
    parts = [(), *((name,) for name, value in inputs.TINY.items() if isinstance(value, dict))]
    for part in parts:
        level = inputs.TINY[part[0]] if part else inputs.TINY
        for name in [name for name, value in level.items() if type(value) in (int, float)]:
            changed = {**level, name: None}
            with contextlib.suppress(InputError), torch.device("meta"):
                build_model({**inputs.TINY, part[0]: changed} if part else changed, "m")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_an_index_of_files_that_cannot_be(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(TINY_LLAMA))
    index = {"weight_map": {"model.embed_tokens.weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="index.json names a file"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"image_size": 10**9}, {"patch_size": 0}, {"num_hidden_layers": 10**6}, {"num_channels": "3"}]
)
def test_numbers_of_an_image_encoder(changes):
    vision = {**clip_inputs.TINY["vision_config"], **changes}
    with pytest.raises(InputError, match="config.json"):
        build_model({**clip_inputs.TINY, "vision_config": vision}, "m")


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 0}, {"r": 2**40}, {"r": 1.5}, {"lora_alpha": -1}, {"lora_dropout": 2}, {"rank_pattern": {"q": "8"}},
        {"alpha_pattern": {"q": True}}, {"target_modules": [1]}, {"target_modules": {"a": 1}},
    ],
)  # fmt: skip
def test_numbers_of_an_adapter(tmp_path, changes):
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], **changes}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=next(iter(changes))):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize(
    "flags",
    [
        ("--lr", "nan"), ("--lr", "inf"), ("--seed", str(2**70)), ("--steps", str(2**70)), ("--batch-size", "-4"),
        ("--lora-rank", "0"), ("--lora-rank", str(10**9)), ("--lora-alpha", "-1"), ("--lora-dropout", "1"),
        ("--adam-beta2", "1.5"), ("--beta", "nan"), ("--max-pixels", "0"), ("--loss-arg", "beta=1e999"),
    ],
)  # fmt: skip
def test_numbers_of_a_training_run(flags):
    with pytest.raises(InputError, match=flags[0] if flags[0] != "--loss-arg" else "beta of the loss"):
        parse(TrainConfig, flags, "").loss_options()


@pytest.mark.parametrize("value", ["nan", "inf", str(2**70), "0", "-1", "x"])
def test_numbers_of_the_other_commands(value, capsys):
    parser = Parser()
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--temperature", type=float)
    flag = "--temperature" if value in ("nan", "inf") else "--batch-size"
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([flag, value])
    assert stop.value.code == 2 and flag in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "loop"])
def test_flags_with_names_that_no_file_can_have(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for flag in ("data", "model", "adapter", "out"):
        with pytest.raises(InputError, match="cannot be read"):
            check_paths(type("Args", (), {flag: name})())


def test_an_image_larger_than_the_limit_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    file = io.BytesIO()
    Image.new("1", (50, 50)).save(file, "GIF")
    (tmp_path / "x.gif").write_bytes(file.getvalue())
    with pytest.raises(InputError, match="more than 100 pixels"):
        open_image(tmp_path / "x.gif")

"""Preference files: every accepted form, and what each kind of bad line is told."""

import gzip
import json
import sys

import pytest

from mint.data import records as data_records
from mint.data.preferences import read_preferences, write_jsonl
from mint.data.spans import Answer
from mint.errors import FileProblems, InputError

SYSTEM = {"role": "system", "content": "You are a geneticist."}
USER = {"role": "user", "content": "Which syndrome?"}
GOOD = {"prompt": "Which syndrome?", "chosen": "Noonan", "rejected": "Marfan"}


def says(text):
    return {"role": "assistant", "content": text}


def write(folder, *lines, name="pairs.jsonl"):
    """A file of the given records; bytes stand as they are."""
    path = folder / name
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def read_one(folder, record, **options):
    (preference,) = read_preferences(write(folder, record), **options)
    return preference


# -- forms ------------------------------------------------------------------------------------------------------


def test_strings_with_every_field(tmp_path):
    record = {**GOOD, "images": ["a.png"], "corrupted_images": ["b.png"], "id": 7, "source": "clinic"}
    one = read_one(tmp_path, record)
    assert (one.id, one.line, one.prompt) == ("7", 1, "Which syndrome?")
    assert (one.chosen, one.rejected) == (Answer("Noonan"), Answer("Marfan"))
    assert (one.images, one.corrupted_images, one.extra) == (("a.png",), ("b.png",), {"source": "clinic"})


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [SYSTEM, USER], "chosen": "Noonan", "rejected": "Marfan"},
        {"prompt": [SYSTEM, USER], "chosen": [says("Noonan")], "rejected": [says("Marfan")]},
        {"chosen": [SYSTEM, USER, says("Noonan")], "rejected": [SYSTEM, USER, says("Marfan")]},
        {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, says("Noonan")], "rejected": [says("Marfan")]},
        {
            "prompt": USER["content"],
            "chosen": [SYSTEM, USER, says("Noonan")],
            "rejected": [SYSTEM, USER, says("Marfan")],
        },
    ],
    ids=["strings", "messages", "implicit", "repeated", "string for the last message"],
)
def test_all_forms_of_a_conversation_read_alike(tmp_path, record):
    one = read_one(tmp_path, record)
    assert (one.prompt, one.chosen.text, one.rejected.text) == ([SYSTEM, USER], "Noonan", "Marfan")


@pytest.mark.parametrize(
    "chosen, rejected, prompt",
    [
        ("Human: Which?\n\nAssistant: Noonan", "Human: Which?\n\nAssistant: Marfan", "Human: Which?\n\nAssistant:"),
        ("Q\nA:\nNoonan", "Q\nA:\nMarfan", "Q\nA:\n"),
        ("it is Noonan", "it is Norrie", "it is"),  # not "it is No"
        ("it is <mask>a big one</mask>", "it is <mask>a small one</mask>", "it is"),  # a span stays whole
    ],
)
def test_two_strings_share_whole_words_as_their_prompt(tmp_path, chosen, rejected, prompt):
    one = read_one(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert one.prompt == prompt
    assert (one.prompt + one.chosen.tagged, one.prompt + one.rejected.tagged) == (chosen, rejected)


def test_chosen_alone_is_enough_where_rejected_is_not_required(tmp_path):
    record = {"prompt": "p", "chosen": "c"}
    assert read_one(tmp_path, record, require_rejected=False).rejected is None
    assert read_one(tmp_path, {**record, "rejected": None}, require_rejected=False).rejected is None
    implicit = {"chosen": [USER, says("Noonan")]}
    assert read_one(tmp_path, implicit, require_rejected=False).prompt == [USER]
    with pytest.raises(FileProblems, match="pairs.jsonl:1: missing rejected"):
        read_one(tmp_path, record)


def test_tags_are_parsed_once_and_written_back_as_they_were(tmp_path):
    record = {"prompt": "p", "chosen": "The <mask>left</mask> lung <mask>is</mask>", "rejected": "the right lung"}
    one = read_one(tmp_path, record)
    assert (one.chosen, one.rejected) == (Answer("The left lung is", ((4, 8), (14, 16))), Answer("the right lung"))
    assert (one.chosen.tagged, one.rejected.tagged) == (record["chosen"], record["rejected"])


def test_byte_order_mark_blank_lines_and_carriage_returns_are_tolerated(tmp_path):
    good = json.dumps(GOOD).encode()
    path = write(tmp_path, b"\xef\xbb\xbf" + good + b"\r", b"", b"  \t", good)
    assert [(p.id, p.line) for p in read_preferences(path)] == [("line-1", 1), ("line-4", 4)]


def test_gzip(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert read_preferences(path)[0].chosen.text == "Noonan"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="pairs.jsonl.gz cannot be read"):
        read_preferences(path)


def test_parquet_reads_as_json_lines_do(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "pairs.parquet"
    rows = [{**GOOD, "id": "a", "images": None}, {**GOOD, "images": ["x.png"]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [(p.id, p.images) for p in read_preferences(path)] == [("a", ()), ("line-2", ("x.png",))]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="pairs.parquet cannot be read"):
        read_preferences(path)


@pytest.mark.parametrize("row_groups", [100, 100_000])
def test_a_parquet_file_that_expands_is_not_read(tmp_path, monkeypatch, row_groups):
    """The same long answer in every row is stored once."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(data_records, "UNPACKED", 1_000_000)
    path = tmp_path / "pairs.parquet"
    rows = [{**GOOD, "prompt": "long " * 1000, "id": str(i)} for i in range(3000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_groups)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="unpacks to more than"):
        read_preferences(path)
    monkeypatch.setattr(data_records, "UNPACKED", 100_000_000)
    assert [record.line for record in read_preferences(path)] == list(range(1, 3001))


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="needs pyarrow .pip install pyarrow."):
        read_preferences(write(tmp_path, GOOD, name="pairs.parquet"))


# -- bad lines --------------------------------------------------------------------------------------------------

BAD = {
    "JSON": (b'{"prompt": "p", "chosen": ', "invalid JSON: Expecting value at column"),
    "constant": (b'{"prompt": "p", "chosen": "c", "rejected": "r", "score": NaN}', "invalid JSON: NaN is not a value"),
    "twice": (b'{"prompt": "p", "prompt": "q", "chosen": "c", "rejected": "r"}', "'prompt' is given twice"),
    "digits": (b'{"prompt": "p", "score": ' + b"9" * 5000 + b"}", "a number has too many digits"),
    "depth": (b"[" * 100_000, "nested too deeply"),
    "not an object": (b"[1, 2]", "a record must be an object, not a list"),
    "encoding": (b'{"prompt": "caf\xe9"}', "not UTF-8 .byte 16."),
    "surrogate": (b'{"prompt": "\\ud800", "chosen": "c", "rejected": "r"}', "half of a surrogate pair"),
    "missing": ({"prompt": "p"}, "missing chosen and rejected"),
    "null": ({**GOOD, "chosen": None}, "missing chosen"),
    "no prompt": ({"chosen": "Noonan", "rejected": "Marfan"}, "missing prompt, and chosen and rejected do not begin"),
    "empty prompt": ({**GOOD, "prompt": " \n"}, "prompt is empty"),
    "empty messages": ({**GOOD, "prompt": []}, "prompt is an empty list"),
    "empty answer": ({**GOOD, "chosen": ""}, "chosen is empty"),
    "blank answer": ({**GOOD, "rejected": " \n\t"}, "rejected is empty"),
    "nothing but tags": ({**GOOD, "rejected": "<mask> </mask>"}, "rejected is empty"),
    "same": ({**GOOD, "rejected": "Noonan "}, "chosen and rejected are the same"),
    "same but for tags": ({**GOOD, "rejected": "<mask>Noonan</mask>"}, "chosen and rejected are the same"),
    "tags": ({**GOOD, "chosen": "<mask>Noonan"}, "chosen: <mask> without </mask>"),
    "prompt type": ({**GOOD, "prompt": 3}, "prompt must be a string or a list of messages, not a number"),
    "answer type": ({**GOOD, "chosen": True}, "chosen must be a string or a list of messages, not a boolean"),
    "message type": ({**GOOD, "prompt": ["hello"]}, "prompt: message 1 must be an object with role and content"),
    "role": ({**GOOD, "prompt": [{"role": "doctor", "content": "x"}]}, "role 'doctor', not one of system, user"),
    "content type": ({**GOOD, "prompt": [{"role": "user", "content": 1}]}, "content of message 1 must be a string"),
    "empty message": ({**GOOD, "prompt": [{"role": "user", "content": ""}]}, "prompt: message 1 is empty"),
    "order": ({**GOOD, "prompt": [USER, USER]}, "prompt: roles out of order: user, user"),
    "system late": ({**GOOD, "prompt": [USER, SYSTEM]}, "roles out of order: user, system"),
    "last role": ({**GOOD, "prompt": [USER, says("a")]}, "must be the user's, not the assistant's"),
    "answer role": ({**GOOD, "chosen": [USER]}, "chosen must end with an assistant message, not the user's"),
    "another prompt": (
        {**GOOD, "prompt": [SYSTEM, USER], "chosen": [USER, says("a")]},
        "chosen is a conversation that does not begin with the prompt",
    ),
    "nothing shared": (
        {"chosen": [USER, says("a")], "rejected": [SYSTEM, USER, says("b")]},
        "must share all messages but the last",
    ),
    "images type": ({**GOOD, "images": "a.png"}, "images must be a list of file names"),
    "images inside": ({**GOOD, "image": {"bytes": "..."}}, "images inside the file are not read"),
    "id type": ({**GOOD, "id": 1.5}, "id must be a string or an integer, not a number"),
}


@pytest.mark.parametrize("line, problem", BAD.values(), ids=BAD)
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path, line, problem):
    with pytest.raises(FileProblems, match=problem) as caught:
        read_preferences(write(tmp_path, GOOD, line))
    (only,) = caught.value.problems
    assert only.startswith(f"{tmp_path / 'pairs.jsonl'}:2: ")


def test_all_bad_lines_are_reported_at_once(tmp_path):
    lines = [line for line, _ in BAD.values()]
    with pytest.raises(FileProblems) as caught:
        read_preferences(write(tmp_path, *lines, GOOD))
    assert len(caught.value.problems) == len(BAD)
    assert f"has {len(BAD)} problems" in str(caught.value)


def test_ids_must_differ(tmp_path):
    path = write(tmp_path, {**GOOD, "id": "a"}, GOOD, {**GOOD, "id": "a"})
    with pytest.raises(FileProblems, match="pairs.jsonl:3: id 'a' is also that of pairs.jsonl:1"):
        read_preferences(path)


def test_fifty_problems_are_listed_and_the_rest_counted(tmp_path):
    with pytest.raises(FileProblems) as caught:
        read_preferences(write(tmp_path, *[b"{"] * 60))
    text = str(caught.value)
    assert ":50:" in text and ":51:" not in text and text.endswith("and 10 more")


def test_files_that_hold_nothing_or_are_not_there(tmp_path):
    with pytest.raises(InputError, match="holds no records"):
        read_preferences(write(tmp_path, b"", b"  "))
    with pytest.raises(InputError, match="nowhere.jsonl does not exist"):
        read_preferences(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_preferences(tmp_path)


# -- writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new/pairs.jsonl", "new/pairs.jsonl.gz"])
def test_what_is_written_reads_back(tmp_path, name):
    assert write_jsonl(tmp_path / name, [GOOD, {**GOOD, "chosen": "Sotos é"}]) == 2
    assert [p.chosen.text for p in read_preferences(tmp_path / name)] == ["Noonan", "Sotos é"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write(tmp_path, GOOD)
    before = path.read_bytes()

    def records():
        yield GOOD
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, records())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

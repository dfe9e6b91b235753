"""The places of the records of a file: the same records, problems and order as reading it whole."""

import functools
import json

import numpy as np
import pytest

from mint.data import line_index
from mint.data.line_index import index_lines
from mint.data.preferences import identify_record, read_preferences
from mint.errors import FileProblems, InputError


def line(name, text="yes", **more):
    return json.dumps(
        {"id": name, "prompt": "Question é?", "chosen": text, "rejected": "no", **more}, ensure_ascii=False
    )


@pytest.fixture
def small_chunks(monkeypatch):
    """Parts so small that lines begin and end in different ones."""
    monkeypatch.setattr(line_index, "CHUNK", 37)


def write(path, *lines, end="\n"):
    path.write_bytes("\n".join(lines).encode() + end.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "", "\n\n  \n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_records_are_those_of_the_whole_file(tmp_path, small_chunks, end, start):
    lines = [line(f"case-{i}", "yes " * (1 + 40 * (i % 3 == 0))) + "\r" * (i % 2) for i in range(12)]
    path = write(tmp_path / "pairs.jsonl", *lines[:5], "", "   ", *lines[5:], end=end)
    path.write_bytes(start + path.read_bytes())
    index = index_lines(path, identify_record, workers=1)
    found = [identify_record(*index.read(i))[0] for i in range(len(index))]
    whole = read_preferences(path)
    assert found == [record.id for record in whole]
    assert index.numbers.tolist() == [record.line for record in whole]


def test_marks_and_contents_are_known(tmp_path):
    path = write(tmp_path / "pairs.jsonl", line("a"), line("b", "<mask>yes</mask>"))
    index = index_lines(path, identify_record)
    assert index.marked.tolist() == [False, True]
    assert [index.only(index.marked).read(0)[1]] == [2]
    other = write(tmp_path / "other.jsonl", line("a"), line("b", "<mask>yes,</mask>"))
    same = write(tmp_path / "same.jsonl", line("a"), line("b", "<mask>yes</mask>"))
    assert index.sha256 == index_lines(same, identify_record).sha256 != index_lines(other, identify_record).sha256


def test_every_problem_is_that_of_the_whole_file(tmp_path, small_chunks):
    lines = [line("a"), "{", line("b"), line("a"), "[1]", line("c"), line("b"), line("d", score="x")]
    path = write(tmp_path / "pairs.jsonl", *lines)
    with pytest.raises(FileProblems) as whole:
        read_preferences(path)
    with pytest.raises(FileProblems) as found:
        index_lines(path, identify_record, workers=1)
    assert sorted(found.value.problems) == sorted(whole.value.problems)
    check = functools.partial(identify_record, fields=("score",))
    with pytest.raises(FileProblems, match="pairs.jsonl:8: the field 'score' must be a number"):
        index_lines(path, check, workers=1)


def test_processes_find_what_one_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(line_index, "CHUNK", 5000)
    path = write(tmp_path / "pairs.jsonl", *(line(f"case-{i}") for i in range(200)))
    one, two = index_lines(path, identify_record, workers=1), index_lines(path, identify_record, workers=2)
    assert np.array_equal(one.starts, two.starts) and one.sha256 == two.sha256
    write(path, *(line(f"case-{i}") for i in range(200)), "{")
    with pytest.raises(FileProblems, match="pairs.jsonl:201: invalid JSON"):
        index_lines(path, identify_record, workers=2)


def test_files_without_places_are_refused(tmp_path):
    packed = tmp_path / "pairs.jsonl.gz"
    packed.write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match="unpack it"):
        index_lines(packed, identify_record)
    with pytest.raises(InputError, match="holds no records"):
        index_lines(write(tmp_path / "empty.jsonl", "", ""), identify_record)
    with pytest.raises(InputError, match="cannot be read"):
        index_lines(tmp_path / "none.jsonl", identify_record)


def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(line_index, "LINE_LIMIT", 1000)
    path = write(tmp_path / "pairs.jsonl", line("a"), line("b", "yes " * 1000))
    with pytest.raises(InputError, match="more than 1,000 bytes"):
        index_lines(path, identify_record)


def test_a_file_that_changes_is_noticed(tmp_path):
    path = write(tmp_path / "pairs.jsonl", line("a"), line("b"))
    index = index_lines(path, identify_record)
    write(path, line("c"), line("b"), line("d"))
    with pytest.raises(InputError, match="has changed"):
        index.read(0)

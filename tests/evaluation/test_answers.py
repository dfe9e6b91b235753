"""Answers on disk: interruptions by signal, cut lines, other prompts."""

import json
import signal

import pytest

from mint.errors import InputError, Stopped
from mint.evaluation.answers import Answers, stamp

IDENTITIES = [{"id": name, "key": "model"} for name in "abcd"]


def test_an_interrupted_command_continues(tmp_path):
    """Two of four answers are written, then the process is killed in the middle of a line."""
    path, started = tmp_path / "new" / "answers.jsonl", []

    def decode(known, save):
        save({2: "no\u2028mass"})
        save({0: "yes"})
        raise KeyboardInterrupt

    with pytest.raises(Stopped, match="2 of 4 finished") as stop:
        with Answers(path, IDENTITIES, before=lambda: started.append(path.exists())) as kept:
            kept.complete(decode)
    assert stop.value.number == signal.SIGINT and started == [False]
    with path.open("a") as file:
        file.write('{"id": "b", "key": "mod')
    again = Answers(path, IDENTITIES)
    assert again.known == {0: "yes", 2: "no\u2028mass"}
    again.save({1: "b"})
    assert Answers(path, IDENTITIES).known == {
        0: "yes",
        1: "b",
        2: "no\u2028mass",
    }  # the cut line does not spoil the next
    assert Answers(path, [{**one, "key": "another"} for one in IDENTITIES]).known == {}
    again.save({3: "d"})
    assert Answers(path, IDENTITIES).complete(None) == ["yes", "b", "no\u2028mass", "d"]


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_kill_within_a_character_costs_that_line_alone(tmp_path, cut):
    path = tmp_path / "answers.jsonl"
    Answers(path, IDENTITIES).save({0: "yes", 1: "\u00e9\U0001f600"})
    path.write_bytes(path.read_bytes()[:-cut])
    again = Answers(path, IDENTITIES)
    again.save({1: "\u00fc"})
    assert Answers(path, IDENTITIES).known == {0: "yes", 1: "\u00fc"}


def test_the_signal_is_kept(tmp_path):
    with pytest.raises(Stopped) as stop:
        with Answers(tmp_path / "answers.jsonl", IDENTITIES):
            raise Stopped(signal.SIGTERM)
    assert stop.value.number == signal.SIGTERM


def test_answers_may_be_numbers(tmp_path):
    answers = Answers(tmp_path / "answers.jsonl", IDENTITIES, "scores")
    answers.save({1: {"a": 0.5}})
    assert json.loads((tmp_path / "answers.jsonl").read_text()) == {**IDENTITIES[1], "scores": {"a": 0.5}}
    assert Answers(tmp_path / "answers.jsonl", IDENTITIES, "scores").known == {1: {"a": 0.5}}


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Answers(tmp_path / "file" / "answers.jsonl", IDENTITIES).save({0: "a"})


def test_other_weights_under_the_same_name(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = stamp(str(tmp_path))
    assert before == stamp(str(tmp_path)) and stamp(None) == [None] and stamp("owner/name") == ["owner/name"]
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert stamp(str(tmp_path)) != before

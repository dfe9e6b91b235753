"""Progress in a log file: lines instead of a bar."""

import pytest

from mint import progress
from mint.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: ``clock[0]`` is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_twenty_seconds_and_one_at_the_end(clock, capsys):
    bar = Progress(total=6, desc="training", unit="step")
    for step in range(6):
        clock[0] += 8
        bar.update(values={"loss": f"{step}"})
    bar.close()
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "training: 3/6 steps, 8.0 s/step, loss 2, 24 s left",
        "training: 6/6 steps, 8.0 s/step, loss 5, 48 s in all",
    ]


def test_a_resumed_loop_counts_on_and_rates_its_own_items(clock, capsys):
    bar = Progress(total=10, initial=8, desc="training", unit="step")
    clock[0] += 1
    bar.update(2)
    bar.close()
    assert capsys.readouterr().err == "training: 10/10 steps, 2.0 step/s, 1 s in all\n"


def test_a_short_loop_that_leaves_no_bar_prints_nothing(clock, capsys):
    assert list(Progress([1, 2, 3], desc="reading", leave=False)) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_a_long_loop_that_leaves_no_bar_does(clock, capsys):
    for _ in Progress([1, 2], desc="reading", unit="file", leave=False):
        clock[0] += 15
    assert capsys.readouterr().err == "reading: 2/2 files, 15.0 s/file, 30 s in all\n"


def test_an_iterable_without_length_and_a_loop_that_breaks(clock, capsys):
    items = iter(Progress((i for i in range(5)), desc="reading", unit="line"))
    for item in items:
        clock[0] += 0.5
        if item == 2:
            items.close()
            break
    assert capsys.readouterr().err == "reading: 2 lines, 1.3 line/s, 2 s in all\n"


def test_no_output_on_request(clock, capsys):
    for _ in Progress(range(3), show=False):
        clock[0] += 60
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (125, "2 min 05 s"), (11220, "3 h 07 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text

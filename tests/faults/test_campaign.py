"""The campaign's parts, and the page that it fills."""

import argparse

import pytest

from benchmarks import campaign
from mint.errors import InputError


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A copy of the page; three parts, which are not run."""
    copy = tmp_path / "trust.md"
    copy.write_text(campaign.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(campaign, "PAGE", copy)
    monkeypatch.setattr(campaign, "commit", lambda: "abc")
    monkeypatch.setattr(campaign, "TRIALS", {"kills": (None, 5, "kills")})
    monkeypatch.setattr(campaign, "READERS", {"questions": None, "lost pickles": None})
    return copy


def table(flags):
    if "--kills" in flags:
        return "| fault | trials |\n|---|---|\n| kills | 5 |\n"
    count = flags[flags.index("--inputs") + 1]
    row = f"{count} | 1 | 2 | 0 | 0.1 s |"
    return f"| reader | inputs |\n|---|---:|\n| {flags[1]} | {row}\n| all | {row}\n\nseed 0, 9 s\n"


def test_parts_fill_the_page_and_are_not_run_twice(tmp_path, monkeypatch, page):
    asked = []
    monkeypatch.setattr(campaign, "run_part", lambda module, flags: (asked.append(flags), (0, table(flags)))[1])
    args = argparse.Namespace(out=str(tmp_path / "out"), inputs=6000, seed=1)
    before = page.read_text(encoding="utf-8")
    tables = campaign.run_campaign(args)
    assert campaign.run_campaign(args) == tables
    assert [flags[0] for flags in asked] == ["--kills", "--only", "--only"]
    filled = page.read_text(encoding="utf-8")
    assert "commit abc" in filled and "| kills | 5 |" in filled
    assert "| lost pickles | 3000 | 1 | 2 | 0 | 0.1 s |\n| all | 6,000 | 2 | 4 | 0 | |\n<!--" in filled
    for mark in ("<!-- faults -->", "<!-- fuzz -->"):
        assert filled.count(mark) == 1 and filled.split(mark)[0].splitlines()[0] == before.splitlines()[0]


def test_a_part_with_problems_leaves_the_page_as_it_was(tmp_path, monkeypatch, page):
    results = {"--kills": (1, "a traceback")}
    monkeypatch.setattr(campaign, "run_part", lambda module, flags: results.get(flags[0], (0, table(flags))))
    before = page.read_text(encoding="utf-8")
    args = argparse.Namespace(out=str(tmp_path / "out"), inputs=6, seed=1)
    with pytest.raises(InputError, match=r"problems in faults kills \(status 1\)"):
        campaign.run_campaign(args)
    assert page.read_text(encoding="utf-8") == before
    results.clear()
    campaign.run_campaign(args)
    assert "| kills | 5 |" in page.read_text(encoding="utf-8")

"""The embedded cohort as a folder: the reader gives back what was drawn."""

import argparse
from dataclasses import replace

import pytest

from mint.demo.__main__ import main
from mint.errors import InputError
from mint.synthetic.cohort import sample_cohort
from mint.synthetic.cohort_folder import write_cohort
from mint.tasks.cohorts import add_cohort_options, read_cohort


def read(folder, *arguments):
    parser = argparse.ArgumentParser()
    add_cohort_options(parser)
    return read_cohort(str(folder), parser.parse_args(["--cases", str(folder), *arguments]))


def test_the_table_gives_the_cohort_back(tmp_path, capsys):
    assert main(["cohort", "--out", str(tmp_path / "c"), "--train", "30", "--test", "8", "--seed", "4"]) == 0
    cases = read(tmp_path / "c")
    printed = capsys.readouterr().out
    assert "38 cases" in printed and "columns not used" not in printed
    wanted = sample_cohort(30, seed=8) + sample_cohort(8, seed=9)
    for case, original in zip(cases, wanted, strict=True):
        assert case.id.endswith(original.id) and case.subject == case.id and case.image.is_file()
        plain = replace(case, id=original.id, subject="", image=None, split="", age_years=original.age_years)
        assert plain == original
        assert (case.age_years is None) == (original.age_years is None)
        assert case.age_years is None or case.age_years == pytest.approx(original.age_years, abs=1e-3)
    assert len(read(tmp_path / "c", "--split", "test")) == 8
    assert len({case.image.read_bytes() for case in cases}) == 38


def test_a_folder_is_not_written_over(tmp_path):
    write_cohort(tmp_path / "c", 2, 1)
    with pytest.raises(InputError, match="holds a cohort already"):
        write_cohort(tmp_path / "c", 2, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_cohort(tmp_path / "file" / "c", 2, 1)

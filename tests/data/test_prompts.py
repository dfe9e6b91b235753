"""Other wordings of a prompt: placeholders, headers, and files that cannot be used."""

import pytest

from mint.data.prompts import Prompt, read_prompt
from mint.errors import InputError

KNOWN = ("note", "genes")


def write(folder, text):
    path = folder / "prompt.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_text_is_not_looked_at_again():
    prompt = Prompt("{note} / {genes} / {{genes}} / {} / {a b}", "H:", "For {note}.")
    assert prompt.placeholders == {"note", "genes"}
    system, user = prompt.messages(note="{genes} {{note}} \\1", genes="G")
    assert system == {"role": "system", "content": "For {genes} {{note}} \\1."}
    assert user["content"] == "{genes} {{note}} \\1 / G / {genes} / {} / {a b}"


def test_a_file_is_taken_to_the_letter(tmp_path):
    path = write(tmp_path, 'user = """ {note}\n\nList them.\n\nNAMES:\n"""\nheader = "NAMES:"\n')
    prompt = read_prompt(path, "DEFAULT:", KNOWN, ("note",))
    assert prompt == Prompt(" {note}\n\nList them.\n\nNAMES:\n", "NAMES:")
    assert [message["role"] for message in prompt.messages(note="x")] == ["user"]
    path = write(tmp_path, 'user = "{note} DEFAULT:"\nsystem = "S"')
    assert read_prompt(path, "DEFAULT:", KNOWN) == Prompt("{note} DEFAULT:", "DEFAULT:", "S")


@pytest.mark.parametrize(
    "text, message",
    [
        ("user = {note}", "prompt.toml cannot be read"),
        ('user = "{note} D:"\nfooter = "x"', "'footer' is not one of system, user, header"),
        ('system = "D:"', 'has no user = "..."'),
        ("user = 3", "user must be a text"),
        ('user = "{note} D:"\nheader = " "', "header must be a text"),
        ('user = "{note} D:"\nheader = "a\\nb"', "the header must be one line"),
        ('user = "{note}"', 'does not ask for D:: add header = "..."'),
        ('user = "{note} {gene} D:"', "{gene} is not one of {note}, {genes} .write {{gene}} for the braces"),
        ('user = "{{note}} D:"', "has no {note}"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_prompt(write(tmp_path, text), "D:", KNOWN, ("note",))
    with pytest.raises(InputError, match="nowhere cannot be read"):
        read_prompt(tmp_path / "nowhere", "D:", KNOWN)

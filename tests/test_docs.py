"""README.md and docs/: commands have flags that exist, links lead to files."""

import re
import subprocess
from pathlib import Path

import pytest

import evaluate
import generate_prefs
import mint.cli
from mint import convert, merge
from mint.config import TrainConfig
from mint.demo import __main__ as demo
from mint.flags import parse

ROOT = Path(__file__).parents[1]
PRINTING = """python() { printf '%s\\x1f' "$@"; printf '\\n'; }\n"""  # a function of this name hides the program


def commands(path):
    """(program, arguments) of every call of Python in a page's shell blocks, as bash reads them."""
    # All blocks are one script: a variable of one is used in the next.
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    lines = re.sub(r"\\\n\s*", " ", "".join(blocks)).splitlines()
    script = PRINTING + "\n".join(line for line in lines if re.match(r"python |[A-Z]+=", line))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert not done.stderr, done.stderr
    found = [line.split("\x1f")[:-1] for line in done.stdout.splitlines()]
    return [(" ".join(words[:2]) if words[0] == "-m" else words[0], words) for words in found]


def check_command(program, words, monkeypatch, capsys):
    """Parses a call of one of the programs; fails with what it prints if its flags do not exist."""
    parsed = []
    monkeypatch.setattr(mint.cli, "guard", lambda job, *_: parsed.append(job) or 0)  # parsed, not run
    try:
        if program == "train.py":
            parse(TrainConfig, words[1:], "")
            return
        main = {"g": generate_prefs.main, "e": evaluate.main, "-": demo.main}[program[0]]
        assert main(words[1 if program[0] != "-" else 2 :]) == 0
    except SystemExit:
        pytest.fail(f"{' '.join(words)}: {capsys.readouterr().err}")
    assert len(parsed) == 1


UNCHECKED = ("benchmarks/", "llama.cpp/", "-m benchmarks.", "-m pytest")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page, monkeypatch, capsys):
    for program, words in commands(page):
        if program in ("train.py", "generate_prefs.py", "evaluate.py", "-m mint.demo"):
            check_command(program, words, monkeypatch, capsys)
        elif program in ("-m mint.convert", "-m mint.merge"):
            (convert if program.endswith("convert") else merge).make_parser().parse_args(words[2:])
        else:
            assert program.startswith(UNCHECKED), f"{program} is not checked"


def test_pages_are_read_as_bash_reads_them():
    """Variables, continued lines and comments; the half-hour recipe of docs/mint_findings.md has all of them."""
    found = commands(ROOT / "docs" / "mint_findings.md")
    scored = [words for program, words in found if program == "evaluate.py" and "CASES/dev.tar.xz" in words]
    assert scored and all(words[words.index("--cases") + 1] == "CASES/dev.tar.xz" for words in scored)
    assert all("--out" in words for words in scored)
    assert any("runs/cases/blank" in words for program, words in found if program == "-m mint.demo")
    assert len(commands(ROOT / "docs" / "fire.md")) > 10

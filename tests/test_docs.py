"""README.md and docs/: commands have flags that exist, links lead to files, the examples of docs/extending.md run."""

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import evaluate
import generate_prefs
import mint.cli
from mint import convert, merge
from mint.cli import run_command
from mint.config import TrainConfig, parse
from mint.data.preferences import read_preferences
from mint.demo import __main__ as demo
from mint.errors import FileProblems

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


UNCHECKED = ("benchmarks/", "llama.cpp/", "-m benchmarks.", "-m pytest", "-m mint.merge")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "benchmarks" / "README.md"]


def has_command(main, name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    capsys.readouterr()
    return end.value.code == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page, monkeypatch, capsys):
    parsed = []
    monkeypatch.setattr(mint.cli, "guard", lambda job: parsed.append(job) or 0)  # parsed, not run
    older = {} if has_command(generate_prefs.main, "disease", capsys) else {"disease": "mml", "tissue": "clip"}
    for program, words in commands(page):
        if program == "generate_prefs.py":
            words[1] = older.get(words[1], words[1])
        if program == "train.py":
            parse(TrainConfig, words[1:], "")
        elif program in ("generate_prefs.py", "evaluate.py", "-m mint.demo"):
            main = {"g": generate_prefs.main, "e": evaluate.main, "-": demo.main}[program[0]]
            before = len(parsed)
            try:
                assert main(words[1 if program[0] != "-" else 2 :]) == 0
            except SystemExit:
                pytest.fail(f"{' '.join(words)}: {capsys.readouterr().err}")
            assert len(parsed) == before + 1
        elif program in ("-m mint.convert", "-m mint.merge"):
            (convert if program.endswith("convert") else merge).make_parser().parse_args(words[2:])
        else:
            assert program.startswith(UNCHECKED), f"{program} is not checked"


def test_pages_are_read_as_bash_reads_them():
    """Variables, continued lines and comments; the half-hour recipe of docs/mint.md has all of them."""
    found = commands(ROOT / "docs" / "mint.md")
    scored = [words for program, words in found if program == "evaluate.py" and "CASES/dev.tar.xz" in words]
    assert scored and all(words[words.index("--cases") + 1] == "CASES/dev.tar.xz" for words in scored)
    assert all("--out" in words for words in scored)
    assert any("runs/cases/blank" in words for program, words in found if program == "-m mint.demo")
    assert len(commands(ROOT / "docs" / "fire.md")) > 10


def example(name, first_line):
    """A module made of the code block of docs/extending.md that begins with ``first_line``."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if block.startswith(f'"""{first_line}')]
    module = types.ModuleType(name)
    exec(compile(code, name, "exec", dont_inherit=True), module.__dict__)
    return module


def test_the_example_of_a_cohort_format(tmp_path):
    module, path = example("case_lines", "Cases as JSON Lines"), tmp_path / "cases.jsonl"
    path.write_text(json.dumps({"id": 1, "disease": "Gout", "findings": ["Podagra"]}) + "\n")
    (case,), report = module.read_case_lines(path)
    assert (case.id, case.disease, case.observed[0].label, report) == ("1", "Gout", "Podagra", "1 cases")
    path.write_text('{"id": 1}\n')
    with pytest.raises(FileProblems, match="cases.jsonl:1: not a case"):
        module.read_case_lines(path)


def test_the_example_of_a_task(tmp_path, monkeypatch, capsys):
    """Its scores by hand, its pairs, and its evaluation of a random model."""
    monkeypatch.setitem(sys.modules, "triage", types.ModuleType("triage"))  # a dataclass looks its module up
    module = example("triage", "Triage")
    note = module.Note("a", "No pulse.", "emergency")
    assert module.parse("Urgent, if not an emergency") == "urgent" and module.parse("?") is None
    assert module.score("urgent", note) == {"right": 0.0, "too_low": 1.0}
    assert module.score("emergency", note) == {"right": 1.0, "too_low": 0.0}
    assert module.score(None, note) == {"right": 0.0, "too_low": 0.0}
    monkeypatch.chdir(tmp_path)
    Path("notes.jsonl").write_text(json.dumps({"id": "a", "text": "No pulse.", "level": "emergency"}) + "\n")
    assert run_command("", [module.add_pairs], "triage --notes notes.jsonl --out pairs.jsonl".split()) == 0
    assert [pair.rejected.text for pair in read_preferences("pairs.jsonl")] == ["urgent", "routine"]
    assert demo.main("base --pairs pairs.jsonl --shape demo --vocabulary 300 --out model".split()) == 0
    command = "triage --model model --notes notes.jsonl --out scores --device cpu".split()
    assert run_command("", [module.add_scores], command) == 0
    assert "1 notes; saved in scores" in capsys.readouterr().out
    assert json.loads(Path("scores/metrics.json").read_text())["rows"]["model"].keys() == {"right", "too_low"}
    assert run_command("", [module.add_scores], command) == 2 and "exists already" in capsys.readouterr().err

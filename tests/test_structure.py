"""The structure of the code: imports run one way between rooms, names are unique, files and lines are short."""

import ast
import itertools
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = [  # from the ground up: a room imports only of those before it
    {"errors", "processes", "progress", "optim", "ops", "parallel", "ranges", "scripts", "__init__"},
    {"hub", "cli", "losses"},
    {"files"},
    {"flags"},
    {"config", "models", "data"},
    {"convert", "merge", "privacy", "objective", "teachers", "evaluation"},
    {"training", "prefs"},
    {"synthetic"},
    {"tasks"},
    {"demo"},
]
APART = ("losses", "models", "data")  # import nothing of each other
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "mint").rglob("*.py"))


def room(module):
    return module.split(".")[1] if "." in module else "__init__"


def imports(path):
    """The modules of this package that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("mint"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mint"):
            for alias in node.names:
                part = Path(*node.module.split("."), alias.name)
                inner = (ROOT / f"{part}.py").is_file() or (ROOT / part).is_dir()
                yield f"{node.module}.{alias.name}" if inner else node.module


def test_imports_run_one_way():
    floor = {name: number for number, names in enumerate(ROOMS) for name in names}
    found = {(room(".".join(path.with_suffix("").parts)), room(module)) for path in MODULES for module in imports(path)}
    upward = {(a, b) for a, b in found if a != b and a != "__init__" and floor[a] < floor[b]}
    assert not upward
    assert not {pair for pair in itertools.permutations(APART, 2) if pair in found}


def test_no_import_cycle():
    edges = {".".join(path.with_suffix("").parts): set(imports(path)) for path in MODULES}
    edges = {name.removesuffix(".__init__"): found for name, found in edges.items()}
    while leaves := {name for name, found in edges.items() if not found & edges.keys() - {name}}:
        edges = {name: found for name, found in edges.items() if name not in leaves}
    assert not edges


def test_no_module_name_is_used_twice():
    """But for a model family and its processor."""
    names = Counter(path.stem for path in MODULES if "processors" not in path.parts and path.stem != "__init__")
    assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_files_have_fewer_than_400_lines(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) < 400


def test_no_line_is_longer_than_120_characters():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = [Path(name) for name in listed.stdout.splitlines()] or [path.relative_to(ROOT) for path in ROOT.glob("*")]
    texts = [path for path in files if path.suffix in (".py", ".md", ".toml", ".cff") and (ROOT / path).is_file()]
    long = [
        f"{path}:{number}"
        for path in texts
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120
    ]
    assert texts and not long

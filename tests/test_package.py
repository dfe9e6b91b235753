"""The package as it is imported and installed: public names, version, dependencies, contents of a wheel."""

import importlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import mint
from mint import scripts

ROOT = Path(mint.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PUBLIC = {
    "mint.data.batch": ["make_batches"],
    "mint.data.encode": ["encode_pairs"],
    "mint.data.chat": ["load_tokenizer"],
    "mint.data.preferences": ["read_preferences"],
    "mint.errors": ["InputError"],
    "mint.losses": ["AnswerStats", "LossOutput", "load_loss", "needs"],
    "mint.models": ["load_model"],
    "mint.models.generate": ["generate"],
    "mint.models.lora": ["add_lora", "load_adapter", "merge_lora", "save_adapter"],
    "mint.objective": ["preference_loss"],
}
COMMANDS = ("train", "generate_prefs", "evaluate")


def run_python(code, cwd, **environment):
    """The standard output of ``code`` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_those_of_their_modules():
    for module, names in PUBLIC.items():
        for name in names:
            assert getattr(mint, name) is getattr(importlib.import_module(module), name)
    assert sorted(name for names in PUBLIC.values() for name in names) == list(mint.__all__)
    assert set(mint.__all__) <= set(dir(mint))
    with pytest.raises(AttributeError, match="'mint' has no attribute 'load_modell'"):
        _ = mint.load_modell


def test_importing_the_package_is_cheap():
    assert run_python("import sys, mint; print('torch' in sys.modules, mint.__version__)", ROOT) == "False 0.1.0\n"


def test_requirements_are_the_dependencies_and_the_test_tools():
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["test"]
    assert (ROOT / "requirements.txt").read_text().split() == wanted


def test_a_checkout_has_the_files_of_its_scripts():
    wanted = {f"mint-{name.replace('_', '-')}": f"mint.scripts:{name}" for name in COMMANDS}
    assert PROJECT["project"]["scripts"] == wanted
    for name in COMMANDS:
        assert callable(getattr(scripts, name)) and scripts.command_file(name) == ROOT / f"{name}.py"


def test_a_wheel_holds_every_module_table_and_command(tmp_path):
    """Built without network; the commands and the data of the unpacked wheel are used away from the checkout."""
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "mint", source / "mint", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", *(f"{command}.py" for command in COMMANDS)):
        shutil.copy(ROOT / name, source / name)
    (source / "tests").mkdir()  # other folders stay out
    (source / "tests" / "test_x.py").touch()
    built = run_python(f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))", source)
    with zipfile.ZipFile(tmp_path / built.split()[-1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        wheel.extractall(tmp_path / "site")
    package = {path.relative_to(source).as_posix() for path in (source / "mint").rglob("*") if path.is_file()}
    assert held == package | {f"mint/commands/{name}.py" for name in COMMANDS}
    code = (
        "import sys, mint.scripts\n"
        "from mint.synthetic import cohort, face, tissue_tiles\n"
        "from mint.tasks import report_generation\n"
        "print(mint.scripts.PACKAGE)\n"
        "print(len(cohort.load_syndromes()), len(tissue_tiles.load_tissues()))\n"
        "report_generation.read_findings()\n"
        "face.read_findings()\n"
        "sys.argv = ['mint-evaluate', '--help']\n"
        "mint.scripts.evaluate()\n"
    )
    printed = run_python(code, tmp_path, PYTHONPATH=str(tmp_path / "site")).splitlines()
    assert printed[0] == str(tmp_path / "site" / "mint") and printed[1].split()[:2] == ["43", "19"]
    assert printed[2].startswith("usage: evaluate.py")
